"""PWC-Net (Sun et al., CVPR 2018): optical flow, coarse to fine. Part of QVI and DAIN."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.warp import sample, sampling_positions
from stif_rt.model.encoder import conv, leaky

NUMBERS = ("One", "Two", "Thr", "Fou", "Fiv", "Six")
WIDTHS = (16, 32, 64, 96, 128, 196)
"""Channels of the feature levels, each half the size of the one before."""
GROWTH = (128, 128, 96, 64, 32)
"""Channels that each convolution of a decoder adds."""
REACH = 4
"""Pixels of a level that the correlation looks away in each direction."""
COSTS = (2 * REACH + 1) ** 2
UNIT = 20
"""Flows are kept in units of so many pixels of the full size."""
COARSEST = 64
"""Sides must be multiples of this."""


def activated(*layers: nn.Module) -> nn.Sequential:
    """The layers, each followed by LeakyReLU."""
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.LeakyReLU(0.1))))


class Extractor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for number, inputs, outputs in zip(NUMBERS, (3, *WIDTHS), WIDTHS, strict=False):
            layers = conv(inputs, outputs, stride=2), conv(outputs, outputs), conv(outputs, outputs)
            self.add_module(f"module{number}", activated(*layers))

    def forward(self, image: Tensor) -> list[Tensor]:
        levels = [image]
        for level in self.children():
            levels.append(level(levels[-1]))
        return levels[1:]


class Flow(NamedTuple):
    """A decoder's result: flow [B, 2, h, w] in units of 20 pixels, and the map that it was samples from."""

    flow: Tensor
    features: Tensor


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """[B, 81, h, w]: mean products of a and b moved by up to four pixels, vertical shift first, zero outside."""
    h, w = a.shape[-2:]
    padded = F.pad(b, (REACH,) * 4)
    shifts = range(2 * REACH + 1)
    return torch.stack([(a * padded[..., p : p + h, q : q + w]).mean(1) for p in shifts for q in shifts], 1)


class Decoder(nn.Module):
    """The flow of one level, 2 to 6, from both frames' features and the level above."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.scale = UNIT / 2**level
        inputs = COSTS
        if level < len(WIDTHS):
            above = Decoder.outputs(level + 1)
            self.moduleUpflow = nn.ConvTranspose2d(2, 2, 4, 2, 1)
            self.moduleUpfeat = nn.ConvTranspose2d(above, 2, 4, 2, 1)
            inputs += WIDTHS[level - 1] + 4
        for number, outputs in zip(NUMBERS, GROWTH, strict=False):
            self.add_module(f"module{number}", activated(conv(inputs, outputs)))
            inputs += outputs
        self.moduleSix = nn.Sequential(conv(inputs, 2))

    @staticmethod
    def outputs(level: int) -> int:
        """Channels of a level's features."""
        return COSTS + sum(GROWTH) + (WIDTHS[level - 1] + 4 if level < len(WIDTHS) else 0)

    def forward(self, a: Tensor, b: Tensor, above: Flow | None, least: float, aligned_corners: bool) -> Flow:
        if above is None:
            z = leaky(correlation(a, b))
        else:
            up, hint = self.moduleUpflow(above.flow), self.moduleUpfeat(above.features)
            b = masked_warp(b, self.scale * up, least, aligned_corners)
            z = torch.cat((leaky(correlation(a, b)), a, up, hint), 1)
        for number in NUMBERS[: len(GROWTH)]:
            z = torch.cat((self.get_submodule(f"module{number}")(z), z), 1)
        return Flow(self.moduleSix(z), z)


def masked_warp(image: Tensor, flow: Tensor, least: float, aligned_corners: bool) -> Tensor:
    """The image read where the flow points; zero where less than ``least`` of a reading lies inside."""
    positions = sampling_positions(flow)
    if not aligned_corners:
        size = positions.new_tensor((image.shape[-1], image.shape[-2])).view(2, 1, 1)
        positions = positions * size / (size - 1) - 0.5
    samples = sample(torch.cat((image, torch.ones_like(image[:, :1])), 1), positions)
    return samples[:, :-1] * (samples[:, -1:] > least)


class Refiner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths, dilations = (Decoder.outputs(2), 128, 128, 128, 96, 64, 32), (1, 2, 4, 8, 16, 1)
        layers = [
            nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
            for inputs, outputs, dilation in zip(widths, widths[1:], dilations, strict=False)
        ]
        self.moduleMain = nn.Sequential(*activated(*layers), conv(widths[-1], 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.moduleMain(x)


class PWCNet(nn.Module):
    """Flow between two frames at a quarter of their size, in units of 20 full-size pixels.

    Args:
        least: Share of a reading that must lie inside the picture; the published programs differ in it.
        aligned_corners: The sampler's convention in warps; True reads exactly where the flow points.
    """

    def __init__(self, least: float = 0.999, aligned_corners: bool = True) -> None:
        super().__init__()
        self.least, self.aligned_corners = least, aligned_corners
        self.moduleExtractor = Extractor()
        for level in range(2, len(WIDTHS) + 1):
            self.add_module(f"module{NUMBERS[level - 1]}", Decoder(level))
        self.moduleRefiner = Refiner()

    def features(self, image: Tensor) -> list[Tensor]:
        """Six levels of features of a frame [B, 3, H, W], H and W multiples of 64."""
        return self.moduleExtractor(image)

    def flow(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """[B, 2, H/4, W/4]: where each point of frame a is in frame b, from the features of both."""
        estimate: Flow | None = None
        for level in range(len(WIDTHS), 1, -1):
            decoder = self.get_submodule(f"module{NUMBERS[level - 1]}")
            estimate = decoder(a[level - 1], b[level - 1], estimate, self.least, self.aligned_corners)
        assert estimate is not None
        return estimate.flow + self.moduleRefiner(estimate.features)
