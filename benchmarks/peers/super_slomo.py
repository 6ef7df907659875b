"""Super SloMo (Jiang et al., CVPR 2018): frames between two frames, at their size, by two U-Nets.

As a peer it is followed by a super-resolution of every frame.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stif_rt.model.encoder import conv, leaky, upsample2

MEANS = (0.429, 0.431, 0.397)
SIDES = 32
"""Height and width must be multiples of this."""


class Down(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, kernel)
        self.conv2 = conv(outputs, outputs, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return leaky(self.conv2(leaky(self.conv1(F.avg_pool2d(x, 2)))))


class Up(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs)
        self.conv2 = conv(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return leaky(self.conv2(torch.cat((leaky(self.conv1(upsample2(x))), skip), 1)))


class UNet(nn.Module):
    """Five levels. Its last convolution, too, is followed by the LeakyReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, 32, 7)
        self.conv2 = conv(32, 32, 7)
        self.down1 = Down(32, 64, 5)
        self.down2 = Down(64, 128, 3)
        self.down3 = Down(128, 256, 3)
        self.down4 = Down(256, 512, 3)
        self.down5 = Down(512, 512, 3)
        self.up1 = Up(512, 512)
        self.up2 = Up(512, 256)
        self.up3 = Up(256, 128)
        self.up4 = Up(128, 64)
        self.up5 = Up(64, 32)
        self.conv3 = conv(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        skips = [leaky(self.conv2(leaky(self.conv1(x))))]
        for down in (self.down1, self.down2, self.down3, self.down4):
            skips.append(down(skips[-1]))
        x = self.down5(skips[-1])
        for up in (self.up1, self.up2, self.up3, self.up4, self.up5):
            x = up(x, skips.pop())
        return leaky(self.conv3(x))


class Flows(NamedTuple):
    """Computed once per pair: where each point of one frame is in the other, [B, 2, H, W], (x, y) in pixels."""

    forward: Tensor
    backward: Tensor


class SuperSloMo(nn.Module):
    """aligned_corners: the warp's convention. Published weights were trained with True; False is what the same program
    does in later versions of PyTorch, and shifts the picture by half a pixel.
    """

    def __init__(self, aligned_corners: bool = True) -> None:
        super().__init__()
        self.flow = UNet(6, 4)
        self.interp = UNet(20, 5)
        self.aligned_corners = aligned_corners
        self.register_buffer("means", torch.tensor(MEANS).view(3, 1, 1), persistent=False)

    def flows(self, frames: Tensor) -> Flows:
        """frames: [B, 2, 3, H, W], RGB in [0, 1], H and W multiples of 32."""
        return Flows(*self.flow((frames - self.means).flatten(1, 2)).chunk(2, 1))

    def frame(self, frames: Tensor, flows: Flows, t: float) -> tuple[Tensor, Tensor]:
        """The picture [B, 3, H, W] at a time in (0, 1), not clamped, and frame 0's visibility [B, 1, H, W]."""
        first, second = (frames - self.means).unbind(1)
        forward, backward = flows
        to_first = -t * (1 - t) * forward + t**2 * backward
        to_second = (1 - t) ** 2 * forward - t * (1 - t) * backward
        guesses = (to_second, to_first, self.warp(second, to_second), self.warp(first, to_first))
        made = self.interp(torch.cat((first, second, forward, backward, *guesses), 1))
        to_first = to_first + made[:, 0:2]
        to_second = to_second + made[:, 2:4]
        visible = made[:, 4:5].sigmoid()
        of_first, of_second = (1 - t) * visible, t * (1 - visible)
        blend = of_first * self.warp(first, to_first) + of_second * self.warp(second, to_second)
        return blend / (of_first + of_second) + self.means, visible

    def warp(self, image: Tensor, flow: Tensor) -> Tensor:
        """image read at each pixel plus its flow, bilinear, zero outside. Positions are float32 whatever the dtype."""
        H, W = image.shape[-2:]
        y, x = (torch.arange(n, device=image.device) for n in (H, W))
        position = torch.stack(((x + flow[:, 0].float()) / W, (y[:, None] + flow[:, 1].float()) / H), -1) * 2 - 1
        return F.grid_sample(image.float(), position, align_corners=self.aligned_corners).to(image.dtype)

    def forward(self, frames: Tensor, times: list[float]) -> Tensor:
        """[B, T, 3, H, W] at times in (0, 1)."""
        flows = self.flows(frames)
        return torch.stack([self.frame(frames, flows, t)[0] for t in times], 1)


def published_parameters(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Published files keep the two networks as two dictionaries."""
    parts = {"flow": content["state_dictFC"], "interp": content["state_dictAT"]}
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
