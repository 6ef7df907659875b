"""BasicVSR (Chan et al., CVPR 2021): a whole sequence of frames, four times larger.

What is known of a frame travels through the sequence in both directions, moved by an optical flow.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.warp import sample, sampling_positions
from stif_rt.model.encoder import ResidualBlock, conv, leaky

LEVELS = 6
COARSEST = 2 ** (LEVELS - 1)
"""SPyNet's sides must be multiples of this."""
WIDTHS = (8, 32, 64, 32, 16, 2)
"""Channels of a SPyNet level."""


class FlowLevel(nn.Module):
    """What a level of SPyNet adds to the flow from below."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(WIDTHS):
            layers += [nn.ReLU()] if layers else []
            layers.append(conv(inputs, outputs, 7))
        self.basic_module = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)


class SPyNet(nn.Module):
    """Optical flow by a pyramid of small networks, coarse to fine."""

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(FlowLevel() for _ in range(LEVELS))
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Coarse to fine."""
        levels = [(image - self.mean) / self.std]
        while len(levels) < LEVELS:
            levels.insert(0, F.avg_pool2d(levels[0], 2))
        return levels

    def levels(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """The flow of each level, coarse to fine, for pictures whose sides are multiples of 32."""
        flows: list[Tensor] = []
        for network, of_a, of_b in zip(self.basic_module, self.pyramid(a), self.pyramid(b), strict=True):
            if flows:
                up = 2 * F.interpolate(flows[-1], scale_factor=2, mode="bilinear", align_corners=True)
            else:
                up = torch.zeros_like(of_a[:, :2])
            flows.append(up + network(torch.cat((of_a, sample(of_b, sampling_positions(up), border=True), up), 1)))
        return flows

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, 2, h, w]: where each point of a [B, 3, h, w] is in b, (x, y) in pixels. Any size."""
        h, w = a.shape[-2:]
        H, W = (-(-side // COARSEST) * COARSEST for side in (h, w))
        a, b = (F.interpolate(x, size=(H, W), mode="bilinear", align_corners=False) for x in (a, b))
        flow = F.interpolate(self.levels(a, b)[-1], size=(h, w), mode="bilinear", align_corners=False)
        return flow * flow.new_tensor((w / W, h / H)).view(2, 1, 1)


class Trunk(nn.Module):
    """The next state of one direction, from the frame and the state that arrives."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        residual = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.main = nn.Sequential(conv(3 + channels, channels), nn.LeakyReLU(0.1), residual)

    def forward(self, frame: Tensor, state: Tensor) -> Tensor:
        return self.main(torch.cat((frame, state), 1))


class BasicVSR(nn.Module):
    def __init__(self, channels: int = 64, blocks: int = 30) -> None:
        super().__init__()
        self.channels = channels
        self.spynet = SPyNet()
        self.backward_trunk = Trunk(channels, blocks)
        self.forward_trunk = Trunk(channels, blocks)
        self.fusion = conv(2 * channels, channels, 1)
        self.upconv1 = conv(channels, 4 * channels)
        self.upconv2 = conv(channels, 4 * 64)
        self.conv_hr = conv(64, 64)
        self.conv_last = conv(64, 3)

    def flows(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T - 1, 2, h, w] each: from every frame but the last to the next one, from all but the first to the one
        before. frames: [B, T, 3, h, w]."""
        count = frames.shape[1] - 1
        if count == 0:
            empty = frames[:, :0, :2]
            return empty, empty
        before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        both = self.spynet(before, after), self.spynet(after, before)
        to_next, to_previous = (flow.unflatten(0, (-1, count)) for flow in both)
        return to_next, to_previous

    def propagate(self, trunk: nn.Module, frames: list[Tensor], flows: list[Tensor]) -> list[Tensor]:
        """The states [B, C, h, w] at all frames in turn; flows: from each frame but the first to the one before."""
        B, _, h, w = frames[0].shape
        states = [trunk(frames[0], frames[0].new_zeros(B, self.channels, h, w))]
        for frame, flow in zip(frames[1:], flows, strict=True):
            states.append(trunk(frame, sample(states[-1], sampling_positions(flow))))
        return states

    def states(self, frames: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What arrives at each frame from behind and from ahead, in time order, [B, C, h, w]."""
        to_next, to_previous = (list(flow.unbind(1)) for flow in self.flows(frames))
        each = list(frames.unbind(1))
        backward = self.propagate(self.backward_trunk, each[::-1], to_next[::-1])[::-1]
        return backward, self.propagate(self.forward_trunk, each, to_previous)

    def reconstruct(self, backward: Tensor, forward: Tensor, frame: Tensor) -> Tensor:
        """RGB [B, 3, 4h, 4w] from the states at a frame [B, 3, h, w]."""
        x = leaky(self.fusion(torch.cat((backward, forward), 1)))
        x = leaky(F.pixel_shuffle(self.upconv1(x), 2))
        x = leaky(F.pixel_shuffle(self.upconv2(x), 2))
        x = self.conv_last(leaky(self.conv_hr(x)))
        return x + F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)

    def forward(self, frames: Tensor) -> Tensor:
        """All frames of a sequence, enlarged.

        Args:
            frames: [B, T, 3, h, w], RGB in [0, 1], neighbours in time; any size and number.

        Returns:
            RGB [B, T, 3, 4h, 4w], not clamped. Each frame's result depends on all the others.

        Raises:
            ValueError: For another shape.
        """
        if frames.ndim != 5 or frames.shape[1] < 1 or frames.shape[2] != 3:
            raise ValueError(f"BasicVSR takes frames [B, T, 3, h, w], not {list(frames.shape)}")
        parts = zip(*self.states(frames), frames.unbind(1), strict=True)
        return torch.stack([self.reconstruct(*part) for part in parts], 1)


def published_parameters(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a file of BasicSR or of mmediting, by BasicSR's names."""
    for key in ("params_ema", "params", "state_dict"):
        content = content.get(key, content)
    names = {name.removeprefix("module."): value for name, value in content.items() if name != "step_counter"}
    names = {name.removeprefix("generator."): value for name, value in names.items()}
    if not any(name.startswith("forward_resblocks.") for name in names):
        return names
    return {_basicsr_name(name): value for name, value in names.items()}


def _basicsr_name(name: str) -> str:
    name = re.sub(r"^(backward|forward)_resblocks\.", r"\1_trunk.", name)
    name = re.sub(r"^upsample([12])\.upsample_conv\.", r"upconv\1.", name)
    flow = re.fullmatch(r"(spynet\.basic_module\.\d\.basic_module)\.(\d)\.conv\.(\w+)", name)
    return f"{flow[1]}.{2 * int(flow[2])}.{flow[3]}" if flow else name
