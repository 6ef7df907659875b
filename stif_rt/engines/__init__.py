"""Encoder engines: what runs the heavy network once per pair of frames.

An engine is called with frames, float32 [B, 2, 3, h, w] in [0, 1] with h and w multiples of 4, and returns features
[B, 3, 64, h, w] on the same device.
"""

from typing import Protocol

import torch
from torch import Tensor

from stif_rt.bundle import ENGINE, GRAPH, WEIGHTS, Bundle
from stif_rt.engines import onnxruntime_engine, tensorrt_engine
from stif_rt.engines.torch_compiled import CompiledEngine
from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.model.checkpoints import check_castable, load_model
from stif_rt.model.encoder import Features
from stif_rt.model.stif import AnyEncoder

ENGINES = ("compiled", "torch")
"""``auto`` takes ``compiled`` on a GPU and ``torch`` elsewhere. Bundles bring their own: ``make_bundle_engine``."""


class Engine(Protocol):
    name: str

    def __call__(self, frames: Tensor, velocity: Tensor | None = None) -> Features: ...


def make_engine(name: str, encoder: AnyEncoder, device: torch.device, dtype: torch.dtype) -> Engine:
    """The engine of that name, or the preferred one for ``auto``. Raises ValueError for an unknown name."""
    if name not in ("auto", *ENGINES):
        raise ValueError(f"unknown encoder engine {name!r}; there are: auto, {', '.join(ENGINES)}")
    check_castable(encoder, dtype)
    if name == "compiled" or (name == "auto" and device.type == "cuda"):
        return CompiledEngine(encoder, device, dtype)
    return TorchEngine(encoder, device, dtype)


def bundle_engines(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """The engines that bundles can bring, and why they cannot run, or None."""
    reasons = {"onnx": onnxruntime_engine.unavailable_reason(device, dtype)}
    for flavour in tensorrt_engine.MODULES:
        reasons[flavour] = tensorrt_engine.unavailable_reason(flavour, device)
    return reasons


def make_bundle_engine(name: str, bundle: Bundle, device: torch.device) -> Engine:
    """The engine that runs a bundle's encoder, in the bundle's dtype.

    name: ``auto`` for the one it was made for; ``torch``; ``onnx`` or ``onnx:PROVIDER``; ``tensorrt``;
    ``tensorrt-rtx``. Raises ValueError for one that the bundle does not hold, and RuntimeError, with the reason, for
    one that cannot run here.
    """
    manifest = bundle.manifest
    chosen, _, provider = (manifest.engine if name == "auto" else name).partition(":")
    dtype = manifest.torch_dtype
    if chosen == "torch":
        return TorchEngine(load_model(bundle.folder / WEIGHTS).encoder, device, dtype)
    if chosen == "onnx" and manifest.sizes is not None and manifest.form != "plugin":
        return onnxruntime_engine.OnnxEngine(bundle.folder / GRAPH, manifest.sizes, device, dtype, provider or "auto")
    if chosen in tensorrt_engine.MODULES and chosen == manifest.engine and manifest.sizes is not None:
        reason = tensorrt_engine.unavailable_reason(chosen, device)
        if reason is not None:
            raise RuntimeError(f"the encoder engine {chosen!r} cannot run: {reason}")
        here = tensorrt_engine.engine_key(chosen, manifest.files[GRAPH], manifest.sizes, manifest.dtype, device)
        tensorrt_engine.check_key(manifest.engine_key, here, bundle.folder)
        return tensorrt_engine.TensorRTEngine(chosen, bundle.folder / ENGINE, manifest.sizes, device, dtype)
    raise ValueError(
        f"bundle {bundle.folder} has no encoder for the engine {name!r}: it was made for {manifest.engine!r}"
        + (" and its deformable convolutions are TensorRT plugins" if manifest.form == "plugin" else "")
    )
