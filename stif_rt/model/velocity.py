"""The velocity head: finds one velocity field for a pair of frames, coarse to fine.

v is the displacement from the first frame to the second, on the grid of the middle: a point that is at X midway is at
X + (t - 1/2) v(X) at time t. Each level of a pyramid improves the estimate of the level above. The coarse ones first
try whole cells around it: what is small and fast is lost above, and the rest finds what is near only. Then come
Gauss-Newton steps on normalised match maps (the method of Lucas and Kanade), which work untrained, and a small network,
which learns where those fail. Standard operations only: no deformable convolution, nothing that ONNX does not have.
"""

import itertools
import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stif_rt.model.config import HEAD_STRIDE, LEVELS
from stif_rt.model.encoder import conv_add
from stif_rt.ops.matching import OFFERED, choose, evidence, gauss_newton, normalise, prelu, smooth, warp_both

SEEN, CONTEXT, HIDDEN = 16, 32, 48
"""Channels of each frame that the small networks see, that one level hands to the next, and of their layers."""
PREFERENCE = tuple(3.0 if n in (4, 13) else 0.0 for n in range(OFFERED))
"""Untrained, it takes the cell itself, which is among both sets of neighbours."""
SEARCHED = 2
"""The finest level that tries whole cells."""
REACH = 3
"""Cells that a search goes along each axis."""
CELLS = [(x, y) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
"""What a search adds to the start."""
FARTHER = 0.03
"""By how much a velocity of a search must match better than another for each cell that it is farther from the start."""
LARGEST_DIFFERENCE = 3.0
"""Largest difference of normalised match maps that counts; more is no more evidence."""
VISIBLE = 0.2
"""Difference at rest below which less and less moves: where both frames agree, nothing does."""
GAIN = 1.9
"""Variance that a convolution's output starts with, for inputs of 1."""


class Level(NamedTuple):
    """width: channels of the pyramid. match: learned channels that are matched, beside the three colours.
    iterations: of Gauss-Newton. gains: initial weights of the colours and of the learned channels."""

    width: int
    match: int
    iterations: int
    gains: tuple[float, float]


PYRAMID = (
    Level(32, 8, 2, (2.0, 1.0)),
    Level(48, 16, 2, (2.0, 1.0)),
    Level(64, 16, 2, (2.0, 1.0)),
    Level(64, 16, 2, (3.0, 0.5)),
    Level(64, 16, 3, (3.0, 0.5)),
)
"""From the finest, whose cell is HEAD_STRIDE pixels wide, to the coarsest; each is half the size of the one before."""
assert len(PYRAMID) == LEVELS

Matches = tuple[Tensor, ...]
"""What each level matches of one frame: colours, learned channels, context; float32 [B, 3 + match + 16, h, w] each."""


class Velocities(NamedTuple):
    """velocity: float32 [B, 2, h, w], x first, in pixels of the frames, on the finest grid. levels: what every level
    found, coarse to fine, after Gauss-Newton and after the network, on its own grid in the same unit; for training."""

    velocity: Tensor
    levels: tuple[Tensor, ...]


class VelocityHead(nn.Module):
    """Frames to velocity, by way of one pyramid for each frame.

    Its sides must be multiples of ``Config.multiple``. The matching and what it finds are float32 whatever the dtype of
    the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        first = PYRAMID[0].width
        levels = [nn.Sequential(_conv(3 * HEAD_STRIDE**2, first), PReLU(first), Block(first))]
        for finer, coarser in itertools.pairwise(level.width for level in PYRAMID):
            levels.append(nn.Sequential(_conv(finer, coarser, 4, 2), PReLU(coarser), Block(coarser)))
        self.pyramid = nn.ModuleList(levels)
        self.decision, self.preference = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(1.0))
        self.steps = nn.ModuleList(Step(level) for level in PYRAMID)
        # copied to the device with the weights: to copy it in every call would make the host wait for a GPU
        self.register_buffer("cells", torch.tensor(CELLS, dtype=torch.float32, device="cpu"), persistent=False)

    def finest(self, frames: Tensor) -> Tensor:
        """The pyramid's finest map, [B, 32, h/2, w/2], of frames [B, 3, h, w], RGB in [0, 1]."""
        weight = cast(nn.Conv2d, self.steps[0].project).weight
        x: Tensor = self.pyramid[0](F.pixel_unshuffle((4 * frames - 2).to(weight.dtype), HEAD_STRIDE))
        return x

    def extract(self, frames: Tensor) -> tuple[Tensor, Matches]:
        """The part that knows one frame at a time: the finest map, and what is matched."""
        x = finest = self.finest(frames)
        colours = frames.float()
        matches = []
        for number, (level, step) in enumerate(zip(self.pyramid, self.steps, strict=True)):
            x = level(x) if number else finest
            colours = F.avg_pool2d(colours, 2 if number else HEAD_STRIDE)  # of the level before
            matches.append(torch.cat((colours, cast(Step, step).project(x).float()), 1))
        return finest, tuple(matches)

    def forward(self, first: Matches, second: Matches) -> Velocities:
        v = pair = first[-1]
        context = pair.new_zeros(pair.shape[0], CONTEXT, *pair.shape[-2:])
        levels = []
        for number in reversed(range(LEVELS)):
            pair = normalise(first[number], second[number])
            if number == LEVELS - 1:
                v = context.new_zeros(pair.shape[1], 2, *pair.shape[-2:])
            else:
                v, context = resize(2 * v, 2), resize(context, 2)
            if number >= SEARCHED:
                v = search(pair[:, :, : 3 + PYRAMID[number].match], v, cast(Tensor, self.cells).float())
            before, v, context = self.steps[number](pair, v, context)
            levels += [before * (HEAD_STRIDE << number), v * (HEAD_STRIDE << number)]
        levels[-1] = levels[-1] * self._motion_share(pair[:, :, :3], v)
        return Velocities(levels[-1], tuple(levels))

    def _motion_share(self, colours: Tensor, v: Tensor) -> Tensor:
        """How much the velocity explains better than rest would, from 0 to 1, [B, 1, h, w].

        What stands still beside something fast is drawn along otherwise: Gauss-Newton sees a neighbourhood. colours:
        normalised, of both frames, [2, B, 3, h, w].
        """
        moved, still = _difference(*warp_both(colours, v)), _difference(*colours.unbind())
        weight = torch.sigmoid(self.decision.float() * (still - moved) + self.preference.float())
        return weight * (still / VISIBLE).clamp(max=1)


class PReLU(nn.PReLU):
    """Of a convolution's output, which nothing else reads: it may be overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        return prelu(x, self.weight)


class Block(nn.Module):
    """x + conv(PReLU(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = _conv(width, width)
        nn.init.normal_(last.weight, std=0.3 * math.sqrt(GAIN / last.weight[0].numel()))
        self.body = nn.Sequential(_conv(width, width), PReLU(width), last)

    def forward(self, x: Tensor) -> Tensor:
        first, activation, last = self.body
        return conv_add(cast(nn.Conv2d, last), activation(first(x)), x)


class Step(nn.Module):
    """One level: Gauss-Newton, then a small network. Velocities in cells of the level."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.match, self.iterations = level.match, level.iterations
        self.project = _conv(level.width, level.match + SEEN, 1)
        self.damping = nn.Parameter(torch.tensor(-3.5))  # logarithms, both
        self.tolerance = nn.Parameter(torch.tensor(-0.5))
        colours, learned = level.gains
        self.gain = nn.Parameter(torch.tensor((*(colours,) * 3, *(learned,) * level.match)).view(-1, 1, 1))
        self.body = nn.Sequential(
            _conv(2 * SEEN + 8 + CONTEXT, HIDDEN), PReLU(HIDDEN),
            _conv(HIDDEN, HIDDEN), PReLU(HIDDEN),
            _conv(HIDDEN, CONTEXT), PReLU(CONTEXT),
        )  # fmt: skip
        self.register_buffer("offered", torch.tensor(PREFERENCE, device="cpu").view(1, -1, 1, 1), persistent=False)
        self.out = _conv(CONTEXT, 2 + OFFERED)  # a correction, and how much of each velocity that is offered
        nn.init.zeros_(self.out.weight)

    def forward(self, pair: Tensor, start: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pair: the level's ``Matches`` of both frames, normalised, [2, B, C, h, w]. start: [B, 2, h, w]. context:
        [B, 32, h, w].

        Returns the velocity after Gauss-Newton, the velocity and the context.
        """
        gain, damping, tolerance = self.gain.float(), self.damping.float().exp(), self.tolerance.float().exp()
        v, step, matrix = gauss_newton(pair[:, :, : len(gain)], start, gain, damping, tolerance, self.iterations)
        seen = evidence(pair[:, :, 3:], self.match, v, step, matrix, context, self.out.weight.dtype)
        context = self.body(seen)
        chosen = choose(self.out(context), cast(Tensor, self.offered).float(), v, start)
        return v, chosen, context.float()


def search(pair: Tensor, start: Tensor, cells: Tensor) -> Tensor:
    """The velocity, start and up to REACH whole cells along each axis, by which both frames' maps differ least around a
    cell.

    pair: [2, B, C, h, w]. start: [B, 2, h, w], x first, in cells. cells: CELLS, float32 [N, 2]. Returns [B, 2, h, w].
    No gradient passes.
    """
    margin = (REACH + 1) // 2
    padded = [F.pad(maps, (margin,) * 4, mode="replicate") for maps in warp_both(pair, start)]
    # of each frame, [y odd][x odd]: what lies on the cells, and half a cell farther, as a bilinear read sees it
    halves = [[[F.avg_pool2d(maps, (1 + y, 1 + x), 1) for x in (0, 1)] for y in (0, 1)] for maps in padded]

    def along(n: int) -> slice:
        """From every cell to n half cells away. It ends at a constant, which exporters take quickly."""
        return slice(margin + n // 2, (n // 2 + n % 2 - margin) or None)

    reach = range(-REACH, REACH + 1)
    rows = []
    for y in reach:  # one row of velocities at a time: fewer operations than one by one, less memory than all at once
        firsts, seconds = (
            [maps[..., along(end), :] for maps in halves[frame][y % 2]] for frame, end in ((0, -y), (1, y))
        )
        first = torch.cat([firsts[x % 2][..., along(-x)] for x in reach])  # [2 REACH + 1, B] as one axis
        second = torch.cat([seconds[x % 2][..., along(x)] for x in reach])
        rows.append((first - second).abs().mean(1))
    difference = torch.cat(rows).unflatten(0, (len(CELLS), -1))  # [N, B, h, w]
    difference = _over_neighbours(difference) + FARTHER * cells.norm(dim=1).view(-1, 1, 1, 1)
    return start + cells[difference.argmin(0)].movedim(-1, 1)


def resize(maps: Tensor, factor: int) -> Tensor:
    """Enlarged bilinearly by a whole factor."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False) if factor > 1 else maps


def _difference(first: Tensor, second: Tensor) -> Tensor:
    """How much normalised match maps [B, C, h, w] differ around each cell, [B, 1, h, w]."""
    return _over_neighbours((first - second).abs().mean(1, keepdim=True))


def _over_neighbours(difference: Tensor) -> Tensor:
    """Differences of cells [.., h, w], limited so that none outweighs all others, as means over the cells around."""
    return smooth(smooth(smooth(difference.clamp(max=LARGEST_DIFFERENCE))))


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Started so that the signal keeps its size: PyTorch's own start shrinks it by a factor of 2 to 3 a layer."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2)
    nn.init.normal_(layer.weight, std=math.sqrt(GAIN / layer.weight[0].numel()))
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer
