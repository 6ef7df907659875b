"""Zooming SlowMo (Xiang et al., CVPR 2020): four times larger, and one new frame midway between neighbours.

STIF's encoder is this network without its head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.model.config import Config
from stif_rt.model.encoder import Encoder, leaky


class ZoomingSlowMo(Encoder):
    def __init__(self) -> None:
        super().__init__(Config())

    def head(self, maps: Tensor) -> Tensor:
        """Features of one frame, [B, 64, h, w], to RGB [B, 3, 4h, 4w]."""
        x = leaky(F.pixel_shuffle(self.upconv1(maps), 2))
        x = leaky(F.pixel_shuffle(self.upconv2(x), 2))
        return self.conv_last(leaky(self.HRconv(x)))

    def forward(self, frames: Tensor) -> Tensor:  # type: ignore[override]  # pictures, not features
        """frames: [B, N, 3, h, w], RGB in [0, 1], N >= 2, h and w multiples of 4.

        Returns RGB [B, 2N - 1, 3, 4h, 4w] in time order, not clamped. Raises ValueError for other shapes.
        """
        return torch.stack([self.head(maps) for maps in super().forward(frames).maps.unbind(1)], 1)
