"""The encoder's deformable convolution: what the encoder calls, and PyTorch's own form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.cases import Case

from benchmarks.conftest import DEVICES, DTYPES
from stif_rt.ops.deform_conv import TAPS, deform_conv2d, deform_conv2d_reference

CHANNELS, GROUPS = 64, 8
FORMS = {"dispatched": deform_conv2d, "grid_sample": deform_conv2d_reference}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_deform_conv(measure: Any, case: Case, form: str, device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes = {"x": CHANNELS, "offset": 2 * TAPS * GROUPS, "mask": TAPS * GROUPS}
    maps = [torch.randn(case.batch, channels, *case.inputs) for channels in shapes.values()]
    x, offset, mask = (m.to(device, dtype).to(memory_format=torch.channels_last) for m in maps)
    mask = mask.sigmoid()
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).to(device, dtype)
    bias = torch.randn(CHANNELS).to(device, dtype)

    pixels = case.batch * case.inputs[0] * case.inputs[1]
    flop = 2 * TAPS * CHANNELS * (CHANNELS + 4) * pixels  # the product, and four neighbours for each sample
    moved = dtype.itemsize * ((2 * CHANNELS + 3 * TAPS * GROUPS) * pixels + weight.numel())
    name = f"deform_conv, {case.name}"
    out = measure(name, lambda: FORMS[form](x, offset, mask, weight, bias), device, dtype, flop, moved)
    assert out.shape == x.shape
