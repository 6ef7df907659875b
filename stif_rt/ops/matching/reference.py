"""The velocity head's operations in PyTorch's own: the definition, and what training and exports are made of.

Maps are [B, C, h, w]; of a pair of frames [2, B, C, h, w]. Flows and velocities are float32 [B, 2, h, w], x first, in
cells of the map. Both frames are compared as they are midway: the first read at x - v / 2, the second at x + v / 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

is_exporting = getattr(torch.compiler, "is_exporting", bool)
"""Whether a graph is being made, in which few large operations are better. Older PyTorch than 2.7 cannot export."""
NEIGHBOURHOOD = 17
"""Cells along each side over which match maps are normalised; one more than a power of two."""
SMALLEST_VARIANCE = 1e-4
"""Variance below which a match map holds noise, so that it is normalised by this instead."""
LARGEST_STEP = 1.5
"""Cells by which one Gauss-Newton step moves at most."""
OFFERED = 2 * 9 + 1
"""Velocities of which a network mixes its own: 3x3 neighbours one and three cells apart, and the one before."""


def warp(maps: Tensor, flow: Tensor) -> Tensor:
    """Bilinear reads at every cell moved by a flow; the border is repeated. Returns the maps' shape and dtype."""
    h, w = flow.shape[-2:]
    x = torch.arange(w, device=flow.device, dtype=torch.float32) + 0.5 + flow[:, 0]
    y = torch.arange(h, device=flow.device, dtype=torch.float32)[:, None] + 0.5 + flow[:, 1]
    position = torch.stack((x * (2 / w) - 1, y * (2 / h) - 1), -1)
    sampled = F.grid_sample(maps.float().contiguous(), position, padding_mode="border", align_corners=False)
    return sampled.to(maps.dtype)


def prelu(x: Tensor, slopes: Tensor) -> Tensor:
    """x where it is positive, else its channel's slope times x. slopes: [C]."""
    return F.prelu(x, slopes)


def normalise(first: Tensor, second: Tensor) -> Tensor:
    """Each channel of both frames' maps less its mean over both and a neighbourhood, over its deviation there, as a
    pair."""
    pair = torch.stack((first, second))
    mean, power = _around(pair.mean(0)), _around(pair.square().mean(0))
    return (pair - mean) / (power - mean.square() + SMALLEST_VARIANCE).clamp(min=SMALLEST_VARIANCE).sqrt()


def gauss_newton(
    pair: Tensor, v: Tensor, gain: Tensor, damping: Tensor, tolerance: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A velocity improved by the method of Lucas and Kanade.

    With r the difference of both frames midway, g its mean's gradient, and t = 1 / (1 + (|r| / tolerance)^2) + 1e-3,
    an iteration solves (<t g g'> / <t> + damping) step = <t g r> / <t>, <..> being sums over a neighbourhood and means
    over channels, and adds LARGEST_STEP tanh(step / LARGEST_STEP).

    Args:
        pair: what is matched, float32.
        v: where it starts.
        gain: [C, 1, 1], weights of the channels.
        damping: in the unit of the squared gradients.
        tolerance: mean difference at which trust has halved.
        iterations: at least one.

    Returns:
        The velocity; the last step [B, 2, h, w]; the matrix that it came from, xx, xy, yy, [B, 3, h, w].
    """
    pair = pair * gain
    step, matrix = torch.zeros_like(v), v.new_zeros(v.shape[0], 3, *v.shape[-2:])
    for _ in range(iterations):
        first, second = warp_both(pair, v)
        r, (gx, gy) = first - second, _gradient((first + second) / 2)
        trust = 1 / (1 + (r.abs().mean(1) / tolerance).square()) + 1e-3
        products = [(p * q).mean(1) * trust for p, q in ((gx, gx), (gx, gy), (gy, gy), (gx, r), (gy, r))]
        sums = smooth(smooth(torch.stack((*products, trust), 1)))
        means = sums[:, :5] / sums[:, 5:]
        xx, xy, yy, bx, by = means.unbind(1)
        matrix, xx, yy = means[:, :3], xx + damping, yy + damping
        step = torch.stack((yy * bx - xy * by, xx * by - xy * bx), 1) / (xx * yy - xy * xy)[:, None]
        v = v + LARGEST_STEP * torch.tanh(step / LARGEST_STEP)
    return v, step, matrix


def evidence(
    pair: Tensor, match: int, v: Tensor, step: Tensor, matrix: Tensor, context: Tensor, dtype: torch.dtype
) -> Tensor:
    """What a level's network sees: of both frames midway the channels that are not matched, Gauss-Newton's last step
    and matrix, the mean difference of what is matched, the velocity, and the context from the level above.

    pair: [2, B, match + S, h, w]. context: [B, K, h, w]. Returns [B, 2 S + 8 + K, h, w] in ``dtype``.
    """
    first, second = warp_both(pair, v)
    difference = (first - second)[:, :match].abs().mean(1, keepdim=True)
    seen = (first[:, match:], second[:, match:], step, matrix.clamp(-4, 4), difference, v / 4, context)
    return torch.cat(seen, 1).to(dtype)


def choose(scores: Tensor, preference: Tensor, v: Tensor, start: Tensor) -> Tensor:
    """The velocities around a cell and the one before, mixed by the softmax of their scores, and a correction.

    scores: [B, 2 + OFFERED, h, w], the correction before the scores. preference: float32 [1, OFFERED, 1, 1], added to
    them. v, start: velocities. Returns one.
    """
    correction, weights = scores.float().split((2, OFFERED), 1)
    weights = (weights + preference).softmax(1)
    return (_offered(v, start) * weights[:, :, None]).sum(1) + correction


def warp_both(pair: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Both frames' maps as they are midway."""
    return warp(pair[0], -v / 2), warp(pair[1], v / 2)


def smooth(x: Tensor) -> Tensor:
    """[1 4 6 4 1] / 16 along both axes: four means of two neighbours each. The border is repeated."""
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    if is_exporting():
        for _ in range(4):
            x = F.avg_pool2d(x, 2, 1)
        return x
    # twenty times as fast on a CPU, and twenty nodes of a graph
    for _ in range(4):
        x = x[..., :-1] + x[..., 1:]
    for _ in range(4):
        x = x[..., :-1, :] + x[..., 1:, :]
    return x * (1 / 256)


def _around(x: Tensor) -> Tensor:
    """The mean over the cells of a neighbourhood that there are. x: [B, C, h, w]."""
    side = NEIGHBOURHOOD // 2
    if is_exporting():
        x = F.avg_pool2d(x, (1, NEIGHBOURHOOD), 1, (0, side), count_include_pad=False)
        return F.avg_pool2d(x, (NEIGHBOURHOOD, 1), 1, (side, 0), count_include_pad=False)
    # a third of that time on a CPU: sums twice as wide by one addition
    counts = []
    padded = F.pad(x, (side,) * 4)
    for dim in (-1, -2):
        sums, width = padded, 1
        while 2 * width < NEIGHBOURHOOD:
            count = sums.shape[dim] - width
            sums, width = sums.narrow(dim, 0, count) + sums.narrow(dim, width, count), 2 * width
        count = x.shape[dim]
        padded = sums.narrow(dim, 0, count) + padded.narrow(dim, width, count)
        before = torch.arange(count, device=x.device)
        counts.append(1 + before.clamp(max=side) + before.flip(0).clamp(max=side))
    columns, rows = counts
    return padded / (rows[:, None] * columns)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) * 0.5, (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) * 0.5


def _offered(v: Tensor, start: Tensor) -> Tensor:
    """v at the 3x3 neighbours one and three cells away, and ``start``: [B, OFFERED, 2, h, w]."""
    h, w = v.shape[-2:]
    cells = []
    for reach in (1, 3):
        padded = F.pad(v, (reach,) * 4, mode="replicate")
        corners = [(y * reach, x * reach) for y in range(3) for x in range(3)]
        cells += [padded[..., y : y + h, x : x + w] for y, x in corners]
    return torch.stack((*cells, start), 1)
