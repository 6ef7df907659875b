"""Bicubic resizing as MATLAB's ``imresize`` does it, which is how the paper makes its low-resolution inputs."""

import functools
import math

import torch
from torch import Tensor


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@functools.lru_cache(maxsize=64)
def _matrix(inputs: int, outputs: int) -> Tensor:
    """float32 [outputs, inputs]."""
    return _rows(inputs, outputs, 0, outputs)


def _rows(inputs: int, outputs: int, first: int, count: int) -> Tensor:
    """Rows of ``_matrix``: float32 [count, inputs]. The kernel is stretched when shrinking; the border is mirrored."""
    scale = outputs / inputs
    stretch = min(scale, 1.0)
    support = 4 / stretch
    centre = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = torch.floor(centre - support / 2)[:, None] + torch.arange(math.ceil(support) + 2)
    weight = _cubic((centre[:, None] - taps) * stretch)
    weight = weight / weight.sum(1, keepdim=True)
    period = taps.long() % (2 * inputs)  # ... 1 0 | 0 1 ... n-1 | n-1 n-2 ...
    index = torch.where(period < inputs, period, 2 * inputs - 1 - period)
    return torch.zeros(count, inputs, dtype=torch.float64).scatter_add_(1, index, weight).float()


def imresize(image: Tensor, size: tuple[int, int], region: tuple[int, int, int, int] | None = None) -> Tensor:
    """Resizes as MATLAB's ``imresize`` does, bicubic and antialiased when shrinking. The result is not clamped.

    Args:
        image: [..., h, w] of any dtype; computed in float32.
        size: (H, W) of the result.
        region: (y, x, height, width) of the result: that part alone.

    Returns:
        float32 [..., H, W].
    """
    h, w = image.shape[-2:]
    if region is not None:
        y, x, height, width = region
        rows, top = _without_zeros(_rows(h, size[0], y, height))
        columns, left = _without_zeros(_rows(w, size[1], x, width))
        part = image[..., top : top + rows.shape[1], left : left + columns.shape[1]].float()
        return rows.to(image.device) @ part @ columns.to(image.device).T
    rows, columns = _matrix(h, size[0]).to(image.device), _matrix(w, size[1]).to(image.device)
    return rows @ image.float() @ columns.T


def _without_zeros(matrix: Tensor) -> tuple[Tensor, int]:
    """The columns from the first to the last that is not zero, and which the first one is."""
    used = matrix.any(0).nonzero()
    first, last = int(used[0]), int(used[-1])
    return matrix[:, first : last + 1], first


def degrade(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Makes a low-resolution frame as a file would hold it: ``imresize``, clamped and rounded to 8 bits.

    Args:
        image: [..., h, w] in [0, 1].
        size: (H, W) of the result.

    Returns:
        float32 [..., H, W] in [0, 1], multiples of 1 / 255.
    """
    return (imresize(image, size).clamp(0, 1) * 255).round() / 255
