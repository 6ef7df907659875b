"""Checks of what ``render`` and ``flow`` are asked for: times, size, region."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.errors import show
from stif_rt.geometry import Box, Geometry, make_geometry
from stif_rt.model.config import Config
from stif_rt.model.implicit_functions import check_time

LARGEST_SIDE = 1 << 16

Times = float | Sequence[float] | NDArray[np.floating] | Tensor
Scale = float | tuple[float, float] | None
Size = tuple[int, int] | None
Region = tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Request:
    """Checked arguments of ``render`` or ``flow``.

    times: float32 [B, T] on the pair's device. several: whether T is an axis of the result. region: the output pixels
    that are wanted, of the picture whose size is ``geometry.outputs``.
    """

    times: Tensor
    several: bool
    geometry: Geometry
    region: Box


def check_request(
    config: Config,
    inputs: tuple[int, int],
    batch: int | None,
    device: torch.device,
    t: Times,
    scale: Scale,
    size: Size,
    region: Region,
) -> Request:
    """The arguments of ``Pair.render``, checked, for frames of ``inputs`` (h, w) in a batch, or alone if None.

    Raises:
        ValueError: One of them is outside its range.
    """
    times, several = _check_times(t, batch)
    check_time(config, times)
    H, W = output_size(inputs, scale, size)
    box = Box(0, 0, H, W)
    if region is not None:
        box = Box(*_integers(region, 4, "region (y, x, height, width)"))
        if box.height < 1 or box.width < 1 or not Box(0, 0, H, W).contains(box):
            raise ValueError(f"region (y, x, height, width) {show(tuple(box))} does not lie in the {H}x{W} picture")
    # without non_blocking, PyTorch would wait until the GPU has done all that it was given before
    times = times.to(device, non_blocking=True)
    return Request(times, several, _geometry(config, inputs, (H, W), device), box)


def _check_times(t: Times, batch: int | None) -> tuple[Tensor, bool]:
    """Times [B, T] on the CPU, and whether T is an axis of what was given. Waits for the device only if t is there."""
    try:
        given = np.asarray(t.detach().float().cpu().numpy() if isinstance(t, Tensor) else t)
        if given.dtype.kind in "SU" or None in given.flatten().tolist():  # NumPy takes text for numbers, None for NaN
            raise TypeError("not numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold lies outside too
            times = given.astype(np.float64).astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"t must be a number in [0, 1] or a sequence of them, not {show(t)}") from error
    if times.ndim > (1 if batch is None else 2) or not times.size:
        allowed = "" if batch is None else f", or [{batch}, T], times of each pair"
        raise ValueError(
            f"t must be a number or a sequence of at least one{allowed}; it has the shape {list(times.shape)}"
        )
    if times.ndim == 2 and len(times) != batch:
        raise ValueError(f"t has times of {len(times)} pairs, and there are {batch}")
    outside = times[~((times >= 0) & (times <= 1))]  # NaN too
    if len(outside):
        raise ValueError(f"t must lie in [0, 1], between the two frames; got {outside[0]:g}")
    rows = np.broadcast_to(np.atleast_2d(times), (batch or 1, times.shape[-1] if times.ndim else 1))
    return torch.from_numpy(rows.copy()), times.ndim > 0


def output_size(inputs: tuple[int, int], scale: Scale, size: Size) -> tuple[int, int]:
    """The size (H, W) of the picture that is rendered from frames of ``inputs`` (h, w).

    Args:
        inputs: (h, w) of the frames.
        scale: Output pixels per input pixel: one positive number, or two, vertical and horizontal. Default 1.
        size: (H, W), instead of a scale.

    Raises:
        ValueError: Both are given, or one is unusable.
    """
    if scale is not None and size is not None:
        raise ValueError("give either scale or size, not both")
    if size is not None:
        H, W = _integers(size, 2, "size (H, W)")
    else:
        H, W = (max(1, round(min(n * factor, 2.0**40))) for n, factor in zip(inputs, _factors(scale), strict=True))
    if not (1 <= H <= LARGEST_SIDE and 1 <= W <= LARGEST_SIDE):
        raise ValueError(f"size (H, W) must be from 1x1 to {LARGEST_SIDE}x{LARGEST_SIDE}, not {H}x{W}")
    return H, W


def _factors(scale: Scale) -> tuple[float, float]:
    """(vertical, horizontal)."""
    problem = f"scale must be a positive number, or two: (vertical, horizontal), not {show(scale)}"
    try:
        factors = np.broadcast_to(np.asarray(1.0 if scale is None else scale, dtype=np.float64), 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(problem) from error
    if isinstance(scale, str) or not all(factor > 0 and math.isfinite(factor) for factor in factors):
        raise ValueError(problem)
    return float(factors[0]), float(factors[1])


def _integers(values: Sequence[int], count: int, name: str) -> list[int]:
    try:
        numbers = np.asarray(values, dtype=np.float64).reshape(-1)
        if len(numbers) == count and np.array_equal(numbers, np.rint(numbers)) and np.isfinite(numbers).all():
            return [int(number) for number in numbers]
    except (TypeError, ValueError, OverflowError):
        pass  # said below
    raise ValueError(f"{name} must be {count} numbers of whole pixels, not {show(values)}")


@functools.lru_cache(maxsize=8)
def _geometry(config: Config, inputs: tuple[int, int], outputs: tuple[int, int], device: torch.device) -> Geometry:
    return make_geometry(config, inputs, outputs).to(device)
