"""stif-rt: an inference runtime for STIF, continuous space-time video super-resolution."""

from stif_rt.runtime import Runtime
from stif_rt.version import VERSION as __version__

__all__ = ["Runtime", "__version__"]
