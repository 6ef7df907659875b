"""Deformable convolution: shapes, inputs, the definition as a loop, and torchvision in float64."""

import itertools
import math

import pytest
import torch

SHAPES = [(1, 4, 2, 5, 6, 3), (2, 8, 8, 4, 3, 8), (1, 6, 1, 1, 1, 2), (1, 4, 4, 1, 7, 4)]


def naive(
    x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """The definition, one multiplication at a time, in float64."""
    B, C, h, w = x.shape
    groups = mask.shape[1] // 9
    out = bias.double().view(1, -1, 1, 1).repeat(B, 1, h, w)
    for b, c, i, j, k in itertools.product(range(B), range(C), range(h), range(w), range(9)):
        g = c // (C // groups)
        y = i + k // 3 - 1 + float(offset[b, 18 * g + 2 * k, i, j])
        x_ = j + k % 3 - 1 + float(offset[b, 18 * g + 2 * k + 1, i, j])
        value = 0.0
        for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x_), math.floor(x_) + 1)):
            if 0 <= row < h and 0 <= column < w:
                value += (1 - abs(y - row)) * (1 - abs(x_ - column)) * float(x[b, c, row, column])
        out[b, :, i, j] += weight[:, c, k // 3, k % 3].double() * float(mask[b, 9 * g + k, i, j]) * value
    return out


def torchvision_float64(
    x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """torchvision's operation in float64 on the CPU. Its positions are exact, which those of our reference, float32
    whatever the dtype, are not. Skips the test where torchvision is not installed."""
    torchvision = pytest.importorskip("torchvision")
    x, offset, mask, weight, bias = (a.cpu().double() for a in (x, offset, mask, weight, bias))
    out: torch.Tensor = torchvision.ops.deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
    return out


def inputs(
    B: int, C: int, groups: int, h: int, w: int, outputs: int, spread: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    offset = torch.randn(B, groups * 18, h, w) * spread
    offset[:, ::7] = offset[:, ::7].round()  # whole pixels, and positions exactly on the border
    return (
        torch.randn(B, C, h, w),
        offset,
        torch.rand(B, groups * 9, h, w),
        torch.randn(outputs, C, 3, 3),
        torch.randn(outputs),
    )
