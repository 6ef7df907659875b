"""Encoder engines: what runs the heavy network once per pair of frames.

An engine is called with frames, float32 [B, 2, 3, h, w] in [0, 1] with h and w multiples of 4, and returns features
[B, 3, 64, h, w] on the same device.
"""

from typing import Protocol

import torch
from torch import Tensor

from stif_rt.engines.compiled import CompiledEngine
from stif_rt.engines.pytorch import TorchEngine
from stif_rt.model.encoder import Encoder

ENGINES = ("compiled", "torch")
"""``auto`` takes ``compiled`` on a GPU and ``torch`` elsewhere."""


class Engine(Protocol):
    name: str

    def __call__(self, frames: Tensor) -> Tensor: ...


def make_engine(name: str, encoder: Encoder, device: torch.device, dtype: torch.dtype) -> Engine:
    """The engine of that name, or the preferred one for ``auto``. Raises ValueError for an unknown name."""
    if name not in ("auto", *ENGINES):
        raise ValueError(f"unknown encoder engine {name!r}; there are: auto, {', '.join(ENGINES)}")
    if name == "compiled" or (name == "auto" and device.type == "cuda"):
        return CompiledEngine(encoder, device, dtype)
    return TorchEngine(encoder, device, dtype)
