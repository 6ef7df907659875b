"""stif-rt: an inference runtime for STIF, continuous space-time video super-resolution."""

from typing import TYPE_CHECKING, Any

from stif_rt.version import VERSION as __version__

if TYPE_CHECKING:
    from stif_rt.flow import flow_to_image
    from stif_rt.interpolation import interpolate
    from stif_rt.runtime import Pair, Runtime
    from stif_rt.video.notices import Notice
    from stif_rt.video.options import Cancellation, Cancelled, Progress, RenderOptions
    from stif_rt.video.run import Rendered, render_video

__all__ = [
    "Cancellation",
    "Cancelled",
    "Notice",
    "Pair",
    "Progress",
    "RenderOptions",
    "Rendered",
    "Runtime",
    "__version__",
    "flow_to_image",
    "interpolate",
    "render_video",
]

_MODULES = {
    "Cancellation": "stif_rt.video.options",
    "Cancelled": "stif_rt.video.options",
    "Notice": "stif_rt.video.notices",
    "Pair": "stif_rt.runtime",
    "Progress": "stif_rt.video.options",
    "RenderOptions": "stif_rt.video.options",
    "Rendered": "stif_rt.video.run",
    "Runtime": "stif_rt.runtime",
    "flow_to_image": "stif_rt.flow",
    "interpolate": "stif_rt.interpolation",
    "render_video": "stif_rt.video.run",
}
"""Where public names are defined. They are imported when they are asked for, so that the command line starts fast."""


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
