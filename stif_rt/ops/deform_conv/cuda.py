"""Modulated deformable convolution on CUDA, by ``csrc/cuda/deform_conv.cu``."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stif_rt.errors import CannotRunError
from stif_rt.ops import nvrtc
from stif_rt.ops.deform_conv.reference import TAPS

SOURCE = nvrtc.find_source("deform_conv.cu")
KERNEL_SYMBOLS = {
    torch.float32: "deform_conv_float32",
    torch.float16: "deform_conv_float16",
    torch.bfloat16: "deform_conv_bfloat16",
}
THREADS = 128
PIXELS, OUTPUTS = 64, 64  # per block
INT32_MAX = 2**31 - 1

Layout = tuple[int, int, int]
"""Strides of a map [B, C, h, w] by batch element, channel and pixel, in elements."""


def deform_conv2d(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of checked CUDA tensors; shapes as in ``reference.py``."""
    x, offset, mask = (as_map(a) for a in (x, offset, mask))
    weight = as_weight(weight)
    out = empty_output(x, weight)
    grid, integers = launch_sizes(
        *(x.shape[0], x.shape[1], weight.shape[0], mask.shape[1] // TAPS, x.shape[2], x.shape[3]),
        layouts=(layout(x), layout(offset), layout(mask), layout(out)),
        weight_strides=(weight.stride(1), weight.stride(3)),
    )
    if out.numel():
        _launch(x.device, KERNEL_SYMBOLS[x.dtype], grid, (x, offset, mask, weight, bias, *integers, out))
    return out


def launch_sizes(
    batch: Any,
    channels: Any,
    outputs: Any,
    groups: Any,
    height: Any,
    width: Any,
    *,
    layouts: Sequence[tuple[Any, Any, Any]] | None = None,
    weight_strides: tuple[Any, Any] | None = None,
) -> tuple[tuple[Any, Any, Any], list[Any]]:
    """The grid (of blocks of THREADS threads), and the kernel's integers between its inputs and its output.

    layouts: of x, offset, mask and out; dense [B, C, h, w] if None. weight_strides: by input channel and by tap.
    Numbers may be symbolic: they are added, multiplied and divided (rounding down, positive) only.
    """
    pixels = height * width
    if layouts is None:
        counts = (channels, groups * (2 * TAPS), groups * TAPS, outputs)
        layouts = [(count * pixels, pixels, 1) for count in counts]
    x, offset, mask, out = layouts
    grid = ((pixels + (PIXELS - 1)) // PIXELS, (outputs + (OUTPUTS - 1)) // OUTPUTS, batch)
    sizes = [channels, outputs, groups, height, width]
    return grid, [*sizes, *x, *offset, *mask, *(weight_strides or (TAPS, 1)), *out]


def check(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ValueError where shapes or dtypes do not fit together."""
    B, C, h, w = x.shape
    groups = mask.shape[1] // TAPS
    shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "offset": (offset, (B, groups * 2 * TAPS, h, w)),
        "mask": (mask, (B, groups * TAPS, h, w)),
        "weight": (weight, (weight.shape[0], C, 3, 3)),
    }
    if bias is not None:
        shapes["bias"] = (bias, (weight.shape[0],))
    for name, (tensor, shape) in shapes.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}; it must be {list(shape)} for x {list(x.shape)}")
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; it must be {x.dtype}, as x is")
    if x.dtype not in KERNEL_SYMBOLS:
        raise ValueError(f"x is {x.dtype}; it must be float32, float16 or bfloat16")
    if groups < 1 or C % groups:
        raise ValueError(f"{C} channels cannot be shared by {groups} deformable groups")


def layout(x: Tensor) -> Layout:
    """Strides of a map whose rows follow each other. Raises ValueError where they do not fit 32 bits."""
    strides = (x.stride(0) if len(x) > 1 else 0, x.stride(1), x.stride(3))
    if max(strides) > INT32_MAX or x.shape[2] * x.shape[3] > INT32_MAX:
        raise ValueError(f"a map of shape {list(x.shape)} is too large for the deformable convolution on CUDA")
    return strides


def as_map(x: Tensor) -> Tensor:
    """x, copied only if its rows do not follow each other in memory (so neither dense nor a slice of channels)."""
    return x if x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3) else x.contiguous()


def as_weight(weight: Tensor) -> Tensor:
    """weight, copied only if it is neither dense nor channels last."""
    channels = weight.shape[1]
    strides = ((9 * channels, 9, 3, 1), (9 * channels, 1, 3 * channels, channels))
    return weight if weight.stride() in strides else weight.clone(memory_format=torch.contiguous_format)


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of [B, C, h, w]: channels last where neighbouring channels lie side by side."""
    last = x.stride(1) == 1 and x.shape[1] > 1
    return torch.channels_last if last else torch.contiguous_format


def empty_output(x: Tensor, weight: Tensor) -> Tensor:
    """[B, O, h, w] in the dtype, device and memory format of x, without values."""
    B, _, h, w = x.shape
    return x.new_empty((B, weight.shape[0], h, w)).contiguous(memory_format=memory_format(x))


def compile_kernel(architecture: str, reuse: bool = True) -> bytes:
    """The kernels compiled for an architecture; see ``nvrtc.compile_source``."""
    return nvrtc.compile_source(SOURCE, architecture, reuse)


def unavailable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run on a GPU, or None. The first call compiles them, which takes a second or two."""
    if reason := nvrtc.unavailable_reason():
        return reason
    with torch.cuda.device(device):
        loaded = _load(torch.cuda.current_device(), KERNEL_SYMBOLS[dtype])
    return loaded if isinstance(loaded, str) else None


@functools.cache
def _load(device: int, name: str) -> Any:
    """The loaded kernel, or as words why there is none. The caller has made ``device`` the current one."""
    return nvrtc.load_kernel(compile_kernel, name, device)


def _launch(device: torch.device, name: str, grid: Sequence[int], arguments: Sequence[Tensor | int | None]) -> None:
    from cuda.bindings import driver

    with torch.cuda.device(device):
        function = _load(torch.cuda.current_device(), name)
        if isinstance(function, str):
            raise CannotRunError(f"the deformable convolution cannot run: {function}")
        values = tuple(a.data_ptr() if isinstance(a, Tensor) else a or 0 for a in arguments)
        types = tuple(ctypes.c_int if isinstance(a, int) else ctypes.c_void_p for a in arguments)
        stream = torch.cuda.current_stream().cuda_stream
        nvrtc.checked(driver.cuLaunchKernel(function, *grid, THREADS, 1, 1, 0, stream, (values, types), 0))
