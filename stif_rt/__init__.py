"""stif-rt: an inference runtime for STIF, continuous space-time video super-resolution."""

from typing import TYPE_CHECKING, Any

from stif_rt.version import VERSION as __version__

if TYPE_CHECKING:
    from stif_rt.runtime import Pair, Runtime

__all__ = ["Pair", "Runtime", "__version__"]

_MODULES = {"Pair": "stif_rt.runtime", "Runtime": "stif_rt.runtime"}
"""Where public names are defined. They are imported when they are asked for, so that the command line starts fast."""


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
