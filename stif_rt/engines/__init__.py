"""Encoder engines: what runs the heavy network once per pair of frames.

An engine is called with frames, float32 [B, 2, 3, h, w] in [0, 1] whose sides are multiples of ``Config.multiple``,
perhaps with a velocity, float32 [B, 2, h, w] in pixels of the frames, and returns ``Features`` on the same device.
"""

import logging
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stif_rt.bundle import Bundle
from stif_rt.engines import onnxruntime_engine, tensorrt_engine, torch_compiled, torch_eager
from stif_rt.errors import CannotRunError
from stif_rt.model.checkpoints import check_castable
from stif_rt.model.encoder import Features
from stif_rt.model.stif import AnyEncoder

log = logging.getLogger(__name__)

ENGINES: dict[str, ModuleType] = {"torch": torch_eager, "compiled": torch_compiled}
"""What runs a network in memory, by preference: compiling takes a minute or more before the first frame.

Each module has ``unavailable_reason(device, dtype)``, None or why it cannot run, and ``build(encoder, device,
dtype)``."""


class BundleEngine(NamedTuple):
    """An engine that bundles can bring: a module like those of ENGINES, but that it builds from a bundle.

    flavour: what the module is told besides, None for a module with one engine.
    """

    module: ModuleType
    flavour: str | None = None

    def unavailable_reason(self, device: torch.device, dtype: torch.dtype) -> str | None:
        reason: str | None = self.module.unavailable_reason(device, dtype, *([self.flavour] if self.flavour else []))
        return reason


BUNDLE_ENGINES = {
    "onnx": BundleEngine(onnxruntime_engine),
    "tensorrt": BundleEngine(tensorrt_engine, "tensorrt"),
    "tensorrt-rtx": BundleEngine(tensorrt_engine, "tensorrt-rtx"),
}
"""What runs the encoder of a bundle that was made for it; the engines of ENGINES run that of any bundle."""


class Engine(Protocol):
    """What runs an encoder; see the module's docstring for how it is called."""

    name: str

    def __call__(self, frames: Tensor, velocity: Tensor | None = None) -> Features: ...


def choose_engine(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """One of ENGINES: that of the name, or for ``auto`` the first that can run.

    Raises:
        ValueError: the name is unknown.
        CannotRunError: the engine asked for cannot run here; the message has the reason.
    """
    if name not in ("auto", *ENGINES):
        raise ValueError(f"unknown encoder engine {name!r}; there are: auto, {', '.join(ENGINES)}")
    for candidate, module in ENGINES.items():
        if name not in ("auto", candidate):
            continue
        reason = module.unavailable_reason(device, dtype)
        if reason is None:
            log.info("encoder engine: %s", candidate)
            return candidate
        if name == candidate:
            raise CannotRunError(f"the encoder engine {name!r} cannot run: {reason}")
        log.info("encoder engine %s not used: %s", candidate, reason)
    raise AssertionError("PyTorch itself runs everywhere")


def make_engine(name: str, encoder: AnyEncoder, device: torch.device, dtype: torch.dtype) -> Engine:
    """The engine of that name, or the preferred one for ``auto``; errors as of ``choose_engine``."""
    check_castable(encoder, dtype)
    engine: Engine = ENGINES[choose_engine(name, device, dtype)].build(encoder, device, dtype)
    return engine


def make_bundle_engine(name: str, bundle: Bundle, device: torch.device) -> Engine:
    """The engine that runs a bundle's encoder, in the bundle's dtype.

    Args:
        name: ``auto`` for the one that the bundle was made for; one of ENGINES; ``onnx`` or ``onnx:PROVIDER``;
            ``tensorrt``; ``tensorrt-rtx``.
        bundle: the bundle.
        device: what is to run it.

    Raises:
        ValueError: the name is unknown, or the bundle does not hold that engine.
        CannotRunError: it cannot run here; the message has the reason.
    """
    manifest = bundle.manifest
    engine, _, provider = (manifest.engine if name == "auto" else name).partition(":")
    if engine in ENGINES and not provider:
        return make_engine(engine, bundle.encoder(), device, manifest.torch_dtype)
    if engine == "onnx" and manifest.engine != "torch" and manifest.form != "plugin":
        return onnxruntime_engine.build(bundle, device, provider or "auto")
    if engine in tensorrt_engine.MODULES and engine == manifest.engine and not provider:
        return tensorrt_engine.build(bundle, device)
    if engine not in (*ENGINES, *BUNDLE_ENGINES):
        known = ", ".join(("auto", *ENGINES, *BUNDLE_ENGINES))
        raise ValueError(f"unknown encoder engine {name!r}; there are: {known}, onnx:PROVIDER")
    raise ValueError(
        f"bundle {bundle.folder} has no encoder for the engine {name!r}: it was made for {manifest.engine!r}"
        + (" and its deformable convolutions are TensorRT plugins" if manifest.form == "plugin" else "")
    )
