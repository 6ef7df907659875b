"""How close a picture comes to the true one. Pictures are [3, H, W], RGB in [0, 1].

Published repositories confuse RGB and luma PSNR, which differ by one to two dB: here both have their own name.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

IDENTICAL = 100.0
"""Largest PSNR, dB, reported for identical pictures."""

SsimWindow = Literal["gaussian", "uniform"]


@dataclass(frozen=True)
class Score:
    """psnr: over all RGB values, dB. luma: PSNR of the luma, dB. ssim: None where it was not asked for."""

    psnr: float
    luma: float
    ssim: float | None = None


def score(output: Tensor, truth: Tensor, ssim_window: SsimWindow | None = None) -> Score:
    """All metrics of one picture.

    Args:
        output, truth: [3, H, W], RGB in [0, 1].
        ssim_window: which SSIM is computed besides, None for none.

    Raises:
        ValueError: as ``ssim`` does.
    """
    similarity = None if ssim_window is None else ssim(output, truth, ssim_window)
    return Score(psnr(output, truth), luma_psnr(output, truth), similarity)


def psnr(output: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio over all values of two tensors of one shape, dB, at most IDENTICAL. The peak is 1."""
    return min(float(-10 * torch.log10(((output - truth).double() ** 2).mean())), IDENTICAL)


def luma(image: Tensor) -> Tensor:
    """ITU-R BT.601 luma with studio swing, as MATLAB's ``rgb2ycbcr`` has it.

    Args:
        image: [3, H, W], RGB in [0, 1].

    Returns:
        float64 [H, W], from 16/255 to 235/255.
    """
    weights = image.new_tensor((65.481, 128.553, 24.966), dtype=torch.float64)
    return (torch.einsum("c,chw->hw", weights, image.double()) + 16) / 255


def luma_psnr(output: Tensor, truth: Tensor) -> float:
    """PSNR of the luma of two pictures [3, H, W], dB. The peak is 1, though luma does not reach it, by custom."""
    return psnr(luma(output), luma(truth))


def ssim(output: Tensor, truth: Tensor, window: SsimWindow = "gaussian") -> float:
    """Mean structural similarity over RGB and over all places where the window fits.

    Args:
        output, truth: [3, H, W], RGB in [0, 1].
        window: ``gaussian`` is that of Wang et al. and of their MATLAB program: 11x11, sigma 1.5, population
            covariances. ``uniform`` is scikit-image's default: 7x7, sample covariances.

    Raises:
        ValueError: without scikit-image, or for pictures smaller than the window.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ValueError("SSIM needs scikit-image: pip install 'stif-rt[eval]'") from error
    side = 11 if window == "gaussian" else 7
    if min(output.shape[1:]) < side:
        raise ValueError(f"SSIM needs pictures of {side}x{side} pixels or more, not {list(output.shape[1:])}")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if window == "gaussian" else {}
    pair = (image.double().cpu().numpy() for image in (output, truth))
    return float(structural_similarity(*pair, data_range=1.0, channel_axis=0, **options))
