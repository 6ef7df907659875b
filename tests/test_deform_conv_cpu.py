"""Deformable convolution in every instruction set of the native library, against torchvision in float64."""

import pytest
import torch
from helpers.deform_conv import SHAPES, inputs, torchvision_float64

from stif_rt.ops.deform_conv import cpu, deform_conv2d_reference

LAYOUTS = ("contiguous", "channels last", "slices")


def marks(layout):
    """Small shapes run on other builds too; under the sanitizers in the layout that the encoder has."""
    return [pytest.mark.emulated, pytest.mark.sanitized] if layout == "slices" else [pytest.mark.emulated]


SMALL = [pytest.param(shape, layout, marks=marks(layout)) for layout in LAYOUTS for shape in SHAPES]
LARGE = [(shape, layout) for layout in LAYOUTS for shape in ((1, 64, 8, 9, 11, 64), (2, 40, 5, 6, 13, 20))]


@pytest.mark.parametrize(("shape", "layout"), SMALL + LARGE)
def test_matches_torchvision(library, isa, shape, layout):
    arguments = [argument.to(isa.dtype) for argument in inputs(*shape)]
    x, offset, mask, weight, bias = arguments
    exact = torchvision_float64(*arguments)
    if layout == "channels last":
        x, offset, mask = (a.to(memory_format=torch.channels_last) for a in (x, offset, mask))
    elif layout == "slices":  # as the encoder has them: offsets and masks made by one convolution
        whole = torch.cat((offset, mask), 1).to(memory_format=torch.channels_last)
        offset, mask = whole.split((offset.shape[1], mask.shape[1]), 1)
    actual = cpu.run_deform_conv2d(library, isa, x, offset, mask, weight, bias)
    assert actual.shape == exact.shape
    if isa.dtype == torch.float32:
        torch.testing.assert_close(actual.double(), exact, atol=1e-4, rtol=0)
    else:
        plain = deform_conv2d_reference(*arguments)
        assert (actual.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()


@pytest.mark.emulated
@pytest.mark.sanitized
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9, 1e9])
def test_unusable_offsets_read_nothing(library, isa, value):
    """They leave the bias: every neighbour lies outside."""
    x, offset, mask, weight, bias = (a.to(isa.dtype) for a in inputs(1, 64, 8, 5, 6, 64))
    actual = cpu.run_deform_conv2d(library, isa, x, torch.full_like(offset, value), mask, weight, bias)
    torch.testing.assert_close(actual, bias.view(1, -1, 1, 1).expand_as(actual))
