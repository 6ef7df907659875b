"""The whole network with the output's size as data: what ``--part full`` traces."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from stif_rt.geometry import LIMIT, Axis, Geometry
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
        self.grid: Literal["corners", "centres"] = model.config.grid if model.config.flow else "centres"
        self.flow_unit = model.config.flow_unit

    def forward(self, frames: Tensor, t: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        features = Features(self.encoder(frames).float())
        h, w = frames.shape[-2:]
        geometry = Geometry(
            *(make_axis(n, pixels, self.grid, self.flow_unit) for n, pixels in ((h, rows), (w, columns)))
        )
        return self.implicit_functions.at(features, frames, t, geometry).rgb


def make_axis(
    inputs: int, pixels: Tensor, grid: Literal["corners", "centres"], flow_unit: Literal["input", "output"]
) -> Axis:
    """``stif_rt.geometry.make_axis`` in operations that can be traced. pixels: float32, 0 to N - 1."""
    outputs = pixels[-1].double() + 1  # what NumPy computes in float64 before it rounds to float32, as it does there
    y = (-1 + 1 / outputs).float() + (2 / outputs).float() * pixels
    y = y.clamp(-LIMIT, LIMIT)
    positions = ((y + 1) * inputs - 1) / 2
    cells = positions.round().clamp(torch.zeros(()), torch.ones(()) * (inputs - 1))
    centres = (2 * cells + 1) / inputs - 1
    relative = (y - centres) * inputs
    if grid == "centres":
        origin, step = -1 + 1 / outputs, 2 / outputs
    else:  # one pixel reads the centre
        several = outputs > 1
        origin = -several.double()
        step = several * 2 / (outputs - 1).clamp(min=1)
    unit = outputs / inputs if flow_unit == "input" else torch.ones(())
    numbers = (cast(float, number.float()) for number in (origin, step, unit, outputs / inputs))  # that depend on data
    first, distance, counted, scale = numbers
    return Axis(inputs, pixels.shape[0], cells.long(), relative, positions, first, distance, counted, scale)
