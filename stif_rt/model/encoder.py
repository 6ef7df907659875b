"""The encoder: Zooming SlowMo (CVPR 2020) without its head. Two frames in, three 64-channel feature maps out.

Layer names are those of published checkpoints.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stif_rt.model.config import CHANNELS, MULTIPLE, Config
from stif_rt.ops.deform_conv import TAPS, deform_conv2d

DEFORMABLE_GROUPS = 8
OFFSETS = 2 * TAPS * DEFORMABLE_GROUPS

Pyramid = tuple[Tensor, Tensor, Tensor]
"""Feature maps at full, half and quarter size: [B, 64, h, w], [B, 64, h/2, w/2], [B, 64, h/4, w/4]."""
Source = tuple[Tensor | None, Tensor, Tensor]
"""A pyramid whose full-resolution level is None where it is all zeros, as in the recurrence's first state. What follows
from those zeros alone is not computed."""


class Features(NamedTuple):
    """The result of an encoder: maps of three times, and the velocity that they were aligned by.

    maps: [B, 3, 64, h / s, w / s], of t = 0, 1/2 and 1, at the configuration's ``feature_stride`` s.
    velocity: float32 [B, 2, h / s, w / s], x first, in pixels of the frames: the displacement from the first frame to
    the second of what lies there midway. None for a configuration without ``motion``.
    """

    maps: Tensor
    velocity: Tensor | None = None

    def cropped(self, size: tuple[int, int], stride: int) -> "Features":
        """Without what belongs to the padding of frames of that size (h, w)."""
        h, w = (-(-pixels // stride) for pixels in size)
        return self.map(lambda x: x[..., :h, :w])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Features":
        """The same with each tensor replaced by what the function makes of it."""
        return Features(function(self.maps), None if self.velocity is None else function(self.velocity))

    def to(self, target: torch.device | torch.dtype | str) -> "Features":
        """Moved, or converted: the velocity stays float32."""
        velocity = self.velocity
        if velocity is not None and not isinstance(target, torch.dtype):
            velocity = velocity.to(target)
        return Features(self.maps.to(target), velocity)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of its input, or divides it by ``stride``. kernel: a side of it, odd."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def leaky(x: Tensor) -> Tensor:
    """In place: x is always a convolution's output, which nothing else reads."""
    return F.leaky_relu_(x, 0.1)


def conv_leaky(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """leaky(layer(x)), in one pass over memory where the library does that."""
    return _fused(layer, x, "leaky_relu", [0.1]) if _fuses(x) else leaky(layer(x))


def conv_relu(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """ReLU(layer(x)), likewise."""
    return _fused(layer, x, "relu", []) if _fuses(x) else F.relu_(layer(x))


def conv_add(layer: nn.Conv2d, x: Tensor, other: Tensor) -> Tensor:
    """layer(x) + other, likewise."""
    if not _fuses(x) or other.dtype != x.dtype:
        return layer(x).add_(other)
    geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
    convolve = torch.ops.mkldnn._convolution_pointwise.binary
    return convolve(x, other, layer.weight, layer.bias, *geometry, "add", 1.0, None, [], None)


def _fused(layer: nn.Conv2d, x: Tensor, activation: str, numbers: list[float]) -> Tensor:
    geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
    return torch.ops.mkldnn._convolution_pointwise(x, layer.weight, layer.bias, *geometry, activation, numbers, "")


def _fuses(x: Tensor) -> bool:
    """Whether oneDNN's fused convolution, which ``torch.compile`` uses too, takes x. It has no gradient and cannot be
    exported, so it is used in inference mode only."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return False  # is_compiling() comes first: asking for the inference mode breaks a graph
    operations = torch.ops.mkldnn
    if not torch.backends.mkldnn.enabled or not hasattr(operations, "_convolution_pointwise"):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and operations._is_mkldnn_bf16_supported())


def upsample2(x: Tensor) -> Tensor:
    """[B, C, h, w] enlarged to [B, C, 2h, 2w] bilinearly."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def stack_times(maps: list[Tensor]) -> Tensor:
    """Maps [B, C, h, w] of several times as [B, times, C, h, w], each channels last still if they are."""
    if not all(x.is_contiguous(memory_format=torch.channels_last) for x in maps):
        return torch.stack(maps, 1)
    return torch.stack([x.movedim(1, -1) for x in maps], 1).movedim(-1, 2)


class ResidualBlock(nn.Module):
    """x + conv2(ReLU(conv1(x)))."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels)
        self.conv2 = conv(channels, channels)
        for layer in (self.conv1, self.conv2):
            nn.init.normal_(layer.weight, std=0.1 * math.sqrt(2 / (9 * channels)))
            nn.init.constant_(cast(Tensor, layer.bias), 0)

    def forward(self, x: Tensor) -> Tensor:
        """x, and the result: [B, C, h, w]."""
        return conv_add(self.conv2, conv_relu(self.conv1, x), x)


class DeformableConv(nn.Module):
    """Modulated deformable convolution of x, whose offsets and modulation are predicted from another map."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.conv_offset_mask = conv(channels, OFFSETS + OFFSETS // 2)
        nn.init.uniform_(self.weight, -1 / math.sqrt(9 * channels), 1 / math.sqrt(9 * channels))
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.constant_(cast(Tensor, self.conv_offset_mask.bias), 0)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """x, guide, and the result: [B, C, h, w]. Offsets and modulation come from ``guide``."""
        offset, mask = self.conv_offset_mask(guide).split((OFFSETS, OFFSETS // 2), 1)
        return deform_conv2d(x, offset, mask.sigmoid(), self.weight, self.bias)


class PyramidConvs(nn.Module):
    """The four convolutions of a feature pyramid. A base class, because published names keep them flat."""

    def __init__(self) -> None:
        super().__init__()
        self.fea_L2_conv1 = conv(CHANNELS, CHANNELS, stride=2)
        self.fea_L2_conv2 = conv(CHANNELS, CHANNELS)
        self.fea_L3_conv1 = conv(CHANNELS, CHANNELS, stride=2)
        self.fea_L3_conv2 = conv(CHANNELS, CHANNELS)

    def pyramid(self, level1: Tensor) -> Pyramid:
        """The pyramid of a map [B, 64, h, w], whose sides are multiples of 4."""
        level2 = conv_leaky(self.fea_L2_conv2, conv_leaky(self.fea_L2_conv1, level1))
        level3 = conv_leaky(self.fea_L3_conv2, conv_leaky(self.fea_L3_conv1, level2))
        return level1, level2, level3


class Alignment(nn.Module):
    """Aligns two pyramids to the time between them, each with its own weights: ``_1`` first to second, ``_2`` back."""

    def __init__(self) -> None:
        super().__init__()
        for side in "12":
            for level in "321":
                self.add_module(f"L{level}_offset_conv1_{side}", conv(2 * CHANNELS, CHANNELS))
                if level == "3":
                    self.add_module(f"L3_offset_conv2_{side}", conv(CHANNELS, CHANNELS))
                else:
                    self.add_module(f"L{level}_offset_conv2_{side}", conv(2 * CHANNELS, CHANNELS))
                    self.add_module(f"L{level}_offset_conv3_{side}", conv(CHANNELS, CHANNELS))
                    self.add_module(f"L{level}_fea_conv_{side}", conv(2 * CHANNELS, CHANNELS))
                self.add_module(f"L{level}_dcnpack_{side}", DeformableConv())

    def one_side(self, source: Source, other: Source, side: str) -> Tensor:
        """Coarse to fine: at each level the offset feature (doubled) and the aligned feature of the level above."""

        def layer(name: str) -> Any:
            return self.get_submodule(f"{name}_{side}")

        def both(name: str, x: Tensor, y: Tensor | None, activate: bool = True) -> Tensor:
            """The convolution of x and y, one after the other; of x alone where y is zero."""
            convolution = layer(name)
            if y is None:
                out = F.conv2d(x, convolution.weight[:, :CHANNELS], convolution.bias, padding=1)
                return leaky(out) if activate else out
            x = torch.cat((x, y), 1)
            return conv_leaky(convolution, x) if activate else convolution(x)

        offset = conv_leaky(layer("L3_offset_conv2"), both("L3_offset_conv1", source[2], other[2]))
        aligned = leaky(layer("L3_dcnpack")(source[2], offset))
        for level in (2, 1):
            coarse, x, y = offset, source[level - 1], other[level - 1]
            up = upsample2(aligned)
            if x is None:  # deforming a map of zeros gives the bias alone
                deformed = layer(f"L{level}_dcnpack").bias.view(1, -1, 1, 1).expand_as(up)
            else:
                offset = both(f"L{level}_offset_conv1", x, y)
                offset = both(f"L{level}_offset_conv2", offset, 2 * upsample2(coarse))
                offset = conv_leaky(layer(f"L{level}_offset_conv3"), offset)
                deformed = layer(f"L{level}_dcnpack")(x, offset)
            aligned = both(f"L{level}_fea_conv", deformed, up, activate=level == 2)
        return aligned

    def forward(self, first: Source, second: Source) -> Tensor:
        """[B, 128, h, w]: the first pyramid aligned, then the second."""
        return torch.cat((self.one_side(first, second, "1"), self.one_side(second, first, "2")), 1)


class StateAlignment(PyramidConvs):
    """Aligns a recurrent state with the current input."""

    def __init__(self) -> None:
        super().__init__()
        self.pcd_align = Alignment()
        self.fusion = conv(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor, state: Tensor | None) -> Tensor:
        """x, state: [B, 64, h, w]. A state of None is one of zeros."""
        if state is None:
            _, level2, level3 = self.pyramid(torch.zeros_like(x))
            return self.fusion(self.pcd_align(self.pyramid(x), (None, level2, level3)))
        return self.fusion(self.pcd_align(self.pyramid(x), self.pyramid(state)))


class Gates(nn.Module):
    """The convolution that gives the gates of a ConvLSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2 * CHANNELS, 4 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """The four gates before their activations, [B, 256, h, w], of input and state together, [B, 128, h, w]."""
        return self.conv(x)


class DeformableConvLSTM(nn.Module):
    """ConvLSTM whose hidden and cell states are aligned with the input before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.pcd_h = StateAlignment()
        self.pcd_c = StateAlignment()
        self.cell_list = nn.ModuleList((Gates(),))

    def forward(self, sequence: list[Tensor]) -> list[Tensor]:
        """The hidden states after each of a sequence of inputs; all are [B, 64, h, w]."""
        hidden = cell = None
        outputs = []
        for x in sequence:
            hidden, cell = self.pcd_h(x, hidden), self.pcd_c(x, cell)
            gates = self.cell_list[0](torch.cat((x, hidden), 1))
            i, f, o, g = gates.chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return outputs


class BidirectionalLSTM(nn.Module):
    """One cell run over the sequence forwards and backwards; a 1x1 convolution merges the two."""

    def __init__(self) -> None:
        super().__init__()
        self.forward_net = DeformableConvLSTM()
        self.conv_1x1 = conv(2 * CHANNELS, CHANNELS, 1)

    def forward(self, sequence: list[Tensor]) -> list[Tensor]:
        # the directions share their weights: one batch
        """Both directions' hidden states merged, for each of a sequence of inputs; all are [B, 64, h, w]."""
        both = self.forward_net([torch.cat(pair) for pair in zip(sequence, sequence[::-1], strict=True)])
        forward, backward = zip(*(states.unflatten(0, (2, -1)).unbind() for states in both), strict=True)
        return [self.conv_1x1(torch.cat(pair, 1)) for pair in zip(forward, backward[::-1], strict=True)]


class Encoder(PyramidConvs):
    """Frames to features. See the module's docstring for the origin of the names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.conv_first = conv(3, CHANNELS)
        self.feature_extraction = nn.Sequential(*(ResidualBlock() for _ in range(config.front_blocks)))
        self.pcd_align = Alignment()
        self.fusion = conv(2 * CHANNELS, CHANNELS, 1)
        if config.recurrent:
            self.ConvBLSTM = BidirectionalLSTM()
        self.recon_trunk = nn.Sequential(*(ResidualBlock() for _ in range(config.back_blocks)))
        if config.upsampling_head:
            self.upconv1 = conv(CHANNELS, 4 * CHANNELS)
            self.upconv2 = conv(CHANNELS, 4 * CHANNELS)
            self.HRconv = conv(CHANNELS, CHANNELS)
            self.conv_last = conv(CHANNELS, 3)
        self.recurrent = config.recurrent

    def forward(self, frames: Tensor, velocity: Tensor | None = None) -> Features:
        """Features of a sequence of frames and of the times midway between neighbours.

        frames: [B, N, 3, h, w], RGB in [0, 1], N >= 2 (2 for STIF), h and w multiples of 4.
        Maps are [B, 2N - 1, 64, h, w] in time order. Raises ValueError for other shapes, and for a velocity, which this
        encoder does not use.
        """
        check_frames(frames, MULTIPLE)
        B, N = frames.shape[:2]
        levels = self.extract(frames.flatten(0, 1))
        split = [level.unflatten(0, (B, N)).unbind(1) for level in levels]
        return self.merge([(split[0][n], split[1][n], split[2][n]) for n in range(N)], velocity)

    def extract(self, frames: Tensor, matching: bool = True) -> Pyramid:
        """The part that knows one frame at a time: pyramids of frames [B, 3, h, w] of any dtype.

        matching: as of the compact encoder; without an effect here.
        """
        frames = frames.to(self.conv_first.weight.dtype)
        return self.pyramid(self.feature_extraction(conv_leaky(self.conv_first, frames)))

    def merge(self, pyramids: list[Pyramid], velocity: Tensor | None = None) -> Features:
        """The part that knows neighbours: from the pyramids of N frames."""
        if velocity is not None:
            raise ValueError("this network aligns the frames by itself and takes no velocity")
        sequence = [pyramids[0][0]]
        for before, after in itertools.pairwise(pyramids):
            sequence += [self.fusion(self.pcd_align(before, after)), after[0]]
        if self.recurrent:
            sequence = self.ConvBLSTM(sequence)
        maps = stack_times(sequence)
        trunk = self.recon_trunk(maps.flatten(0, 1)).unflatten(0, (sequence[0].shape[0], len(sequence)))
        return Features(trunk)


def check_frames(frames: Tensor, multiple: int) -> None:
    """Raises ValueError for what no encoder takes. multiple: of the sides."""
    if frames.ndim != 5 or frames.shape[1] < 2 or frames.shape[2] != 3:
        raise ValueError(f"frames must be [B, N >= 2, 3, h, w], not {list(frames.shape)}")
    h, w = frames.shape[-2:]
    if h % multiple or w % multiple:
        raise ValueError(f"height and width must be multiples of {multiple}, not {h}x{w}: pad the frames first")
