"""What a kernel backend is given and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from stif_rt.geometry import Box, Geometry
from stif_rt.model.config import WIDTHS, Config
from stif_rt.model.encoder import Features
from stif_rt.model.implicit_functions import at_cells


@dataclass(frozen=True)
class Projections:
    """The first layers of a pair of frames, computed once at the size of the encoder's maps, channels last.

    sif, tif: one map [B, h/s, w/s, 64], or nothing where the variant has no such network.
    decoder: the maps [B, h/s, w/s, 64] read at p0 and at p1, or nothing without aggregation.
    frames: float32 [B, 2, h, w, 3], for the warped residual.
    velocity: float32 [B, h/s, w/s, 2], (x, y) in pixels of the frames, or None without ``motion``.
    """

    sif: tuple[Tensor, ...]
    tif: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]
    frames: Tensor
    velocity: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the fields."""
        velocity = () if self.velocity is None else (self.velocity,)
        return (*self.sif, *self.tif, *self.decoder, self.frames, *velocity)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Projections":
        """The same with each tensor replaced by what the function makes of it."""
        sif, tif, decoder = (tuple(map(function, maps)) for maps in (self.sif, self.tif, self.decoder))
        velocity = None if self.velocity is None else function(self.velocity)
        return replace(self, sif=sif, tif=tif, decoder=decoder, frames=function(self.frames), velocity=velocity)


@dataclass(frozen=True)
class View:
    """The work of one pass: the output pixels of a box, of all pairs at all times.

    times: float32 [B, T], contiguous. geometry: of the whole picture, on the same device. box: which of its pixels.
    """

    times: Tensor
    geometry: Geometry
    box: Box

    @classmethod
    def whole(cls, times: Tensor, geometry: Geometry) -> "View":
        """Whole pictures."""
        return cls(times, geometry, Box(0, 0, *geometry.outputs))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, T, height, width)."""
        B, T = self.times.shape
        return B, T, self.box.height, self.box.width

    def picture_shape(self, output: torch.dtype) -> tuple[int, ...]:
        """The shape of the pictures, as ``Kernels.decode`` returns them."""
        B, T, height, width = self.shape
        return (B, T, height, width, 3) if output == torch.uint8 else (B, T, 3, height, width)

    def within(self, box: Box) -> "View":
        """The pixels of another box of the same pictures."""
        return replace(self, box=box)


def unsupported(config: Config, fields: Sequence[str]) -> str | None:
    """Why kernels that compute the paper's network, and of the later fields only these, cannot run a configuration."""
    later = ("motion", "blend", "bicubic", "feature_stride", "scale", "sif_time", *WIDTHS)
    used = [name for name in later if getattr(config, name) != getattr(Config(), name) and name not in fields]
    return f"it has no kernels for {', '.join(used)} as this configuration has it" if used else None


class Kernels(Protocol):
    """The two passes with one model's weights. B pairs, T times of each; height and width are those of ``view.box``.

    Nothing that a pass returns for a pixel depends on which box was asked for.

    Every tensor that a pass is given is contiguous, and so is every one that it returns. Kernels index memory by that
    rule, so each pass begins with ``require_contiguous``, whatever the backend: a slice that is passed as it is fails
    on all of them.
    """

    name: str
    """The backend's, as in ``BACKENDS``."""
    dtype: torch.dtype
    """What products are computed in."""
    reads_maps: bool
    """Whether ``project`` reads the maps of its features, as all do but those that leave out constant networks."""

    def project(self, features: Features, frames: Tensor) -> Projections:
        """features: from the encoder, without what the padding added. frames: [B, 2, 3, h, w], RGB in [0, 1]."""
        ...

    def implicit(
        self, projections: Projections, view: View, feature: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pass 1.

        Returns the spatial feature F, [B, T, height, width, 64] in the backend's dtype (None for "-s"), and the flow
        (x0, y0, x1, y1), float32 [B, T, height, width, 4] (None for "-f"), in output pixels: what the network says
        times the axes' ``flow_unit``, and with ``motion`` the velocity's.

        Without ``sif_time`` F does not depend on the time, and the T of its shape is 1. It can then be handed in again,
        as ``feature`` over the same box, and is not computed a second time.
        """
        ...

    def decode(
        self,
        projections: Projections,
        view: View,
        feature: Tensor | None,
        flow: Tensor | None,
        feature_box: Box | None = None,
        output: torch.dtype = torch.float32,
    ) -> Tensor:
        """Pass 2.

        feature: F over ``feature_box``, that of the view if None; it contains every output pixel that the flow points
        to. flow: over the view. Returns RGB: for ``output=torch.float32`` [B, T, 3, height, width], not clamped; for
        ``torch.uint8`` [B, T, height, width, 3], clamped, times 255, rounded.
        """
        ...


def first_layer_inputs(features: Features, frames: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    """The inputs of the first layers at each cell: the maps' three times 64 channels and both colours.

    features, frames: as for ``Kernels.project``. Returns [B, h, w, 198] in ``dtype``, as a copy in that order if the
    maps are channels last.
    """
    shrunk = at_cells(frames, stride).flatten(1, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    return torch.cat((*features.maps.to(dtype).unbind(1), shrunk), 1).movedim(1, -1)


def read_maps(features: Features, frames: Tensor) -> tuple[Tensor, Tensor | None]:
    """Frames [B, 2, h, w, 3] and velocity [B, h, w, 2] (None where there is none), float32, as passes read them."""
    velocity = None if features.velocity is None else features.velocity.movedim(1, -1).float().contiguous()
    return frames.movedim(2, -1).float().contiguous(), velocity


def require_contiguous(projections: Projections, *tensors: Tensor | None) -> None:
    """Raises ValueError where a tensor that a pass was given is not contiguous."""
    for x in (*projections.tensors, *tensors):
        if x is not None and not x.is_contiguous():
            raise ValueError(f"kernels take contiguous tensors only; one of shape {list(x.shape)} is a slice or a view")
