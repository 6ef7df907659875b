"""The implicit functions' weights as every kernel takes them.

Two rearrangements, both exact in real arithmetic:

- Linear maps commute with sampling, W sample(E) = sample(W E). The first-layer columns that meet the encoder's
  features and the frames are split off as a *projection*, applied once per input pixel instead of once per output
  pixel: 158 k multiply-adds per output pixel instead of 208 k, and 64 channels to gather instead of 198. The bias is
  added after sampling, because zeros outside the map must stay zeros.
- The factor inside the sine is folded into weights and biases. Folding 30 leaves pre-activations in radians; folding
  30 / (2 pi) leaves them in turns, so that range reduction is z - round(z).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.implicit_functions import FEATURES, IMAGES, ImplicitFunctions
from stif_rt.model.siren import OMEGA, Siren

RADIANS = OMEGA
TURNS = OMEGA / (2 * math.pi)


@dataclass(frozen=True)
class FoldedSiren:
    """One SIREN.

    projections: [64, 198] for each position that is sampled: first-layer columns for features (192), frames (6).
    local: [64, k], first-layer columns for what is made per output pixel, or None where there is nothing.
    time, scale: [64], the first layer's columns for t and for ``Geometry.pixel_size``; zeros where it is not told.
    bias: [64], the first layer's.
    hidden: weight [out, in] and bias [out] of the sine layers after the first.
    output: weight and bias of the last, linear layer.
    """

    projections: tuple[Tensor, ...]
    local: Tensor | None
    time: Tensor
    scale: Tensor
    bias: Tensor
    hidden: tuple[tuple[Tensor, Tensor], ...]
    output: tuple[Tensor, Tensor]

    @property
    def is_constant(self) -> bool:
        """Whether nothing that it reads matters, as when training has begun with zeros and left them: the bias of its
        output is all that it gives."""
        return not self.output[0].any()

    def first_bias(self, times: Tensor, pixel_size: float) -> Tensor:
        """The constant that the first layer adds at every pixel of a frame. times: [...]. Returns [..., 64]."""
        return times[..., None] * self.time + self.bias + pixel_size * self.scale


@dataclass(frozen=True)
class FoldedWeights:
    """The three networks: spatial (None for "-s") and temporal (None for "-f") implicit function, decoder."""

    config: Config
    sif: FoldedSiren | None
    tif: FoldedSiren | None
    decoder: FoldedSiren


def fold(functions: ImplicitFunctions, factor: float) -> FoldedWeights:
    """Rearranges the networks' parameters. factor: RADIANS or TURNS. Differentiable: training runs the fast form."""
    config = functions.config
    shared = range(FEATURES + IMAGES)
    relative = range(len(shared), len(shared) + 2)
    sif = tif = None
    if not config.single_function:
        sif = _fold(functions.feat_imnet, factor, [shared], relative, config.scale, config.sif_time)
    if config.flow and config.single_function:
        tif = _fold(functions.flow_imnet, factor, [shared], relative)
    elif config.flow:
        tif = _fold(functions.flow_imnet, factor, [[CHANNELS + column for column in shared]], range(CHANNELS))

    # The decoder reads [F at p0, F at p1], then [features at p0, features at p1, frames at p0, frames at p1].
    local = range(0 if config.single_function else 2 * CHANNELS)
    positions: list[list[int]] = []
    if config.aggregation:
        for k in (0, 1):
            features = len(local) + k * FEATURES
            images = len(local) + 2 * FEATURES + k * IMAGES
            positions.append([*range(features, features + FEATURES), *range(images, images + IMAGES)])
    return FoldedWeights(config, sif, tif, _fold(functions.encode_imnet, factor, positions, local, config.scale))


def _fold(
    network: Siren,
    factor: float,
    projections: list[range] | list[list[int]],
    local: range,
    told_scale: bool = False,
    told_time: bool = True,
) -> FoldedSiren:
    *sines, output = network.linears
    (weight, bias), *hidden = ((factor * layer.weight, factor * layer.bias) for layer in sines)
    untold = torch.zeros_like(bias)
    return FoldedSiren(
        projections=tuple(weight[:, list(columns)] for columns in projections),
        local=weight[:, local.start : local.stop] if local else None,
        time=weight[:, -1] if told_time else untold,
        scale=weight[:, -1 - told_time] if told_scale else untold,
        bias=bias,
        hidden=tuple(hidden),
        output=(output.weight, output.bias),
    )
