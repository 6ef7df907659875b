"""Modulated deformable convolution (Deformable ConvNets v2), the encoder's alignment operation.

    out[o](y, x) = bias[o] + sum over c, k of weight[o, c, k] * mask(g, k)(y, x) * x_c(y + r - 1 + dy, x + s - 1 + dx)

with taps k = 3r + s, deformable group g = c // (C / groups), bilinear reading, and zero for each neighbour outside
the map. Stride, dilation and padding are 1.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

TAPS = 9


@functools.cache
def has_torchvision() -> bool:
    """Whether torchvision's operation can be used; a broken installation is warned of once."""
    try:
        import torchvision.ops  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        return False
    except Exception as error:  # installed for another PyTorch, it fails in many ways
        log.warning("torchvision is installed but cannot be imported, PyTorch's own form is used: %s", error)
        return False
    return True


def deform_conv2d_fallback(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same without gradients on the CPU: torchvision's for float32, where it is installed.

    torchvision computes positions in the input's precision, so half precision takes the PyTorch form.
    """
    if has_torchvision() and x.dtype == torch.float32:
        import torchvision.ops

        return torchvision.ops.deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
    return deform_conv2d_reference(x, offset, mask, weight, bias)


def deform_conv2d_reference(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same operation from PyTorch's own: one ``grid_sample`` for all taps, then one matrix product.

    Positions and interpolation are float32 whatever the dtype of x: half-precision positions lose whole pixels.
    """
    B, C, h, w = x.shape
    groups = mask.shape[1] // TAPS
    offset = offset.float().reshape(B * groups, TAPS, 2, h, w)
    tap = torch.arange(TAPS, device=x.device)
    rows = torch.arange(h, device=x.device).view(1, 1, h, 1) + (tap // 3 - 1).view(1, TAPS, 1, 1)
    columns = torch.arange(w, device=x.device).view(1, 1, 1, w) + (tap % 3 - 1).view(1, TAPS, 1, 1)
    y = rows + offset[:, :, 0]  # [B * groups, 9, h, w]
    x_ = columns + offset[:, :, 1]
    position = torch.stack(((2 * x_ + 1) / w - 1, (2 * y + 1) / h - 1), -1).view(B * groups, TAPS * h, w, 2)
    samples = F.grid_sample(x.float().reshape(B * groups, C // groups, h, w), position, align_corners=False)
    samples = samples.reshape(B, groups, C // groups, TAPS, h, w) * mask.float().reshape(B, groups, 1, TAPS, h, w)
    out = weight.reshape(1, -1, C * TAPS) @ samples.view(B, C * TAPS, h * w).to(weight.dtype)
    out = out.view(B, -1, h, w)
    return out if bias is None else out + bias.view(-1, 1, 1)
