"""The encoder run by PyTorch itself: every device, every dtype."""

import torch
from torch import Tensor

from stif_rt.model.encoder import Encoder


class TorchEngine:
    name = "torch"

    def __init__(self, encoder: Encoder, device: torch.device, dtype: torch.dtype) -> None:
        # channels last: 1.1 to 1.3 times faster convolutions on CPUs, and what tensor cores want
        self.encoder = encoder.to(device, dtype).to(memory_format=torch.channels_last).eval()
        self.dtype = dtype

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        return self.encoder(frames.to(self.dtype))
