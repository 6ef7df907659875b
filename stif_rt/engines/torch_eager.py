"""The encoder run by PyTorch itself: every device, every dtype."""

from typing import Any

import torch
from torch import Tensor

from stif_rt.model.encoder import Features
from stif_rt.model.stif import AnyEncoder


class TorchEngine:
    name = "torch"

    def __init__(self, encoder: AnyEncoder, device: torch.device, dtype: torch.dtype) -> None:
        # channels last: 1.1 to 1.3 times faster convolutions on CPUs, and what tensor cores want
        self.encoder = encoder.to(device, dtype).to(memory_format=torch.channels_last).eval()
        self.dtype = dtype
        self._before: tuple[Tensor, Any] | None = None

    @torch.inference_mode()
    def __call__(self, frames: Tensor, velocity: Tensor | None = None) -> Features:
        """A video's next pair begins with the frame that this one ends with: what is known of that one is kept."""
        first, second = frames.unbind(1)
        kept, self._before = self._before, None
        if kept is None or not _same(kept[0], first):
            kept = first, self._extract(first)
        self._before = second.clone(), self._extract(second)
        return self.encoder.merge([kept[1], self._before[1]], velocity)

    def _extract(self, frames: Tensor) -> Any:
        return self.encoder.extract(frames.to(self.dtype, memory_format=torch.channels_last))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
