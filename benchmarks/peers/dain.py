"""DAIN (Bao et al., CVPR 2019): frames between two frames, of which nearer points hide farther ones.

As a peer it is followed by a super-resolution of every frame.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.hourglass import Hourglass
from benchmarks.peers.interpolator import Call, Interpolator
from benchmarks.peers.pwcnet import GROWTH, NUMBERS, UNIT, WIDTHS, PWCNet
from benchmarks.peers.warp import sampling_positions, splat
from stif_rt.model.encoder import conv, upsample2

SIDES = 64
"""Height and width must be multiples of this."""
PADDED = 128
"""The published programs pad to multiples of this."""
TAPS = 4
"""Pixels of an adaptive kernel in each direction."""


class KernelNet(nn.ModuleDict):
    """Features of both frames that adaptive kernels are made from. Entries are numbered as in published files."""

    def __init__(self) -> None:
        down = {"0": (6, 16), "2": (16, 32), "5": (32, 64), "8": (64, 128), "11": (128, 256), "14": (256, 512)}
        up = {"20": (512, 256), "23": (256, 128), "26": (128, 64), "29": (64, 32), "32": (32, 16)}
        super().__init__({name: conv(*widths) for name, widths in (down | {"17": (512, 512)} | up).items()})

    def forward(self, frames: Tensor) -> Tensor:
        """[B, 16, H, W] from both frames, [B, 6, H, W]."""
        x, skips = F.relu(self["0"](frames)), []
        for name in ("2", "5", "8", "11", "14"):
            skips.append(F.relu(self[name](x)))
            x = F.max_pool2d(skips[-1], 2)
        x = F.relu(self["17"](x))
        for name in ("20", "23", "26", "29", "32"):
            x = F.relu(self[name](upsample2(x) + skips.pop()))
        return x


class DilatedBlock(nn.Module):
    """ReLU(x + conv2(ReLU(conv1(x)))), without biases, the first one dilated."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + x)


class ContextNet(nn.Module):
    """The picture itself and three maps of features, 195 channels together."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 64, 7, padding=3, bias=False), nn.ReLU())
        self.block2 = DilatedBlock(64, 4)
        self.block3 = DilatedBlock(64, 8)

    def forward(self, image: Tensor) -> Tensor:
        first = self.block1(image)
        second = self.block2(first)
        return torch.cat((image, first, second, self.block3(second)), 1)


class RectifyNet(nn.Module):
    """What is added to the blend of the two warped frames."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(conv(437, 128, 7), nn.ReLU())
        self.block2 = DilatedBlock(128)
        self.block3 = DilatedBlock(128)
        self.block4 = DilatedBlock(128)
        self.block5 = nn.Sequential(conv(128, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.block5(self.block4(self.block3(self.block2(self.block1(x)))))


def _published_flow_names() -> dict[str, str]:
    """Names of ``PWCNet``'s layers and what DAIN's files call them."""
    names = {}
    for level, number in enumerate(NUMBERS, 1):
        order = ("aa", "a", "b") if level == len(NUMBERS) else ("a", "aa", "b")
        for index, letters in zip((0, 2, 4), order, strict=True):
            names[f"moduleExtractor.module{number}.{index}"] = f"conv{level}{letters}.0"
    for level in range(2, len(WIDTHS) + 1):
        decoder = f"module{NUMBERS[level - 1]}"
        for index in range(len(GROWTH)):
            names[f"{decoder}.module{NUMBERS[index]}.0"] = f"conv{level}_{index}.0"
        names[f"{decoder}.moduleSix.0"] = f"predict_flow{level}"
        if level < len(WIDTHS):
            names[f"{decoder}.moduleUpflow"] = f"deconv{level + 1}"
            names[f"{decoder}.moduleUpfeat"] = f"upfeat{level + 1}"
    for index in range(6):
        names[f"moduleRefiner.moduleMain.{2 * index}"] = f"dc_conv{index + 1}.0"
    return names | {"moduleRefiner.moduleMain.12": "dc_conv7", "deconv2": "deconv2"}


class DAINFlow(PWCNet):
    """PWC-Net under DAIN's names, with a layer that the files hold and nothing runs."""

    names = _published_flow_names()

    def __init__(self) -> None:
        super().__init__(least=0.9999)
        self.deconv2 = nn.ConvTranspose2d(2, 2, 4, 2, 1)
        self.register_state_dict_post_hook(_to_published_names)
        self.register_load_state_dict_pre_hook(_from_published_names)


def _to_published_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    _rename(state, prefix, DAINFlow.names)


def _from_published_names(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: object
) -> None:
    _rename(state, prefix, {published: name for name, published in DAINFlow.names.items()})


def _rename(state: dict[str, Any], prefix: str, names: Mapping[str, str]) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        layer, _, kind = key.removeprefix(prefix).rpartition(".")
        if layer in names:
            state[f"{prefix}{names[layer]}.{kind}"] = state.pop(key)


class Maps(NamedTuple):
    """Found for one frame [B, C, H, W]: flow features, log depth [B, 1, H, W], context [B, 195, H, W]."""

    flow: list[Tensor]
    depth: Tensor
    context: Tensor


class Scene(NamedTuple):
    """Found for a pair, of the first and the second frame each. flows: to the other frame, [B, 2, H/4, W/4], in pixels
    of the full size. depths: logarithms. context: [B, 196, H, W], the depth included. kernels: [B, 16, H, W]."""

    frames: tuple[Tensor, Tensor]
    flows: tuple[Tensor, Tensor]
    depths: tuple[Tensor, Tensor]
    context: tuple[Tensor, Tensor]
    kernels: tuple[Tensor, Tensor]


class Synthesis(NamedTuple):
    """Found for a time: flows [B, 2, H, W] from it to the two frames, these read there, their blend, the picture."""

    projected: tuple[Tensor, Tensor]
    warped: tuple[Tensor, Tensor]
    blend: Tensor
    rgb: Tensor


class DAIN(Interpolator):
    """Frames whose sides are multiples of 64 run as they are, others padded as the published programs do."""

    label = "DAIN"
    remembered = 2

    def __init__(self) -> None:
        super().__init__()
        self.initScaleNets_filter = KernelNet()
        self.initScaleNets_filter1 = nn.Sequential(conv(16, 16), nn.ReLU(), conv(16, 16))
        self.initScaleNets_filter2 = nn.Sequential(conv(16, 16), nn.ReLU(), conv(16, 16))
        self.ctxNet = ContextNet()
        self.rectifyNet = RectifyNet()
        self.flownets = DAINFlow()
        self.depthNet = Hourglass()

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        if height % SIDES == 0 and width % SIDES == 0:
            return 0, 0, 0, 0
        more = [-side % PADDED or PADDED // 2 for side in (width, height)]
        (left, right), (top, bottom) = ((pixels // 2, pixels - pixels // 2) for pixels in more)
        return left, right, top, bottom

    def prepare(self, frames: Tensor, call: Call) -> Scene:
        first, second = (call(self.maps, frame) for frame in frames.unbind(1))
        flows = self.flownets.flow(first.flow, second.flow), self.flownets.flow(second.flow, first.flow)
        hidden = self.initScaleNets_filter(frames.flatten(1, 2))
        return Scene(
            (frames[:, 0], frames[:, 1]),
            (UNIT * flows[0], UNIT * flows[1]),
            (first.depth, second.depth),
            (torch.cat((first.context, first.depth), 1), torch.cat((second.context, second.depth), 1)),
            (self.initScaleNets_filter1(hidden), self.initScaleNets_filter2(hidden)),
        )

    def maps(self, frame: Tensor) -> Maps:
        """What is found for one frame alone: a clip's neighbouring pairs share it."""
        return Maps(self.flownets.features(frame), self.depthNet(frame), self.ctxNet(frame))

    def render(self, prepared: Scene, t: Tensor) -> Tensor:
        return self.frame(prepared, t).rgb

    def frame(self, scene: Scene, t: Tensor) -> Synthesis:
        """Everything that is found for a time t, float64 [B, 1, 1, 1], in (0, 1)."""
        dtype = scene.frames[0].dtype
        shares = t.to(dtype), (1 - t).to(dtype)
        flows, pictures, context = [], [], []
        for n in (0, 1):
            flow = F.interpolate(shares[n] * scene.flows[n], scale_factor=4, mode="bilinear", align_corners=False)
            flows.append(project(flow, 1e-6 + 1 / scene.depths[n].exp()))
            both = torch.cat((scene.frames[n], scene.context[n]), 1)
            picture, features = adaptive_warp(both, flows[n], scene.kernels[n]).split((3, both.shape[1] - 3), 1)
            pictures.append(picture)
            context.append(features)
        blend = shares[1] * pictures[0] + shares[0] * pictures[1]
        everything = torch.cat((blend, *pictures, *flows, *scene.kernels, *context), 1)
        rgb = blend + self.rectifyNet(everything.to(dtype))  # projected flows are float32
        return Synthesis((flows[0], flows[1]), (pictures[0], pictures[1]), blend, rgb)


def project(flow: Tensor, weight: Tensor) -> Tensor:
    """The flow moved to where it points, and turned round.

    Args:
        flow: [B, 2, H, W].
        weight: [B, 1, H, W], of each pixel of the frame; where several arrive, the mean is taken with it.

    Returns:
        [B, 2, H, W]. Where nothing arrives, the mean of the nearest places in the four directions.
    """
    H, W = flow.shape[-2:]
    x, y = sampling_positions(flow).unbind(1)
    inside = ((x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1))[:, None]
    values = torch.where(inside, torch.cat((-weight * flow, weight), 1).float(), 0)
    left, top = x.floor().long(), y.floor().long()
    total = torch.zeros_like(values)
    for column, row in itertools.product((left, (left + 1).clamp(max=W - 1)), (top, (top + 1).clamp(max=H - 1))):
        total += splat(values, column, row)
    sums, weights = total[:, :2], total[:, 2:]
    return fill_holes(torch.where(weights > 0, sums / weights, 0), weights > 0)


def fill_holes(flow: Tensor, known: Tensor) -> Tensor:
    """Unknown places become the mean of the nearest known ones at left, right, above and below, as far as there are.

    Args:
        flow: [B, 2, H, W], zero where unknown.
        known: bool [B, 1, H, W].

    Returns:
        [B, 2, H, W], zero where no known place lies in any direction.
    """
    total, count = torch.zeros_like(flow), torch.zeros_like(flow[:, :1])
    for axis in (-1, -2):
        for reverse in (False, True):
            values, here = (x.flip(axis) if reverse else x for x in (flow, known))
            shape = [1] * values.ndim
            shape[axis] = values.shape[axis]
            number = torch.arange(values.shape[axis], device=flow.device).view(shape)
            last = torch.where(here, number, -1).cummax(axis).values
            nearest = values.gather(axis, last.clamp(min=0).expand_as(values)) * (last >= 0)
            total += nearest.flip(axis) if reverse else nearest
            count += (last >= 0).flip(axis) if reverse else last >= 0
    return torch.where(known, flow, total / count.clamp(min=1))


def adaptive_warp(image: Tensor, flow: Tensor, kernels: Tensor) -> Tensor:
    """Each pixel filtered, with its own kernel, around the place where its flow points.

    Args:
        image: [B, C, H, W].
        flow: [B, 2, H, W], in pixels.
        kernels: [B, 16, H, W], row by row. The bilinear weights of the place are spread over a quarter of it each.

    Returns:
        [B, C, H, W]; the image itself where the flow leaves it, or is as long as half of it.
    """
    B, C, H, W = image.shape
    x, y = sampling_positions(flow).unbind(1)
    u, v = flow.unbind(1)
    valid = (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1) & (u.abs() < W / 2) & (v.abs() < H / 2)
    left, top = x.floor(), y.floor()
    across, down = (x - left).to(image.dtype), (y - top).to(image.dtype)
    left, top = (torch.where(valid, corner, 0).long() for corner in (left, top))
    pixels = image.movedim(1, -1).reshape(-1, C)
    start = torch.arange(B, device=image.device).view(-1, 1, 1) * (H * W)
    total = torch.zeros_like(pixels)
    for row, column in itertools.product(range(TAPS), range(TAPS)):
        weight = (1 - down if row < TAPS // 2 else down) * (1 - across if column < TAPS // 2 else across)
        index = start + (top - 1 + row).clamp(0, H - 1) * W + (left - 1 + column).clamp(0, W - 1)
        weight = weight * kernels[:, TAPS * row + column]
        total.addcmul_(pixels[index.flatten()], weight.reshape(-1, 1))
    return torch.where(valid[:, None], total.view(B, H, W, C).movedim(-1, 1), image)


def published_parameters(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Newer versions of PyTorch add counters to normalisations, which nothing reads."""
    return {name: value for name, value in content.items() if not name.endswith(".num_batches_tracked")}
