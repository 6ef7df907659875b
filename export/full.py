"""The whole network with the output's size as data: what ``--part full`` traces."""

from typing import cast

import torch
from torch import Tensor, nn

from stif_rt.geometry import LIMIT, Axis, Geometry
from stif_rt.model.config import Config
from stif_rt.model.encoder import Features
from stif_rt.model.stif import STIF


class FullNetwork(nn.Module):
    """Frames, times and the output's rows and columns to RGB.

    Rows and columns are float32, 0 to H - 1 and 0 to W - 1: tracing then knows the output's size as a shape.
    """

    def __init__(self, encoder: nn.Module, model: STIF) -> None:
        super().__init__()
        self.encoder = encoder
        self.implicit_functions = model.implicit_functions.eval()
        self.config = model.config

    def forward(self, frames: Tensor, t: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        features = Features(*self.encoder(frames)).to(torch.float32)
        h, w = frames.shape[-2:]
        geometry = TracedGeometry(*(make_axis(self.config, n, pixels) for n, pixels in ((h, rows), (w, columns))))
        return self.implicit_functions.forward_geometry(features, frames, t, geometry).rgb


class TracedGeometry(Geometry):
    """A geometry whose output size is data."""

    @property
    def pixel_size(self) -> float:
        area = cast(Tensor, self.vertical.scale * self.horizontal.scale)
        return cast(float, area.rsqrt().clamp(max=1))


def make_axis(config: Config, inputs: int, pixels: Tensor) -> Axis:
    """``stif_rt.geometry.make_axis`` in operations that can be traced.

    inputs: pixels of the frames, a multiple of the feature stride. pixels: float32, 0 to N - 1.
    """
    count = inputs // config.feature_stride
    outputs = pixels[-1].double() + 1  # what NumPy computes in float64 before it rounds to float32, as it does there
    y = (-1 + 1 / outputs).float() + (2 / outputs).float() * pixels
    y = y.clamp(-LIMIT, LIMIT)
    positions = ((y + 1) * count - 1) / 2
    cells = positions.round().clamp(torch.zeros(()), torch.ones(()) * (count - 1))
    centres = (2 * cells + 1) / count - 1
    relative = (y - centres) * count
    if config.grid == "centres" or not config.flow:
        origin, step = -1 + 1 / outputs, 2 / outputs
    else:  # one pixel reads the centre
        several = outputs > 1
        origin = -several.double()
        step = several * 2 / (outputs - 1).clamp(min=1)
    unit = outputs / inputs if config.flow_unit == "input" else torch.ones(())
    numbers = (cast(float, number.float()) for number in (origin, step, unit, outputs / inputs))  # that depend on data
    first, distance, counted, scale = numbers
    tables = (cells.long(), relative, positions)
    return Axis(inputs, pixels.shape[0], *tables, first, distance, counted, scale, config.feature_stride)
