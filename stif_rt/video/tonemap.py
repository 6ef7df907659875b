"""Light from signals and back: HDR to SDR, and linear light for OpenEXR.

Light is relative to SDR white, which is 203 cd/m2 of HDR (ITU-R BT.2408).
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from stif_rt.video.colour import BT709, BT2020, HLG, LINEAR, PQ, Colour
from stif_rt.video.options import Tonemap

WHITE = 203.0
"""cd/m2 of HDR that become SDR white."""
UNKNOWN_PEAK = 1000.0
"""cd/m2 of the brightest pixel where a stream does not say."""
SRGB = 13
GAMMAS = {4: 2.2, 5: 2.8, LINEAR: 1.0}
"""Exponents of plain power functions, by transfer characteristics; BT.1886's 2.4 for what is not named anywhere."""

M1, M2 = 2610 / 16384, 2523 / 32
C1, C2, C3 = 3424 / 4096, 2413 / 128, 2392 / 128
HLG_A, HLG_B, HLG_C = 0.17883277, 0.28466892, 0.55991073
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
BT2020_LUMA = (0.2627, 0.6780, 0.0593)
BT2020_TO_BT709 = (
    (1.660491, -0.587641, -0.072850),
    (-0.124550, 1.132900, -0.008350),
    (-0.018151, -0.100579, 1.118730),
)
MOBIUS_KNEE = 0.3
"""Light up to which ``mobius`` changes nothing, FFmpeg's default."""


def pq_to_nits(signal: Tensor) -> Tensor:
    """SMPTE ST 2084: cd/m2 from the signal in [0, 1]."""
    power = signal.clamp(0, 1) ** (1 / M2)
    return 10000 * ((power - C1).clamp(min=0) / (C2 - C3 * power)) ** (1 / M1)


def nits_to_pq(nits: Tensor) -> Tensor:
    """The reverse of ``pq_to_nits``."""
    power = (nits / 10000).clamp(0, 1) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def to_light(rgb: Tensor, transfer: int) -> Tensor:
    """Light relative to SDR white from a signal [3, h, w] in [0, 1].

    Args:
        rgb: The signal; HLG in BT.2020, for a display of 1000 cd/m2.
        transfer: Transfer characteristics of ITU-T H.273.
    """
    if transfer == PQ:
        return pq_to_nits(rgb) / WHITE
    if transfer == HLG:
        scene = torch.where(rgb <= 0.5, rgb * rgb / 3, (((rgb - HLG_C) / HLG_A).exp() + HLG_B) / 12)
        return scene * (HLG_PEAK / WHITE) * _luma(scene) ** (HLG_GAMMA - 1)
    if transfer == SRGB:
        return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return rgb ** GAMMAS.get(transfer, 2.4)


def from_light(light: Tensor, transfer: int) -> Tensor:
    """The reverse of ``to_light``. Negative light becomes black, light beyond the signal's range white."""
    light = light.clamp(min=0)
    if transfer == PQ:
        return nits_to_pq(light * WHITE)
    if transfer == HLG:
        display = light * (WHITE / HLG_PEAK)
        scene = display * _luma(display).clamp(min=1e-9) ** (1 / HLG_GAMMA - 1)
        curve = HLG_A * (12 * scene - HLG_B).clamp(min=1e-9).log() + HLG_C
        return torch.where(scene <= 1 / 12, (3 * scene).sqrt(), curve).clamp(max=1)
    if transfer == SRGB:
        return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).clamp(max=1)
    return (light ** (1 / GAMMAS.get(transfer, 2.4))).clamp(max=1)


def tonemap(rgb: Tensor, colour: Colour, operator: Tonemap = "clip", peak: float | None = None) -> Tensor:
    """SDR in BT.709 from HDR.

    Args:
        rgb: The signal, [3, h, w] in [0, 1].
        colour: Of the signal, PQ or HLG; BT.2020 unless its primaries say BT.709.
        operator: What happens to light brighter than SDR white. ``clip``: it becomes white; what is darker keeps its
            brightness exactly. ``mobius``: it is compressed above 0.3 of white, as by FFmpeg's filter. ``bt2390``: it
            is compressed by the curve of ITU-R BT.2390. Both keep the hue.
        peak: cd/m2 of the brightest pixel that is expected; 1000 where it is not known.

    Returns:
        [3, h, w] in [0, 1], for a display by BT.1886.
    """
    light = to_light(rgb, colour.transfer)
    if operator != "clip":
        brightest = light.amax(0)
        scale = CURVES[operator](brightest, max((peak or UNKNOWN_PEAK) / WHITE, 1.001)) / brightest.clamp(min=1e-6)
        light = light * scale
    if colour.primaries != BT709:
        light = torch.einsum("ij,jhw->ihw", light.new_tensor(BT2020_TO_BT709), light)
    return from_light(light, BT709)


def tonemapped(colour: Colour) -> Colour:
    """The description of what ``tonemap`` returns."""
    matrix = BT709 if colour.matrix == BT2020 else colour.matrix
    return dataclasses.replace(colour, matrix=matrix, primaries=BT709, transfer=BT709)


def _mobius(light: Tensor, peak: float) -> Tensor:
    knee = MOBIUS_KNEE
    a = -knee * knee * (peak - 1) / (knee * knee - 2 * knee + peak)
    b = (knee * knee - 2 * knee * peak + peak) / (peak - 1)
    compressed = (b * b + 2 * b * knee + knee * knee) / (b - a) * (light + a) / (light + b)
    return torch.where(light <= knee, light, compressed)


def _bt2390(light: Tensor, peak: float) -> Tensor:
    """The electrical-electrical transfer function of ITU-R BT.2390, black left where it is."""
    source, white = (nits_to_pq(torch.tensor(n * WHITE, dtype=torch.float64)).item() for n in (peak, 1.0))
    signal = nits_to_pq(light * WHITE) / source
    highest = white / source
    knee = 1.5 * highest - 0.5
    t = ((signal - knee) / (1 - knee)).clamp(0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * highest
    return pq_to_nits(torch.where(signal < knee, signal, spline) * source) / WHITE


CURVES: dict[str, Callable[[Tensor, float], Tensor]] = {"mobius": _mobius, "bt2390": _bt2390}


def _luma(rgb: Tensor) -> Tensor:
    red, green, blue = BT2020_LUMA
    return red * rgb[0] + green * rgb[1] + blue * rgb[2]


def content_peak(mastering: bytes | None, light_level: bytes | None) -> float | None:
    """cd/m2 of the brightest pixel, by FFmpeg's side data of a frame; None where it does not say."""
    if light_level is not None and (brightest := int.from_bytes(light_level[:4], "little")):
        return float(brightest)
    if mastering is not None:
        numerator, denominator = (int.from_bytes(mastering[i : i + 4], "little") for i in (72, 76))
        if denominator and numerator and math.isfinite(numerator / denominator):
            return numerator / denominator
    return None
