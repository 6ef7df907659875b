"""Frames of a clip that are asked for in any order: what each one shows, which encoded pairs are kept, its properties.

``stif_rt.vapoursynth`` is made of this; nothing here imports VapourSynth, which few versions of Python have.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from fractions import Fraction
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from stif_rt.errors import show
from stif_rt.video.colour import Picture
from stif_rt.video.cuts import AHEAD, CONTEXT, detected_cuts
from stif_rt.video.plan import count
from stif_rt.video.reader import LUMA_SIZE, Frame

LARGEST_SIDE = 1 << 16
LARGEST_NUMBER = 2**31 - 1
"""Frames that a clip can have in VapourSynth."""
NEIGHBOURS = range(-CONTEXT, AHEAD + 2)
"""Source frames, counted from n, whose brightness decides whether a scene begins with frame n + 1."""
USUAL_DURATION = Fraction(1, 24)
"""Seconds of a frame where the clip does not say it, to look for scene cuts."""
FEWEST_PAIRS = 2
SCENE_CHANGE_NEXT = "_SceneChangeNext"

Value = TypeVar("Value")


class Position(NamedTuple):
    """Where an output frame lies: at t in [0, 1] between two source frames, which may be the same one."""

    before: int
    after: int
    t: Fraction

    def held(self) -> "Position":
        """The nearer of both frames, for a scene that begins with ``after``."""
        index, t = (self.before, Fraction(0)) if self.t < Fraction(1, 2) else (self.after, Fraction(1))
        return Position(index, index, t)


class Timeline(NamedTuple):
    """The output frames of a clip.

    frames: of the source. factor: output frames per source frame. fps: of the output, 0 where it varies.
    """

    frames: int
    factor: Fraction
    fps: Fraction

    @property
    def length(self) -> int:
        """Output frames; as ``stif-rt render``, up to the end of the last source frame."""
        return count(self.frames, Fraction(1), self.factor)

    def position(self, number: int) -> Position:
        """The source frames and the time that an output frame shows. The last one is repeated while it lasts."""
        moment = number / self.factor
        before = math.floor(moment)
        if before < self.frames - 1:
            return Position(before, before + 1, moment - before)
        return Position(max(self.frames - 2, 0), self.frames - 1, Fraction(1))


def make_timeline(
    frames: int,
    fps: Fraction,
    factor_num: int = 1,
    factor_den: int = 1,
    fps_num: int | None = None,
    fps_den: int | None = None,
) -> Timeline:
    """The output frames for a factor or a rate.

    Args:
        frames: Of the source.
        fps: Of the source, 0 where it varies.
        factor_num, factor_den: Output frames per source frame.
        fps_num, fps_den: Output frames per second instead; ``fps_den`` is 1 by default.

    Raises:
        ValueError: A number is not a positive integer, both ways are used, or the clip has no rate to compare with.
    """
    factor = _ratio(factor_num, factor_den, "factor")
    if fps_num is None:
        if fps_den is not None:
            raise ValueError(f"fps_den={show(fps_den)} needs fps_num")
    elif factor != 1:
        raise ValueError("give either factor_num and factor_den, or fps_num and fps_den, not both")
    elif fps <= 0:
        raise ValueError("a clip of a variable frame rate has no fps_num; give factor_num, or use std.AssumeFPS before")
    else:
        factor = _ratio(fps_num, 1 if fps_den is None else fps_den, "fps") / fps
    timeline = Timeline(frames, factor, fps * factor)
    if timeline.length > LARGEST_NUMBER:
        raise ValueError(f"the output would have {timeline.length} frames; a clip holds at most {LARGEST_NUMBER}")
    return timeline


def _ratio(numerator: int, denominator: int, name: str) -> Fraction:
    for number, part in ((numerator, "num"), (denominator, "den")):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number < 1 << 63:
            raise ValueError(f"{name}_{part} must be a positive integer, not {show(number)}")
    return Fraction(numerator, denominator)


class Window(NamedTuple):
    """Which part of the source the output shows, and how large. Sizes are (height, width).

    picture: at which the whole source would be rendered. region: (y, x, height, width), the part of it that is wanted.
    stretch: width over height of an output pixel, in terms of the source's pixels.
    """

    picture: tuple[int, int]
    region: tuple[int, int, int, int]
    stretch: Fraction


def make_window(
    inputs: tuple[int, int],
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    src_left: float = 0,
    src_top: float = 0,
    src_width: float | None = None,
    src_height: float | None = None,
) -> Window:
    """The window for arguments that are named as those of VapourSynth's ``resize``.

    Args:
        inputs: (height, width) of the source.
        scale: Output pixels per source pixel, 1 where no size is given either.
        width, height: Of the output; with one of them the window keeps its shape.
        src_left, src_top: Where the window begins, in source pixels, also fractions; rounded to whole output pixels.
        src_width, src_height: Of the window; by default what is left of the source.

    Raises:
        ValueError: The window does not lie in the source, or a size cannot be.
    """
    if scale is not None and (width is not None or height is not None):
        raise ValueError("give either scale, or width and height, not both")
    tops = _part(inputs[0], src_top, src_height, "src_top", "src_height")
    lefts = _part(inputs[1], src_left, src_width, "src_left", "src_width")
    factor = Fraction(1) if scale is None else _number(scale, "scale")
    if factor <= 0:
        raise ValueError(f"scale must be a positive number, not {show(scale)}")
    stretch = Fraction(1)
    if width is not None and height is not None:
        stretch = (lefts[1] / _side(width, "width")) / (tops[1] / _side(height, "height"))
    elif width is not None:
        height = max(1, round(tops[1] * _side(width, "width") / lefts[1]))
    elif height is not None:
        width = max(1, round(lefts[1] * _side(height, "height") / tops[1]))
    else:
        height, width = (max(1, round(length * factor)) for _, length in (tops, lefts))
    vertical, horizontal = _axis(inputs[0], *tops, height), _axis(inputs[1], *lefts, width)
    picture = vertical[0], horizontal[0]
    if max(picture) > LARGEST_SIDE:
        sides = f"{picture[1]}x{picture[0]}"
        raise ValueError(f"the whole picture at that size would have {sides} pixels; sides go up to {LARGEST_SIDE}")
    return Window(picture, (vertical[1], horizontal[1], height, width), stretch)


def _number(value: float, name: str) -> Fraction:
    try:
        return Fraction(value)
    except (TypeError, ValueError, OverflowError) as error:  # NaN and infinities too
        raise ValueError(f"{name} must be a number, not {show(value)}") from error


def _side(value: int, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIDE:
        raise ValueError(f"{name} must be an integer from 1 to {LARGEST_SIDE}, not {show(value)}")
    return value


def _part(side: int, first: float, length: float | None, first_name: str, name: str) -> tuple[Fraction, Fraction]:
    """Where the window begins along one axis, and its length."""
    start = _number(first, first_name)
    extent = side - start if length is None else _number(length, name)
    if start < 0 or extent <= 0 or start + extent > side:
        given = f"{first_name}={show(first)}, {name}={show(length)}"
        raise ValueError(f"{given}: the window must lie in the clip's {side} pixels")
    return start, extent


def _axis(side: int, start: Fraction, extent: Fraction, outputs: int) -> tuple[int, int]:
    """Pixels of the whole picture along one axis, and where the window begins in it."""
    whole = max(outputs, round(side * outputs / extent))
    return whole, min(round(start * outputs / extent), whole - outputs)


class PairCache(Generic[Value]):
    """Encoded pairs, kept for the frames that are asked for next, of whichever thread: each pair is encoded once.

    Those that were used longest ago are dropped first, but for ``FEWEST_PAIRS``.
    """

    def __init__(self, max_bytes: int, size: Callable[[Value], int]) -> None:
        """max_bytes: what the kept ones may take together. size: bytes of one."""
        self._max_bytes = max_bytes
        self._size = size
        self._lock = threading.Lock()
        self._pairs: OrderedDict[tuple[int, int], Future[Value]] = OrderedDict()

    def get(self, key: tuple[int, int], encode: Callable[[], Value]) -> Value:
        """The pair of a key; ``encode`` makes it where it is not kept. Threads wait for what another one encodes."""
        with self._lock:
            waiting = self._pairs.get(key)
            future = self._pairs.setdefault(key, Future())
            self._pairs.move_to_end(key)
        if waiting is None:
            try:
                future.set_result(encode())
            except BaseException as error:
                with self._lock:
                    if self._pairs.get(key) is future:
                        del self._pairs[key]
                future.set_exception(error)
                raise
            self._keep_room()
        return future.result()

    def _keep_room(self) -> None:
        with self._lock:
            kept = [(key, self._size(pair.result())) for key, pair in self._pairs.items() if pair.done()]
            total = sum(size for _, size in kept)
            for key, size in kept[:-FEWEST_PAIRS]:
                if total <= self._max_bytes:
                    break
                del self._pairs[key]
                total -= size


def output_properties(
    before: Mapping[str, Any], after: Mapping[str, Any], position: Position, timeline: Timeline, stretch: Fraction
) -> dict[str, Any]:
    """The properties of an output frame: those of the source frame, but for times, scene changes and pixel shape.

    Args:
        before, after: Properties of the frames of ``position``.
        position: Where the output frame lies.
        timeline: Of the clip.
        stretch: ``Window.stretch``.
    """
    source = after if position.t == 1 else before
    properties = {name: value for name, value in source.items() if not name.startswith("_SceneChange")}
    if timeline.fps > 0:
        duration: Fraction | None = 1 / timeline.fps
    else:
        duration = _fraction(properties, "_DurationNum", "_DurationDen")
        duration = duration and duration / timeline.factor
    if duration is not None:
        properties |= {"_DurationNum": duration.numerator, "_DurationDen": duration.denominator}
    shape = _fraction(properties, "_SARNum", "_SARDen")
    if shape is not None:
        shape *= stretch
        properties |= {"_SARNum": shape.numerator, "_SARDen": shape.denominator}
    start, end = (frame.get("_AbsoluteTime") for frame in (before, after))
    if isinstance(start, float) and isinstance(end, float):
        properties["_AbsoluteTime"] = start + (end - start) * float(position.t)
    return properties


def _fraction(properties: Mapping[str, Any], numerator: str, denominator: str) -> Fraction | None:
    """A property in two parts; None where one is missing or makes no sense."""
    above, below = properties.get(numerator), properties.get(denominator)
    if isinstance(above, int) and isinstance(below, int) and above > 0 and below > 0:
        return Fraction(above, below)
    return None


def luma_size(inputs: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the planes in which scene cuts are found."""
    scale = min(1.0, LUMA_SIZE / max(inputs))
    return max(1, round(inputs[0] * scale)), max(1, round(inputs[1] * scale))


def scene_begins(lumas: Sequence[NDArray[np.uint8]], index: int, fps: Fraction, threshold: float) -> bool:
    """Whether a scene begins with the plane at ``index``, by the detector of ``stif-rt render``.

    Args:
        lumas: Small brightness planes of successive frames, with those of ``NEIGHBOURS`` that the clip has.
        index: Of a plane other than the first.
        fps: Of the clip, 0 where it varies.
        threshold: See ``detected_cuts``.
    """
    duration = 1 / fps if fps > 0 else USUAL_DURATION
    nothing = Picture(torch.zeros(3, 1, 1))
    frames = [Frame(n * duration, (n + 1) * duration, nothing, luma) for n, luma in enumerate(lumas)]
    return list(detected_cuts(frames, threshold))[index][1]
