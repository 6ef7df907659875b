"""What a kernel backend is given and what it returns."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stif_rt.geometry import Box, Geometry


@dataclass(frozen=True)
class Projections:
    """What is computed once per pair of frames: first layers at the input's size, channels last.

    sif, tif: one map [B, h, w, 64], or nothing where the variant has no such network.
    decoder: the maps [B, h, w, 64] read at p0 and at p1, or nothing without aggregation.
    frames: float32 [B, 2, h, w, 3], for the warped residual.
    """

    sif: tuple[Tensor, ...]
    tif: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]
    frames: Tensor


class Kernels(Protocol):
    """The two passes with one model's weights. B pairs, T times of each.

    ``times`` is float32 [B, T]. Nothing that a pass returns for a pixel depends on which box was asked for.
    """

    def project(self, features: Tensor, frames: Tensor) -> Projections:
        """features: [B, 3, 64, h, w]. frames: [B, 2, 3, h, w], RGB in [0, 1]."""
        ...

    def implicit(
        self, projections: Projections, times: Tensor, geometry: Geometry, box: Box
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pass 1 over the output pixels of ``box``.

        Returns the spatial feature F, [B, T, box.height, box.width, 64] in the backend's dtype (None for "-s"), and
        the flow (x0, y0, x1, y1), float32 [B, T, box.height, box.width, 4] (None for "-f"), in output pixels: what
        the network says times the axes' ``flow_unit``.
        """
        ...

    def decode(
        self,
        projections: Projections,
        feature: Tensor | None,
        flow: Tensor | None,
        times: Tensor,
        geometry: Geometry,
        region: Box,
        box: Box,
    ) -> Tensor:
        """Pass 2 over the output pixels of ``region``.

        feature: F over ``box``, which contains every output pixel that the flow points to. flow: over ``region``.
        Returns RGB, float32 [B, T, 3, region.height, region.width], not clamped.
        """
        ...
