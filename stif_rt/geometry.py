"""Where the output's pixels fall in the input, decided once per row and once per column for every backend.

Normalised coordinates run over [-1, 1] from edge to edge. A map of n pixels is read at y by the position
((y + 1) * n - 1) / 2 in pixels (PyTorch's ``align_corners=False``).
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stif_rt.model.config import Config

LIMIT = 1 - 1e-6
"""Coordinates are clamped to [-LIMIT, LIMIT], as the published program does."""


class Box(NamedTuple):
    """A rectangle of output pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def contains(self, other: "Box") -> bool:
        return (
            self.top <= other.top
            and self.left <= other.left
            and other.top + other.height <= self.top + self.height
            and other.left + other.width <= self.left + self.width
        )


@dataclass(frozen=True)
class Axis:
    """One axis (height or width) of a frame that is rendered at another size. N output pixels from n input pixels.

    The encoder's maps have one cell for every ``feature_stride`` pixels of the frames, and one more for a remainder.

    inputs, outputs: n and N.
    nearest_index: int64 [N], the cell nearest to each output pixel.
    cell_offset: float32 [N], distance from that cell's centre, in cells times two.
    source_coords: float32 [N], where each output pixel lies, in cells; from -0.5 to n / feature_stride - 0.5.
    origin, step: base grid of the warp. Output pixel j with flow u reads at origin + step * (j + u), normalised.
    flow_unit: what TIF's flow is counted in, in output pixels.
    scale: output pixels per input pixel, N / n.
    stride: the feature stride.
    """

    inputs: int
    outputs: int
    nearest_index: Tensor
    cell_offset: Tensor
    source_coords: Tensor
    origin: float
    step: float
    flow_unit: float
    scale: float
    stride: int = 1

    @property
    def extent(self) -> float:
        """Cells from edge to edge of the frame; a normalised coordinate of -1 is the first edge, 1 the last."""
        return self.inputs / self.stride

    def to(self, device: torch.device | str) -> "Axis":
        return replace(
            self,
            nearest_index=self.nearest_index.to(device),
            cell_offset=self.cell_offset.to(device),
            source_coords=self.source_coords.to(device),
        )


def make_axis(
    inputs: int,
    outputs: int,
    grid: Literal["corners", "centres"],
    flow_unit: Literal["input", "output"] = "output",
    stride: int = 1,
) -> Axis:
    """The tables of one axis, on the CPU.

    At non-integer scales some output pixels lie exactly between two cells. float32 rounding
    breaks these ties, so the order of operations that published weights were trained with is repeated here exactly.
    """
    f32 = np.float32
    i = np.arange(outputs, dtype=f32)
    y = f32(-1 + 1 / outputs) + f32(2 / outputs) * i
    y = np.clip(y, f32(-LIMIT), f32(LIMIT))
    extent = f32(inputs / stride)
    source_coords = ((y + f32(1)) * extent - f32(1)) / f32(2)
    nearest_index = np.clip(np.rint(source_coords), 0, cell_count(inputs, stride) - 1)
    centres = f32(-1) + (f32(2) * nearest_index + f32(1)) / extent
    cell_offset = (y - centres) * extent
    if grid == "centres":
        origin, step = -1 + 1 / outputs, 2 / outputs
    elif outputs > 1:
        origin, step = -1.0, 2 / (outputs - 1)
    else:  # the corner grid divides by zero: one pixel reads the centre, whatever its flow
        origin, step = 0.0, 0.0
    return Axis(
        inputs,
        outputs,
        torch.from_numpy(nearest_index.astype(np.int64)),
        torch.from_numpy(cell_offset),
        torch.from_numpy(source_coords),
        origin,
        step,
        outputs / inputs if flow_unit == "input" else 1.0,
        outputs / inputs,
        stride,
    )


def cell_count(pixels: int, stride: int) -> int:
    """Cells of a map along an axis of that many pixels."""
    return -(-pixels // stride)


@dataclass(frozen=True)
class Geometry:
    """Both axes of a frame that is rendered at another size."""

    vertical: Axis
    horizontal: Axis

    @property
    def inputs(self) -> tuple[int, int]:
        """(h, w) of the input."""
        return self.vertical.inputs, self.horizontal.inputs

    @property
    def outputs(self) -> tuple[int, int]:
        """(H, W) of the output."""
        return self.vertical.outputs, self.horizontal.outputs

    @property
    def pixel_size(self) -> float:
        """Side of an output pixel in input pixels, at most 1: what a model with ``Config.scale`` is told.

        Of different scales along the axes, the geometric mean; and of a picture that is shrunk, what one of the same
        size has, because nothing is enlarged in either.
        """
        return min(1.0, (self.vertical.scale * self.horizontal.scale) ** -0.5)

    def to(self, device: torch.device | str) -> "Geometry":
        return Geometry(self.vertical.to(device), self.horizontal.to(device))


def make_geometry(config: Config, inputs: tuple[int, int], outputs: tuple[int, int]) -> Geometry:
    """Geometry, on the CPU, of a frame rendered from ``inputs`` (h, w) at ``outputs`` (H, W)."""
    grid = config.grid if config.flow else "centres"  # without flow, the decoder reads at the query position itself
    sizes = zip(inputs, outputs, strict=True)
    return Geometry(*(make_axis(n, N, grid, config.flow_unit, config.feature_stride) for n, N in sizes))


def in_output_pixels(flow: Tensor, geometry: Geometry) -> Tensor:
    """TIF's output, (x0, y0, x1, y1) on the last axis, in output pixels whatever unit the model counts in."""
    x, y = geometry.horizontal.flow_unit, geometry.vertical.flow_unit
    if isinstance(x, float) and x == y == 1:  # in an exported graph they are tensors
        return flow
    return torch.stack([part * unit for part, unit in zip(flow.unbind(-1), (x, y, x, y), strict=True)], -1)


def warp_coordinates(flow: Tensor, axis: Axis, first: int, dim: int) -> Tensor:
    """Normalised coordinate along one axis that each output pixel reads under a flow.

    flow: float32, one component, in output pixels. axis: the axis that component lies along. first: output pixel at
    index 0 of ``dim``, the dimension of ``flow`` that runs along the axis. Clamped to [-LIMIT, LIMIT]; a NaN becomes
    -LIMIT, as it does with the minimum and maximum instructions of CPUs and GPUs.
    """
    shape = [1] * flow.ndim
    shape[dim] = flow.shape[dim]
    pixel = torch.arange(first, first + flow.shape[dim], device=flow.device, dtype=torch.float32).view(shape)
    limit = flow.new_tensor(LIMIT)
    return torch.fmin(torch.fmax(axis.origin + axis.step * (pixel + flow), -limit), limit)


def to_pixels(coordinate: Tensor, size: float) -> Tensor:
    """Position in pixels that a normalised coordinate reads, of a map that has ``size`` pixels from edge to edge."""
    return ((coordinate + 1) * size - 1) / 2
