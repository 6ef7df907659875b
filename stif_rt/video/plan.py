"""Which pair of input frames each output frame lies between, and where. All times are exact rationals."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import torch.nn.functional as F

from stif_rt.video.cuts import Cuts, detected_cuts
from stif_rt.video.reader import Frame

MAX_GAP = Fraction(1)
"""Seconds between two input frames above which the first one is held: that long, nothing is known of the motion."""
CUT_GAP = Fraction(1, 5)
"""Seconds between the frames of a cut above which it is shown when the later one starts (slides), not halfway."""


DUPLICATE = 1.5 / 255
"""Mean difference of the 16x16 blocks that differ most, of the full range, up to which a picture repeats another."""


class Pair(NamedTuple):
    """Two input frames and the times t in [0, 1] of the output frames between them, ascending; a time may repeat."""

    before: Frame
    after: Frame
    times: list[float]


def plan(
    frames: Iterable[Frame],
    rate: Fraction,
    cuts: Cuts = detected_cuts,
    max_gap: Fraction = MAX_GAP,
    origin: Fraction | None = None,
    first: int = 0,
    stop: int | None = None,
) -> Iterator[Pair]:
    """Pairs of consecutive frames with the output times at ``rate`` frames per second.

    Output frame k shows the time ``origin + k / rate``, up to the end of the last input frame, which is repeated while
    it is shown. Across a scene cut nothing is interpolated: output shows the nearer of the two frames, or the first
    one until the second one starts where they are far apart. Nor is it across a gap longer than ``max_gap``.

    A part of the output equals that part of the whole if ``frames`` are those that ``Reader.read`` gives for the
    part's times with ``context=cuts.CONTEXT``.

    Args:
        frames: in the order they are shown.
        rate: output frames per second of input.
        cuts: which frames begin a scene.
        max_gap: seconds between two frames above which the first one is held.
        origin: time of output frame 0, seconds; None for the first of ``frames``.
        first: number of the first output frame wanted.
        stop: number of the output frame before which to stop; None for all.
    """
    iterator = cuts(frames)
    before, _ = next(iterator, (None, False))
    if before is None:
        return
    start = before.start if origin is None else origin
    number = first

    def numbers_until(time: Fraction) -> range:
        """The output frames not yet planned that are shown before ``time``."""
        end = math.ceil((time - start) * rate)
        return range(number, max(number, end if stop is None else min(end, stop)))

    last = Pair(before, before, [])  # not yielded yet: the last one gets the repetitions of the last frame
    for after, cut in iterator:
        yield last
        numbers = numbers_until(after.start)
        length = after.start - before.start
        times = [float(max(start + k / rate - before.start, Fraction(0)) / length) for k in numbers]
        last = Pair(before, after, times)
        if length > max_gap or (cut and length > CUT_GAP):
            last = Pair(before, before, [0.0] * len(times))
        elif cut:
            held = sum(t < 0.5 for t in times)
            yield Pair(before, before, [0.0] * held)
            last = Pair(after, after, [1.0] * (len(times) - held))
        number, before = numbers.stop, after
        if number == stop:
            break
    repeated = [1.0] * len(numbers_until(before.end))
    if last.after is before:
        yield Pair(last.before, last.after, last.times + repeated)
    else:
        yield last
        yield Pair(before, before, repeated)


def without_duplicates(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Leaves out frames that repeat the one before, which is shown for as long instead: animation on twos, pulldown."""
    shown: Frame | None = None
    before: Frame | None = None
    for frame in frames:
        if shown is not None and before is not None and _is_repeated(before, frame):
            shown = shown._replace(end=frame.end)
        else:
            if shown is not None:
                yield shown
            shown = frame
        before = frame
    if shown is not None:
        yield shown


def _is_repeated(before: Frame, after: Frame) -> bool:
    change = (after.picture.rgb - before.picture.rgb).abs().mean(0, keepdim=True)
    return bool(F.avg_pool2d(change, 16, ceil_mode=True, count_include_pad=False).max() <= DUPLICATE)


def count(frames: int, input_rate: Fraction, output_rate: Fraction) -> int:
    """Output frames for that many evenly spaced input frames."""
    return math.ceil(frames / input_rate * output_rate)
