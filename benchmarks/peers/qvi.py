"""QVI (Xu et al., NeurIPS 2019): frames between the middle two of four, whose motion is taken to be accelerated.

As a peer it is followed by a super-resolution of every frame.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.interpolator import Call, Interpolator
from benchmarks.peers.pwcnet import COARSEST, UNIT, PWCNet
from benchmarks.peers.super_slomo import MEANS
from benchmarks.peers.unet import UNet
from benchmarks.peers.warp import splat, warp_by_size
from stif_rt.model.encoder import conv, leaky

SMALLEST = 32
"""Frames must have so many pixels on each side: the U-Net halves them five times."""
FARTHEST = 10
"""Pixels within which the adaptive filter picks another place's flow."""


class Motion(NamedTuple):
    """Computed once per pair. frames: the inner two, [B, 2, 3, h, w], means subtracted. The others: flows [B, 2, h, w]
    from one of the four frames, counted from 0, to another; None where the outer frames are missing."""

    frames: Tensor
    flow10: Tensor | None
    flow12: Tensor
    flow21: Tensor
    flow23: Tensor | None


class Synthesis(NamedTuple):
    """What is found for a time, all [B, C, h, w]: flows of the inner frames to it, the same reversed (to be read with),
    these after the adaptive filter, the share of the first frame, and the picture."""

    forward: tuple[Tensor, Tensor]
    reversed: tuple[Tensor, Tensor]
    refined: tuple[Tensor, Tensor]
    mask: Tensor
    rgb: Tensor


class MaskNet(nn.Module):
    """How much of each place comes from the first of the two warped frames."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(38, 32, 5)
        self.conv2 = conv(32, 16)
        self.conv3 = conv(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(leaky(self.conv2(leaky(self.conv1(x))))).sigmoid()


class QVI(Interpolator):
    """Takes four frames, or only the inner two, whose motion is linear then.

    Args:
        aligned_corners: The convention of all warps, PWC-Net's included, as in ``SuperSloMo``.
    """

    means: Tensor
    label = "QVI"
    counts = 4, 2
    remembered = 12

    def __init__(self, aligned_corners: bool = True) -> None:
        super().__init__()
        self.flownet = PWCNet(aligned_corners=aligned_corners)
        self.refinenet = UNet(20, 8)
        self.masknet = MaskNet()
        self.register_buffer("means", torch.tensor(MEANS).view(3, 1, 1), persistent=False)

    @property
    def aligned_corners(self) -> bool:
        return self.flownet.aligned_corners

    @aligned_corners.setter
    def aligned_corners(self, value: bool) -> None:
        self.flownet.aligned_corners = value

    def prepare(self, frames: Tensor, call: Call) -> Motion:
        if min(frames.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"QVI needs frames of {SMALLEST}x{SMALLEST} pixels or more, not {frames.shape[-1]}x{frames.shape[-2]}"
            )
        shifted = frames - self.means
        each = frames.unbind(1)
        features = [call(self.features, frame) for frame in each]

        def flow(a: int, b: int) -> Tensor:
            return call(self.flow, features[a], features[b], each[a])

        if frames.shape[1] == 2:
            return Motion(shifted, None, flow(0, 1), flow(1, 0), None)
        return Motion(shifted[:, 1:3], flow(1, 0), flow(1, 2), flow(2, 1), flow(2, 3))

    def features(self, frame: Tensor) -> list[Tensor]:
        """PWC-Net's features of a frame [B, 3, h, w], RGB in [0, 1]."""
        size = [-(-side // COARSEST) * COARSEST for side in frame.shape[-2:]]
        frame = F.interpolate(frame - self.means, size=size, mode="bilinear", align_corners=False)
        return self.flownet.features(frame)

    def flow(self, a: list[Tensor], b: list[Tensor], frame: Tensor) -> Tensor:
        """[B, 2, h, w]: where each point of a frame is in another, in pixels, from the features of both."""
        quarter = self.flownet.flow(a, b)
        h, w = frame.shape[-2:]
        flow = F.interpolate(quarter, size=(h, w), mode="bilinear", align_corners=False) * UNIT
        scale = flow.new_tensor((w / (4 * quarter.shape[-1]), h / (4 * quarter.shape[-2])))
        return flow * scale.view(2, 1, 1)

    def render(self, prepared: Motion, t: Tensor) -> Tensor:
        return self.frame(prepared, t).rgb

    def frame(self, motion: Motion, t: Tensor) -> Synthesis:
        """Everything that is found for a time t, float64 [B, 1, 1, 1], in (0, 1)."""
        first, second = motion.frames.unbind(1)
        flow12, flow21 = motion.flow12, motion.flow21
        forward = quadratic(flow12, motion.flow10, t), quadratic(flow21, motion.flow23, 1 - t)
        to_first, to_second = reverse(forward[0]), reverse(forward[1])

        warped = self.warp(first, to_first), self.warp(second, to_second)
        guesses = (first, second, *warped, flow12, flow21, to_first, to_second)
        features = self.refinenet.features(torch.cat(guesses, 1).to(first.dtype))  # reversed flows are float32
        correction = self.refinenet.last(features)
        offsets = FARTHEST * correction[:, 4:].tanh()
        to_first_refined = self.warp(to_first, offsets[:, :2]) + correction[:, 0:2]
        to_second_refined = self.warp(to_second, offsets[:, 2:]) + correction[:, 2:4]

        warped = self.warp(first, to_first_refined), self.warp(second, to_second_refined)
        mask = self.masknet(torch.cat((*warped, features), 1))
        of_first, of_second = (1 - t).to(mask.dtype) * mask, t.to(mask.dtype) * (1 - mask)
        blend = (of_first * warped[0] + of_second * warped[1]) / (of_first + of_second)
        refined = to_first_refined, to_second_refined
        return Synthesis(forward, (to_first, to_second), refined, mask, blend + self.means)

    def warp(self, image: Tensor, flow: Tensor) -> Tensor:
        return warp_by_size(image, flow, self.aligned_corners)


def quadratic(flow: Tensor, back: Tensor | None, t: Tensor) -> Tensor:
    """How far the points of a frame have moved at t, of their way to the next frame and back to the one before."""
    if back is None:
        return t.to(flow.dtype) * flow
    return 0.5 * ((t + t**2).to(flow.dtype) * flow - (t - t**2).to(flow.dtype) * back)


def reverse(flow: Tensor) -> Tensor:
    """The flow moved to where it points, [B, 2, h, w]; where several arrive, by nearness; zero where none does."""
    h, w = flow.shape[-2:]
    flow = flow.float()
    whole = flow.floor()
    part = flow - whole
    column, row = torch.arange(w, device=flow.device), torch.arange(h, device=flow.device)[:, None]
    total = torch.zeros_like(flow[:, :1]).expand(-1, 3, -1, -1)
    for right in (0, 1):
        for down in (0, 1):
            weight = (-((part[:, 0] - right) ** 2 + (part[:, 1] - down) ** 2)).exp()[:, None]
            x, y = column + whole[:, 0].long() + right, row + whole[:, 1].long() + down
            total = total + splat(torch.cat((weight * flow, weight), 1), x, y)
    weights = total[:, 2:]
    return torch.where(weights > 0, -total[:, :2] / weights, 0)
