"""Which pair of input frames each output frame lies between, and where. All times are exact rationals."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

from stif_rt.video.reader import Frame
from stif_rt.video.scenes import is_cut, thumbnail


class Pair(NamedTuple):
    """Two input frames and the times t in [0, 1] of the output frames between them, ascending; a time may repeat."""

    before: Frame
    after: Frame
    times: list[float]


def plan(frames: Iterable[Frame], rate: Fraction) -> Iterator[Pair]:
    """Pairs of consecutive frames with the output times at ``rate`` frames per second.

    Output starts with the first input frame and lasts as long as the input: while the last frame is shown, it is
    repeated. Across a scene cut nothing is interpolated: output shows the nearer of the two frames.
    """
    iterator = iter(frames)
    before = next(iterator, None)
    if before is None:
        return
    origin, number, small = before.start, 0, thumbnail(before.image)
    last = Pair(before, before, [])  # not yielded yet: the last one gets the repetitions of the last frame
    for after in iterator:
        yield last
        end = math.ceil((after.start - origin) * rate)
        length = after.start - before.start
        times = [float((origin + k / rate - before.start) / length) for k in range(number, end)]
        small_after = thumbnail(after.image)
        last = Pair(before, after, times)
        if is_cut(small, small_after):
            shown = sum(t < 0.5 for t in times)
            yield Pair(before, before, [0.0] * shown)
            last = Pair(after, after, [1.0] * (len(times) - shown))
        number, before, small = end, after, small_after
    held = math.ceil((before.end - origin) * rate) - number
    yield Pair(last.before, last.after, last.times + [1.0] * held)


def count(frames: int, input_rate: Fraction, output_rate: Fraction) -> int:
    """Output frames for that many evenly spaced input frames."""
    return math.ceil(frames / input_rate * output_rate)
