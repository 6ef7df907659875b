"""Reading pictures where flows point, and adding values up where they point.

Flows are [B, 2, H, W] in pixels, horizontal before vertical. The published programs compute the same positions in
different conventions, which differ by up to half a pixel: here a position is always in pixels, (0, 0) being the centre
of the first, and each network says how it comes from the flow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sampling_positions(flow: Tensor) -> Tensor:
    """Each pixel's own position plus its flow, float32 [B, 2, H, W]."""
    H, W = flow.shape[-2:]
    y, x = (torch.arange(n, device=flow.device, dtype=torch.float32) for n in (H, W))
    return torch.stack((x + flow[:, 0].float(), y[:, None] + flow[:, 1].float()), 1)


def sample(image: Tensor, positions: Tensor, border: bool = False) -> Tensor:
    """Bilinear samples of an image.

    Args:
        image: [B, C, H, W].
        positions: float32 [B, 2, H, W], in pixels, horizontal before vertical.
        border: Whether positions outside are limited to the picture; otherwise neighbours outside count as zero.

    Returns:
        [B, C, H, W], of the image's dtype.
    """
    size = positions.new_tensor((image.shape[-1], image.shape[-2])).view(2, 1, 1)
    grid = ((2 * positions + 1) / size - 1).movedim(1, -1)
    padding = "border" if border else "zeros"
    return F.grid_sample(image.float(), grid, padding_mode=padding, align_corners=False).to(image.dtype)


def warp_by_size(image: Tensor, flow: Tensor, aligned_corners: bool) -> Tensor:
    """Super SloMo's warp, zeros outside: it divides positions by the size and multiplies by what the convention says.

    Args:
        image: [B, C, H, W].
        flow: [B, 2, H, W].
        aligned_corners: The sampler's convention. True nearly keeps a picture whose flow is zero, False moves it by
            half a pixel.

    Returns:
        [B, C, H, W].
    """
    positions = sampling_positions(flow)
    if not aligned_corners:
        return sample(image, positions - 0.5)
    size = positions.new_tensor((image.shape[-1], image.shape[-2])).view(2, 1, 1)
    return sample(image, positions / size * (size - 1))


def splat(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Adds each pixel's values to the pixel at (x, y).

    Args:
        values: [B, C, H, W].
        x: Columns, int64 [B, H, W]; values of columns or rows outside the picture are dropped.
        y: Rows, likewise.

    Returns:
        The sums, [B, C, H, W].
    """
    H, W = values.shape[-2:]
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)
    index = torch.where(inside, y * W + x, 0)[:, None].expand_as(values).flatten(2)
    kept = torch.where(inside[:, None], values, 0).flatten(2)
    return torch.zeros_like(kept).scatter_add_(2, index, kept).view_as(values)
