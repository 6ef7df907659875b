"""Frames in, frames out, for people who read and write their own: what ``stif-rt render`` does between two files."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.runtime import Picture, Runtime, weights_for_scale
from stif_rt.runtime.frames import check_frame, check_values
from stif_rt.schema import convert
from stif_rt.video import colour
from stif_rt.video.cuts import THRESHOLD, Cuts, detected_cuts, listed_cuts, no_cuts
from stif_rt.video.layout import Fit, make_layout
from stif_rt.video.plan import MAX_GAP, plan
from stif_rt.video.rates import Number, output_rates, parse_number
from stif_rt.video.reader import Frame
from stif_rt.video.render import NetworkRenderer

Output = Literal["float32", "uint8"]


def interpolate(
    frames: Iterable[Picture],
    *,
    input_fps: Number = 24,
    times: Iterable[Number] | None = None,
    fps: Number | None = None,
    time_scale: Number | None = None,
    slow_motion: Number | None = None,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "stretch",
    cuts: Literal["auto", "none"] | Sequence[Number] = "auto",
    cut_threshold: float = THRESHOLD,
    max_gap: Number = MAX_GAP,
    keep_frames: bool = True,
    output: Output = "uint8",
    runtime: Runtime | None = None,
    weights: str | Path | None = None,
) -> Iterator[NDArray[Any] | Tensor]:
    """Frames at another rate and size, with the times and the scene cuts of ``stif-rt render``.

    Frames are taken from the iterable a few at a time, as they are needed.

    Args:
        frames: in the order they are shown, all of one size; each of a kind that ``Runtime.encode`` takes.
        input_fps: frames per second of ``frames``.
        times: when each frame is shown instead, seconds, ascending.
        fps: output frames per second.
        time_scale: output frames per input frame.
        slow_motion: how many times as long as the input the output plays.
        scale: output pixels per input pixel, any positive number; default 1.
        size: (H, W) instead.
        fit: for a size of another shape: ``contain``, ``cover`` or ``stretch``.
        cuts: ``auto`` finds scene cuts, across which nothing is interpolated; ``none``; or the times of the frames that
            begin a scene, seconds after the first frame.
        cut_threshold: higher finds fewer cuts.
        max_gap: seconds between two frames above which the first one is held.
        keep_frames: where the size stays, give the input's frames at their own times, not rendered ones.
        output: ``uint8``, [H, W, 3] in 0..255, or ``float32``, [3, H, W] in [0, 1].
        runtime: makes the pictures; by default ``Runtime.load(weights)``.
        weights: a weights file, a bundle or a name, instead of a runtime; by default the bundled weights that fit the
            scale.

    Yields:
        NumPy arrays where the first frame is one (or a PIL picture), else tensors on the runtime's device.

    Raises:
        TypeError, ValueError: for frames and options that cannot be used.
    """
    if runtime is not None and weights is not None:
        raise ValueError("give either a runtime or weights, not both")
    if scale is not None and size is not None:
        raise ValueError("give either scale or size, not both")
    scale = convert(scale, float | None, "scale")
    fit, output = convert(fit, Fit, "fit"), convert(output, Output, "output")
    rate = parse_number(input_fps, "input_fps")
    rates = output_rates(rate, time_scale, fps, slow_motion)
    detector = _detector(cuts, convert(cut_threshold, float, "cut_threshold"))
    gap = parse_number(max_gap, "max_gap")
    return _interpolated(
        frames, times, rate, rates.sampling, scale, size, fit, detector, gap, keep_frames, output, runtime, weights
    )


def _interpolated(
    frames: Iterable[Picture],
    times: Iterable[Number] | None,
    rate: Fraction,
    sampling: Fraction,
    scale: float | None,
    size: tuple[int, int] | None,
    fit: Fit,
    cuts: Cuts,
    max_gap: Fraction,
    keep_frames: bool,
    output: Output,
    runtime: Runtime | None,
    weights: str | Path | None,
) -> Iterator[NDArray[Any] | Tensor]:
    """The generator of ``interpolate``, whose arguments are checked when it is called."""
    waiting = iter(frames)
    first = list(itertools.islice(waiting, 1))
    if not first:
        raise ValueError("there are no frames to interpolate")
    h, w = check_frame(first[0], "frame 0").pixels.shape[-2:]
    height, width = size or (None, None)
    layout = make_layout((h, w), 1 if scale is None and size is None else scale, width, height, fit)
    if runtime is None:
        runtime = Runtime.load(weights_for_scale(layout.scale((h, w))) if weights is None else weights)
    render_pair = NetworkRenderer(runtime, layout, lambda picture: {"rgb": picture.rgb}, keep_frames)
    timed = _timed(itertools.chain(first, waiting), times, rate, runtime.device)
    for pair in plan(timed, sampling, cuts, max_gap):
        for components in render_pair(pair.before.picture, pair.after.picture, pair.times):
            rgb = components["rgb"]
            if output == "uint8":
                rgb = (rgb * 255).round_().byte().movedim(0, -1).contiguous()
            else:
                rgb = rgb.clone()
            yield np.asarray(rgb.cpu()) if not isinstance(first[0], Tensor) else rgb


def _timed(
    frames: Iterable[Picture],
    times: Iterable[Number] | None,
    rate: Fraction,
    device: torch.device,
) -> Iterator[Frame]:
    """Checked frames, at least one, with their times; each is kept until the next one says when it ends."""
    starts = iter(_counted(rate) if times is None else (Fraction(time) for time in times))
    waiting: tuple[Fraction, colour.Picture] | None = None
    length = 1 / rate
    for number, frame in enumerate(frames):
        name = f"frame {number}"
        pixels, batched = check_frame(frame, name)
        if batched:
            raise ValueError(f"{name} is a batch; give the frames one by one")
        check_values(pixels, name)
        rgb = pixels[0].to(device).float()
        rgb = rgb / 255 if pixels.dtype == torch.uint8 else rgb
        start = next(starts, None)
        if start is None:
            raise ValueError(f"there are more frames than times: {number}")
        if waiting is not None:
            before, picture = waiting
            if picture.rgb.shape != rgb.shape:
                sizes = " and ".join("x".join(map(str, reversed(p.shape[1:]))) for p in (picture.rgb, rgb))
                raise ValueError(f"all frames must have one size; frame {number - 1} and {name} are {sizes}")
            if start <= before:
                raise ValueError(f"times must ascend, but {name} is at {float(start):g} s after {float(before):g} s")
            length = start - before
            yield Frame(before, start, picture)
        waiting = start, colour.Picture(rgb)
    assert waiting is not None
    yield Frame(waiting[0], waiting[0] + length, waiting[1])


def _counted(rate: Fraction) -> Iterator[Fraction]:
    number = 0
    while True:
        yield number / rate
        number += 1


def _detector(cuts: str | Sequence[Number], threshold: float) -> Cuts:
    """The detector of scene cuts that ``interpolate`` is asked for."""
    if cuts == "none":
        return no_cuts
    if cuts == "auto":
        return lambda frames: detected_cuts(frames, threshold)
    if isinstance(cuts, str):
        raise ValueError(f"cuts must be 'auto', 'none' or a sequence of times, not {cuts!r}")
    return listed_cuts(sorted(Fraction(time) for time in cuts))
