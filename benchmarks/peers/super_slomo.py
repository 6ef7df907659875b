"""Super SloMo (Jiang et al., CVPR 2018): frames between two frames, at their size, by two U-Nets.

As a peer it is followed by a super-resolution of every frame.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.interpolator import Call, Interpolator
from benchmarks.peers.unet import UNet
from benchmarks.peers.warp import warp_by_size

MEANS = (0.429, 0.431, 0.397)
SIDES = 32
"""Height and width must be multiples of this."""


class Flows(NamedTuple):
    """Computed once per pair: where each point of one frame is in the other, [B, 2, H, W], (x, y) in pixels."""

    forward: Tensor
    backward: Tensor


class SuperSloMo(Interpolator):
    """aligned_corners: the warp's convention. Published weights were trained with True; False is what the same program
    does in later versions of PyTorch, and shifts the picture by half a pixel.
    """

    label = "Super SloMo"

    means: Tensor

    def __init__(self, aligned_corners: bool = True) -> None:
        super().__init__()
        self.flow = UNet(6, 4)
        self.interp = UNet(20, 5)
        self.aligned_corners = aligned_corners
        self.register_buffer("means", torch.tensor(MEANS).view(3, 1, 1), persistent=False)

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        return 0, -width % SIDES, 0, -height % SIDES

    def prepare(self, frames: Tensor, call: Call) -> tuple[Tensor, Flows]:
        return frames, self.flows(frames)

    def render(self, prepared: tuple[Tensor, Flows], t: Tensor) -> Tensor:
        return self.frame(*prepared, t)[0]

    def flows(self, frames: Tensor) -> Flows:
        """frames: [B, 2, 3, H, W], RGB in [0, 1], H and W multiples of 32."""
        return Flows(*self.flow((frames - self.means).flatten(1, 2)).chunk(2, 1))

    def frame(self, frames: Tensor, flows: Flows, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """The picture [B, 3, H, W] at a time in (0, 1), not clamped, and frame 0's visibility [B, 1, H, W]."""
        first, second = (frames - self.means).unbind(1)
        forward, backward = flows
        t = torch.as_tensor(t, dtype=torch.float64, device=frames.device)
        out, back, across = (c.to(frames.dtype) for c in (t * (1 - t), t**2, (1 - t) ** 2))
        to_first = -out * forward + back * backward
        to_second = across * forward - out * backward
        guesses = (to_second, to_first, self.warp(second, to_second), self.warp(first, to_first))
        output = self.interp(torch.cat((first, second, forward, backward, *guesses), 1))
        to_first = to_first + output[:, 0:2]
        to_second = to_second + output[:, 2:4]
        visible = output[:, 4:5].sigmoid()
        of_first, of_second = (1 - t).to(frames.dtype) * visible, t.to(frames.dtype) * (1 - visible)
        blend = of_first * self.warp(first, to_first) + of_second * self.warp(second, to_second)
        return blend / (of_first + of_second) + self.means, visible

    def warp(self, image: Tensor, flow: Tensor) -> Tensor:
        return warp_by_size(image, flow, self.aligned_corners)


def published_parameters(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Published files keep the two networks as two dictionaries."""
    if "state_dictFC" not in content or "state_dictAT" not in content:
        return content
    parts = {"flow": content["state_dictFC"], "interp": content["state_dictAT"]}
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
