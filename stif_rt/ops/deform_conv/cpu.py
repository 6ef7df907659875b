"""Modulated deformable convolution in native code; the kernel is in ``csrc/cpu``."""

import torch
from torch import Tensor

from stif_rt.errors import CannotRunError
from stif_rt.ops import native

LARGEST_INPUTS = 1 << 16


def unavailable_reason(dtype: torch.dtype) -> str | None:
    """Why ``deform_conv2d`` cannot run on tensors of this dtype, or None."""
    selected = native.select_isa(dtype)
    return selected if isinstance(selected, str) else None


def deform_conv2d(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Modulated deformable convolution; shapes as in ``stif_rt.ops.deform_conv``. The result is channels last."""
    selected = native.select_isa(x.dtype)
    if isinstance(selected, str):
        raise CannotRunError(f"the native deformable convolution cannot run: {selected}")
    library, isa = selected
    return run_deform_conv2d(library, isa, x, offset, mask, weight, bias)


def run_deform_conv2d(
    library: native.Library,
    isa: native.Isa,
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """``deform_conv2d`` with one instruction set of one library."""
    B, C, h, w = x.shape
    outputs = weight.shape[0]
    if 9 * C > LARGEST_INPUTS or h * w >= 1 << 31:
        raise ValueError(f"x is {list(x.shape)}; the native code takes {LARGEST_INPUTS // 9} channels and 2^31 pixels")
    x, offset, mask = (native.as_pixels(tensor) for tensor in (x, offset, mask))
    packed = library.pack(isa, weight.permute(0, 2, 3, 1).reshape(outputs, 9 * C), bias)
    out = torch.empty(B, outputs, h, w, dtype=x.dtype, memory_format=torch.channels_last, device="cpu")
    for b in range(B):
        call = native.DeformConv(
            h,
            w,
            mask.shape[1] // 9,
            native.pointer(x, b),
            native.pointer(offset, b),
            native.pointer(mask, b),
            *(tensor.stride(3) for tensor in (x, offset, mask)),
            outputs,
            native.Linear(packed.data_ptr(), 9 * C, outputs),
            native.pointer(out, b),
        )
        library.run("deform_conv", isa, call)
    return out
