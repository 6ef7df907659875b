"""The encoder run by PyTorch itself: every device, every dtype."""

from typing import Any

import torch
from torch import Tensor

from stif_rt.model.compact import CompactEncoder
from stif_rt.model.encoder import Features
from stif_rt.model.stif import AnyEncoder

Extracted = Any
"""What an encoder extracts from one frame alone, of a form of its own."""


def unavailable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: PyTorch runs everywhere."""
    return None


def build(encoder: AnyEncoder, device: torch.device, dtype: torch.dtype) -> "TorchEngine":
    """The engine of a network, which it takes over."""
    return TorchEngine(encoder, device, dtype)


class TorchEngine:
    """Besides whole pairs it takes the encoder's two parts, so that a video's frames are extracted once each."""

    name = "torch"

    def __init__(self, encoder: AnyEncoder, device: torch.device, dtype: torch.dtype) -> None:
        # channels last: 1.1 to 1.3 times faster convolutions on CPUs, and what tensor cores want
        self.encoder = encoder.to(device, dtype).to(memory_format=torch.channels_last).eval()
        self.dtype = dtype

    def __call__(self, frames: Tensor, velocity: Tensor | None = None) -> Features:
        first, second = (self.extract(frames[:, k], matching=velocity is None) for k in (0, 1))
        return self.merge(first, second, velocity)

    @torch.inference_mode()
    def extract(self, frames: Tensor, matching: bool = True) -> Extracted:
        """The part of the encoder that knows one frame at a time.

        frames: float32 [B, 3, h, w] in [0, 1]. matching: whether ``merge`` will have to find the velocity.
        """
        return self.encoder.extract(frames.to(memory_format=torch.channels_last), matching)

    @torch.inference_mode()
    def merge(self, first: Extracted, second: Extracted, velocity: Tensor | None = None, maps: bool = True) -> Features:
        """The part that knows both frames of a pair.

        velocity: see ``Engine``. maps: whether anything will read the maps; a compact encoder then makes them with
        cells only if so.
        """
        if not maps and isinstance(self.encoder, CompactEncoder):
            return self.encoder.merge([first, second], velocity, maps=False)
        return self.encoder.merge([first, second], velocity)

    @torch.inference_mode()
    def find_velocity(self, frames: Tensor) -> Tensor:
        """The velocity of a network with ``motion`` alone, float32 [B, 2, h/s, w/s], of frames [B, 2, 3, h, w]."""
        assert isinstance(self.encoder, CompactEncoder)
        return self.encoder.find_velocity(frames)

    @torch.inference_mode()
    def along(self, frames: Tensor, velocity: Tensor) -> Features:
        """The features of frames whose velocity is known on the grid of the maps, as ``find_velocity`` returns it."""
        assert isinstance(self.encoder, CompactEncoder)
        first, second = (self.extract(frames[:, k], matching=False)[0] for k in (0, 1))
        return self.encoder.align(first, second, velocity)
