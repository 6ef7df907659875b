"""csrc/cuda/deform_conv.cu: its source run on the CPU (tests/emulation), compiled for every GPU, and the operation."""

import ctypes

import numpy as np
import pytest
import torch
from helpers.deform_conv import inputs, naive
from torch._subclasses.fake_tensor import FakeTensorMode

from stif_rt.ops.deform_conv import cuda, deform_conv2d_op, deform_conv2d_reference
from stif_rt.ops.deform_conv.cuda import KERNEL_SYMBOLS, THREADS, as_weight, launch_sizes, layout

DTYPES = list(KERNEL_SYMBOLS)
SHAPES = {  # B, C, groups, h, w, O
    "small": (1, 4, 2, 5, 6, 3),
    "a channel per group": (2, 8, 8, 4, 3, 8),
    "one group": (1, 6, 1, 1, 1, 2),
    "one row": (1, 4, 4, 1, 7, 4),
    "groups across octets": (1, 36, 3, 5, 7, 5),
    "several blocks": (1, 40, 5, 9, 15, 70),
    "encoder": (2, 64, 8, 6, 13, 64),
}


def guarded(x: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides between NaNs: a value read outside it shows in the result, even times zero."""
    margin = 4096
    storage = torch.full((x.untyped_storage().nbytes() // x.itemsize + 2 * margin,), torch.nan, dtype=x.dtype)
    copy = storage.as_strided(x.shape, x.stride(), margin + x.storage_offset())
    return copy.copy_(x)


def emulate(library, x, offset, mask, weight, bias, seed=0):
    """What the operation does on CUDA, with the kernel on the CPU. seed: of the order in which threads run."""
    out = torch.full_like(cuda.empty_output(x, weight), torch.nan)
    x, offset, mask, weight, out = (guarded(a) for a in (x, offset, mask, as_weight(weight), out))
    grid, integers = launch_sizes(
        *(x.shape[0], x.shape[1], weight.shape[0], mask.shape[1] // 9, x.shape[2], x.shape[3]),
        layouts=[layout(a) for a in (x, offset, mask, out)],
        weight_strides=(weight.stride(1), weight.stride(3)),
    )
    bias = None if bias is None else guarded(bias)
    arrays = (ctypes.c_void_p * 5)(*(None if a is None else a.data_ptr() for a in (x, offset, mask, weight, bias)))
    run = getattr(library, f"run_{KERNEL_SYMBOLS[x.dtype]}")
    numbers = [(ctypes.c_int * len(n))(*n) for n in (grid, integers)]
    assert run(numbers[0], THREADS, seed, arrays, numbers[1], ctypes.c_void_p(out.data_ptr())), "threads wait for ever"
    outside = torch.ones(out.untyped_storage().nbytes() // out.itemsize, dtype=torch.bool)
    outside.as_strided(out.shape, out.stride(), out.storage_offset()).fill_(False)
    assert torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())[outside].isnan().all(), "written outside"
    return out


def arguments(shape, dtype=torch.float32, channels_last=False, **options):
    given = [a.to(dtype) for a in inputs(*shape, **options)]
    if channels_last:
        given[:4] = [a.to(memory_format=torch.channels_last) for a in given[:4]]
    return given


def by_torchvision(x, offset, mask, weight, bias):
    ops = pytest.importorskip("torchvision.ops")
    return ops.deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)


def assert_as_good_as_pytorch(actual, given):
    """Error against float64 at most twice that of PyTorch's own operations in the same dtype."""
    exact = naive(*given) if given[0].numel() < 200 else by_torchvision(*(a.double() for a in given))
    plain = deform_conv2d_reference(*given).double() - exact
    error = actual.double() - exact
    assert error.square().mean().sqrt() <= 2 * plain.square().mean().sqrt() + 1e-7
    assert error.abs().max() <= 2 * plain.abs().max() + 1e-6


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernel_matches_the_definition(emulated, shape, dtype, channels_last):
    given = arguments(shape, dtype, channels_last)
    assert_as_good_as_pytorch(emulate(emulated, *given), given)


def test_kernel_matches_torchvision(emulated):
    given = arguments(SHAPES["encoder"])
    torch.testing.assert_close(emulate(emulated, *given), by_torchvision(*given), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_does_not_race(emulated, dtype):
    given = arguments(SHAPES["several blocks"], dtype)
    first = emulate(emulated, *given)
    for seed in (1, 2):
        assert torch.equal(emulate(emulated, *given, seed=seed), first)


def test_kernel_takes_slices_of_channels_and_no_bias(emulated):
    x, offset, mask, weight, _ = arguments(SHAPES["encoder"], channels_last=True)
    both = torch.cat((offset, mask), 1).to(memory_format=torch.channels_last)
    offset, mask = both.split((offset.shape[1], mask.shape[1]), 1)
    assert not offset.is_contiguous()
    assert not offset.is_contiguous(memory_format=torch.channels_last)
    actual = emulate(emulated, x, offset, mask, weight, None)
    torch.testing.assert_close(actual, deform_conv2d_reference(x, offset, mask, weight, None), atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_positions_that_are_not_numbers_or_far_away_read_zero(emulated, channels_last):
    given = arguments(SHAPES["encoder"], channels_last=channels_last)
    x, offset, mask, weight, bias = given
    clean = offset.clone()
    for column, value in enumerate((np.nan, np.inf, -np.inf, 1e30, -1e30, 2.0**31, -(2.0**31))):
        offset[:, column::7, 2, :] = value
        clean[:, column::7, 2, :] = 1000
    expected = deform_conv2d_reference(x, clean, mask, weight, bias)
    actual = emulate(emulated, *given)
    torch.testing.assert_close(actual[:, :, 2], expected[:, :, 2], atol=1e-4, rtol=0)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_half_precision_keeps_whole_positions(emulated):
    """At column 600 half-precision positions are 0.5 pixels apart."""
    x, weight = torch.zeros(1, 1, 1, 700), torch.zeros(1, 1, 3, 3)
    x[..., 600] = weight[..., 1, 1] = 1
    offset = torch.zeros(1, 18, 1, 700)
    offset[:, 9] = 0.25  # the centre tap looks a quarter pixel to the right
    given = [a.half() for a in (x, offset, torch.ones(1, 9, 1, 700), weight)]
    assert emulate(emulated, *given, None)[0, 0, 0, 599:602].tolist() == [0.25, 0.75, 0]


def test_symbolic_sizes_are_those_of_dense_maps():
    x, offset, mask, *_ = arguments(SHAPES["encoder"])
    sizes = (2, 64, 64, 8, 6, 13)
    dense = [layout(a) for a in (x, offset, mask, torch.empty(2, 64, 6, 13))]
    assert launch_sizes(*sizes) == launch_sizes(*sizes, layouts=dense, weight_strides=(9, 1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_operation_is_registered_soundly(dtype, channels_last):
    given = arguments(SHAPES["small"], dtype, channels_last)
    torch.library.opcheck(deform_conv2d_op, tuple(given))
    torch.library.opcheck(deform_conv2d_op, (*given[:4], None))


def test_operation_on_cuda_has_the_right_shape_and_layout():
    with FakeTensorMode():
        x, offset, mask, weight, bias = (a.to("cuda").half() for a in inputs(*SHAPES["encoder"]))
        out = deform_conv2d_op(x, offset, mask, weight, bias)
        assert (out.shape, out.dtype, out.device.type) == ((2, 64, 6, 13), torch.float16, "cuda")
        assert out.is_contiguous()
        out = deform_conv2d_op(x.to(memory_format=torch.channels_last), offset, mask, weight, bias)
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, offset, mask, weight, bias: (x, offset[:, 1:], mask, weight, bias),
            r"offset is \[1, 35, 5, 6\]; it",
        ),
        (lambda x, offset, mask, weight, bias: (x, offset, mask, weight[:, 1:], bias), "weight"),
        (
            lambda x, offset, mask, weight, bias: (x, offset, mask.half(), weight, bias),
            "mask is torch.float16; it must be",
        ),
        (lambda *given: tuple(a.double() for a in given), "x is torch.float64"),
        (lambda x, offset, mask, weight, bias: (x[:, :3], offset, mask, weight[:, :3], bias), "3 channels cannot be"),
    ],
)
def test_operation_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        deform_conv2d_op(*change(*arguments(SHAPES["small"])))
