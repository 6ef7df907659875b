"""Deformable convolution on an NVIDIA GPU, against torchvision in float64. ``pytest -m gpu`` runs it."""

import pytest
import torch
from helpers.deform_conv import inputs, torchvision_float64

from stif_rt.ops import deform_conv, nvrtc
from stif_rt.ops.deform_conv import deform_conv2d_reference

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 8, 23, 37, 64), (1, 36, 3, 5, 7, 5), (1, 8, 8, 1, 1, 3)])
def test_is_as_good_as_pytorch(shape, dtype, channels_last):
    assert nvrtc.unavailable_reason() is None
    given = [x.to(CUDA, dtype) for x in inputs(*shape)]
    if channels_last:
        given[:4] = [x.to(memory_format=torch.channels_last) for x in given[:4]]
    exact = torchvision_float64(*given).to(CUDA)
    plain = deform_conv2d_reference(*given)
    with torch.inference_mode():
        actual = deform_conv.deform_conv2d_op(*given)
        assert all(torch.equal(deform_conv.deform_conv2d_op(*given), actual) for _ in range(10))
    allowed = 2 * (plain.double() - exact).square().mean().sqrt()
    assert (actual.double() - exact).square().mean().sqrt() <= allowed + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_registered_soundly(dtype):
    given = tuple(x.to(CUDA, dtype) for x in inputs(1, 16, 2, 5, 6, 8))
    torch.library.opcheck(deform_conv.deform_conv2d_op, given)
