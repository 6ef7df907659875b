"""Subsampled chroma to the luma grid and back, in step with where its samples lie.

Both ways use the Catmull-Rom cubic. Chroma is enlarged by interpolation; it is reduced to those samples whose
enlargement comes nearest to the full-resolution signal (least squares), so that reducing what was enlarged gives back
the same samples.
"""

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MARGIN = 2
"""Chroma samples beyond the border that interpolation reads."""


def enlarge(chroma: Tensor, dim: int, size: int, step: int, first: float) -> Tensor:
    """Interpolates chroma at the positions of the luma samples.

    Args:
        chroma: Floating point, [..., n, ...] with n = ceil(size / step).
        dim: Which dimension to enlarge.
        size: Luma samples in that dimension.
        step: Luma samples from one chroma sample to the next.
        first: Position of the first chroma sample, in luma samples from the first luma sample.

    Returns:
        [..., size, ...].
    """
    if step == 1:
        return chroma
    index = _mirrored(chroma.shape[dim], size, step, first, MARGIN, chroma.device)
    padded = chroma.index_select(dim, index)
    shape = list(chroma.shape)
    shape[dim] = size
    enlarged = chroma.new_empty(shape)
    for phase in range(min(step, size)):
        count = (size - phase + step - 1) // step
        position = (phase - first) / step
        base = math.floor(position)
        taps = [(MARGIN + base + k, float(catmull_rom(position - base - k))) for k in range(-1, 3)]
        _weighted_sum(
            [(padded.narrow(dim, start, count), weight) for start, weight in taps if weight],
            _every(enlarged, dim, phase, step),
        )
    return enlarged


def reduce(signal: Tensor, dim: int, step: int, first: float) -> Tensor:
    """The chroma samples whose enlargement is nearest to ``signal``: the reverse of ``enlarge``, arguments as there."""
    if step == 1:
        return signal
    size = signal.shape[dim]
    count = -(-size // step)
    offsets, weights = analysis_taps(step, first != int(first))
    start = [first + offset for offset in offsets]  # luma position under the first output sample
    margin = max(-math.floor(start[0]), math.ceil(start[-1]) + step * count - size + 1)
    padded = signal.index_select(dim, _mirrored_luma(size, first, margin, signal.device))
    phases = {}
    for s in start:
        phase = (int(s) + margin) % step
        if phase not in phases:
            phases[phase] = _every(padded, dim, phase, step).contiguous()
    reduced = signal.new_empty([count if d == dim % signal.ndim else n for d, n in enumerate(signal.shape)])
    terms = []
    for s, weight in zip(start, weights, strict=True):
        place = int(s) + margin
        if abs(weight) > 1e-9:
            terms.append((phases[place % step].narrow(dim, place // step, count), weight))
    _weighted_sum(terms, reduced)
    return reduced


def catmull_rom(x: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic kernel of that name, zero from 2 on."""
    x = np.abs(x)
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, outer, 0.0))


@functools.cache
def analysis_taps(step: int, between: bool) -> tuple[list[float], list[float]]:
    """Offsets in luma samples from a chroma sample, and weights there, that undo the interpolation.

    The shortest such filters that reach a 1/25,000 of it (they need not exist exactly), least in norm; their sum is 1.
    between: the chroma sample lies between luma samples.
    """
    reach = 2 * step + (0.5 if between else 0)
    offsets = np.arange(-reach, reach + 0.25)
    neighbours = np.arange(-4, 5)
    synthesis = catmull_rom(offsets / step - neighbours[:, None])
    weights = np.linalg.lstsq(synthesis, (neighbours == 0).astype(float), rcond=None)[0]
    return offsets.tolist(), (weights / weights.sum()).tolist()


def _weighted_sum(terms: list[tuple[Tensor, float]], out: Tensor) -> None:
    (tensor, weight), *others = terms
    if not others and weight == 1:
        out.copy_(tensor)
        return
    total = tensor * weight
    for tensor, weight in others:
        total.add_(tensor, alpha=weight)
    out.copy_(total)


def _every(x: Tensor, dim: int, phase: int, step: int) -> Tensor:
    index = [slice(None)] * x.ndim
    index[dim] = slice(phase, None, step)
    return x[tuple(index)]


@functools.lru_cache(maxsize=32)
def _mirrored(count: int, size: int, step: int, first: float, margin: int, device: torch.device) -> Tensor:
    """Index of the chroma sample that stands for each of -margin .. count + margin."""
    positions = first + step * np.arange(-margin, count + margin + 1)
    index = np.rint((_mirror(positions, size, first) - first) / step)
    return torch.from_numpy(index.clip(0, count - 1).astype(np.int64)).to(device)


@functools.lru_cache(maxsize=32)
def _mirrored_luma(size: int, first: float, margin: int, device: torch.device) -> Tensor:
    """Index of the luma sample that stands for each of -margin .. size + margin."""
    index = _mirror(np.arange(-margin, size + margin, dtype=float), size, first)
    return torch.from_numpy(np.rint(index).clip(0, size - 1).astype(np.int64)).to(device)


def _mirror(positions: NDArray[np.floating], size: int, first: float) -> NDArray[np.floating]:
    """Positions inside the picture for those outside it, mirrored so that chroma samples fall on chroma samples."""
    low = -0.5 if first != int(first) else 0.0
    high = size - 1 - low
    length = high - low
    if not length:
        return np.full_like(positions, low)
    folded = (positions - low) % (2 * length)
    return np.minimum(folded, 2 * length - folded) + low
