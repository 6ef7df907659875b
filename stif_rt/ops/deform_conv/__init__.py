"""Modulated deformable convolution: ``deform_conv2d``, and the PyTorch operation ``stif_rt::deform_conv2d`` behind it.

The operation is one node for ``torch.compile`` and export on every device. On CPUs it runs the native kernel
(``cpu.py``), on CUDA the one of ``csrc/cuda/deform_conv.cu`` (``cuda.py``). Where neither can run, it is made of other
operations, torchvision's or PyTorch's own, by ``reference.py``, which is also the definition.
"""

import functools
import logging

import torch
from torch import Tensor

from stif_rt.ops.deform_conv import cpu, cuda
from stif_rt.ops.deform_conv.reference import TAPS, deform_conv2d_fallback, deform_conv2d_reference

__all__ = ["TAPS", "deform_conv2d", "deform_conv2d_op", "deform_conv2d_reference"]

log = logging.getLogger(__name__)


def deform_conv2d(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Modulated deformable 3x3 convolution by the fastest means there is.

    With gradients it is made of PyTorch's own operations; without, it is the operation ``stif_rt::deform_conv2d``.

    Args:
        x: [B, C, h, w], float32, float16 or bfloat16.
        offset: [B, groups * 9 * 2, h, w], pixels, vertical before horizontal for each tap, in the dtype of x.
        mask: [B, groups * 9, h, w], likewise.
        weight: [O, C, 3, 3].
        bias: [O], or None.

    Returns:
        [B, O, h, w] in the dtype of x.

    Raises:
        ValueError, RuntimeError: Shapes or dtypes do not fit.
    """
    if torch.is_grad_enabled():
        return deform_conv2d_reference(x, offset, mask, weight, bias)
    bias = None if bias is None else bias.to(x.dtype)  # under autocast x is narrower than the weights
    return deform_conv2d_op(x, offset, mask, weight.to(x.dtype), bias)


@torch.library.custom_op("stif_rt::deform_conv2d", mutates_args=(), device_types="cpu")
def deform_conv2d_op(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Modulated deformable 3x3 convolution; see ``reference.py`` for the formula.

    x: [B, C, h, w], float32, float16 or bfloat16, and so the others. offset: [B, groups * 9 * 2, h, w], pixels,
    vertical before horizontal for each tap. mask: [B, groups * 9, h, w]. weight: [O, C, 3, 3]. bias: [O].
    Returns [B, O, h, w], channels last where x is. Raises ValueError for shapes or dtypes that do not fit.
    """
    cuda.check(x, offset, mask, weight, bias)
    native = cpu.unavailable_reason(x.dtype) is None
    out = (cpu.deform_conv2d if native else deform_conv2d_fallback)(x, offset, mask, weight, bias)
    return out.contiguous(memory_format=cuda.memory_format(x))


@deform_conv2d_op.register_fake
def _(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    cuda.check(x, offset, mask, weight, bias)
    return cuda.empty_output(x, weight)


@deform_conv2d_op.register_kernel("cuda")
def deform_conv2d_on_cuda(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operation on CUDA tensors: by the kernel, or, where it cannot run, by PyTorch's own form."""
    cuda.check(x, offset, mask, weight, bias)
    if reason := cuda.unavailable_reason(x.device, x.dtype):
        _warn_of_fallback(reason)
        out = deform_conv2d_reference(x, offset, mask, weight, bias)
        return out.contiguous(memory_format=cuda.memory_format(x))
    return cuda.deform_conv2d(x, offset, mask, weight, bias)


@functools.cache
def _warn_of_fallback(reason: str) -> None:
    """Once for each reason, not for each of a pair's many convolutions."""
    log.warning("PyTorch's own deformable convolution is used, which is slower: %s", reason)
