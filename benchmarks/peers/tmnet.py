"""TMNet (Xu et al., CVPR 2021): Zooming SlowMo at any times between two frames.

Three additions: the alignment's offsets are modulated by the time, neighbouring maps are compared before the ConvLSTM,
and a skip leads around ConvLSTM and trunk.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.zooming_slowmo import ZoomingSlowMo
from stif_rt.model.config import CHANNELS
from stif_rt.model.encoder import Alignment, DeformableConv, Pyramid, conv, leaky, upsample2


class TimeModulation(nn.Module):
    """f(x) times m(tau), one factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, CHANNELS, CHANNELS, CHANNELS)
        time: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            time += [nn.Conv2d(a, b, 1, bias=False), nn.LeakyReLU(0.1)]
        self.t_process = nn.Sequential(*time)
        self.f_process = nn.Sequential(
            conv(CHANNELS, CHANNELS), nn.LeakyReLU(0.1), conv(CHANNELS, CHANNELS), nn.LeakyReLU(0.1)
        )

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x: [B, 64, h, w]. tau: [B], in [-1, 1]."""
        return self.f_process(x) * self.t_process(tau.to(x.dtype).view(-1, 1, 1, 1))


class TimedAlignment(Alignment):
    """Alignment to a time: a modulation is added to each level's offset feature. ``A`` belongs to the pass ``_1``."""

    def __init__(self) -> None:
        super().__init__()
        for side, level in itertools.product("AB", "123"):
            self.add_module(f"TMB_{side}_l{level}", TimeModulation())

    def one_side_at(self, source: Pyramid, other: Pyramid, side: str, tau: Tensor) -> Tensor:
        """As ``Alignment.one_side``; the last offset convolution of each level is followed by the modulation."""

        def layer(name: str) -> nn.Module:
            return self.get_submodule(f"{name}_{side}")

        def modulated(x: Tensor, level: int, convolution: str) -> Tensor:
            block = self.get_submodule(f"TMB_{'AB'[int(side) - 1]}_l{level}")
            return leaky(layer(convolution)(x)) + block(x, tau)

        offset = leaky(layer("L3_offset_conv1")(torch.cat((source[2], other[2]), 1)))
        offset = modulated(offset, 3, "L3_offset_conv2")
        aligned = leaky(layer("L3_dcnpack")(source[2], offset))
        for level in (2, 1):
            coarse, x = offset, source[level - 1]
            offset = leaky(layer(f"L{level}_offset_conv1")(torch.cat((x, other[level - 1]), 1)))
            offset = leaky(layer(f"L{level}_offset_conv2")(torch.cat((offset, 2 * upsample2(coarse)), 1)))
            offset = modulated(offset, level, f"L{level}_offset_conv3")
            aligned = torch.cat((layer(f"L{level}_dcnpack")(x, offset), upsample2(aligned)), 1)
            aligned = layer(f"L{level}_fea_conv")(aligned)
            if level == 2:
                aligned = leaky(aligned)
        return aligned

    def at(self, first: Pyramid, second: Pyramid, times: Tensor) -> Tensor:
        """[B, 128, h, w]: both pyramids aligned to ``times`` [B]."""
        forward = self.one_side_at(first, second, "1", 2 * times - 1)
        backward = self.one_side_at(second, first, "2", 1 - 2 * times)
        return torch.cat((forward, backward), 1)


def pointwise(*widths: int) -> nn.Sequential:
    """1x1 convolutions with LeakyReLU between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.LeakyReLU(0.1)] if layers else []
        layers.append(conv(a, b, 1))
    return nn.Sequential(*layers)


def offset_convs() -> nn.Sequential:
    return nn.Sequential(conv(2 * CHANNELS, CHANNELS), nn.LeakyReLU(0.1), conv(CHANNELS, CHANNELS))


def check_times(times: Tensor, batch: int) -> None:
    """Raises ValueError unless they are [B, T], ascending between 0 and 1."""
    if times.ndim != 2 or times.shape[0] != batch or times.shape[1] == 0:
        raise ValueError(f"times are [B, T] for frames [B, N, 3, h, w], not {list(times.shape)}")
    steps = torch.diff(F.pad(times, (1, 0)), dim=1)
    if not bool((steps > 0).all() and (times < 1).all()):
        raise ValueError(f"TMNet makes frames between 0 and 1, in ascending order, not at {times.tolist()}")


class TMNet(ZoomingSlowMo):
    pcd_align: TimedAlignment

    def __init__(self) -> None:
        super().__init__()
        self.pcd_align = TimedAlignment()
        self.layersAtBOffset = offset_convs()
        self.layersAtB = DeformableConv()
        self.layersCtBOffset = offset_convs()
        self.layersCtB = DeformableConv()
        self.layersFusion = pointwise(*[3 * CHANNELS] * 4, CHANNELS)

    def compare(self, before: Tensor, x: Tensor, after: Tensor) -> Tensor:
        """A map plus what its two neighbours in the sequence, aligned with it, add to it."""
        from_before = leaky(self.layersAtB(before, self.layersAtBOffset(torch.cat((before, x), 1))))
        from_after = leaky(self.layersCtB(after, self.layersCtBOffset(torch.cat((after, x), 1))))
        return x + self.layersFusion(torch.cat((from_before, x, from_after), 1))

    def forward(self, frames: Tensor, times: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """All frames and those at the times between neighbours. One time's result depends on the others.

        Args:
            frames: [B, N, 3, h, w], RGB in [0, 1], h and w multiples of 4.
            times: [B, T], each in (0, 1), ascending, the same between all neighbouring frames; None for one unmodulated
                map midway, as the single-frame model was trained.

        Returns:
            RGB [B, N + (N - 1) T, 3, 4h, 4w] in time order, not clamped.

        Raises:
            ValueError: For other times.
        """
        if times is not None and not torch.compiler.is_compiling():
            check_times(times, len(frames))
        N = frames.shape[1]
        level1 = self.feature_extraction(leaky(self.conv_first(frames.flatten(0, 1))))
        levels = [level.unflatten(0, (-1, N)).unbind(1) for level in self.pyramid(level1)]
        pyramids: list[Pyramid] = list(zip(*levels, strict=True))

        sequence = [pyramids[0][0]]
        for before, after in itertools.pairwise(pyramids):
            if times is None:
                aligned = [self.pcd_align(before, after)]
            else:
                aligned = [self.pcd_align.at(before, after, t) for t in times.unbind(1)]
            sequence += [*(self.fusion(x) for x in aligned), after[0]]

        neighbours = zip([sequence[0], *sequence[:-1]], sequence, [*sequence[1:], sequence[-1]], strict=True)
        compared = [self.compare(*three) for three in neighbours]
        results = zip(self.ConvBLSTM(compared), sequence, strict=True)
        return torch.stack([self.head(self.recon_trunk(x) + skip) for x, skip in results], 1)
