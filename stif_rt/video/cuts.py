"""Scene cuts: neighbouring frames that show different things, between which nothing can be interpolated.

The detector compares small luma planes. A change counts in relation to the picture's brightness, so that dark scenes
are cut as bright ones are, and to the changes just before and after it, so that fast motion is no cut.

The constants were chosen on *Big Buck Bunny*: all its 124 cuts are found, with three false ones (an iris that closes
and opens, credits that appear) in 14,315 frames. On clips that played no part in that: the *Sintel* trailer 10 of 10
cuts and none false among its quick camera moves, fades and animation on twos; 37 clips of real cameras without a cut
(6,400 frames: hands, cars, walkers, hand-held and black-and-white film) none. The mean absolute difference of colour
thumbnails that was used before finds 6 of those 10 with 7 false ones. A frame costs 0.08 ms, and 1 ms for shrinking it.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stif_rt.video.reader import LUMA_SIZE, Frame, Image, Reader

THRESHOLD = 0.6
"""Score above which a change is a cut; higher finds fewer. Cuts were at 0.98 or more, motion at 0.3 or less."""
CONTEXT = 10
"""Frames before and after a change that can decide on it."""

AHEAD = 2
HISTORY = 8
DARKNESS = 8.0
"""Added to the brightness that a change is related to: what is nearly black needs an absolute change. Of 255."""
STILLNESS = 0.5
"""Added to the changes nearby, likewise; what is below that is a repeated picture. Of 255."""
LARGEST_RATIO = 4.0
UNKNOWN_RATIO = 1.8
"""At least this is the ratio where the changes nearby tell nothing: there are none, or pictures are far apart."""
FAR_APART = Fraction(1, 5)
TOLERANCE = Fraction(1, 500)
"""Seconds by which listed times may be rounded."""

Cuts = Callable[[Iterable[Frame]], Iterator[tuple[Frame, bool]]]
"""Gives every frame, with whether a scene begins with it."""


class _Step(NamedTuple):
    """From one frame to the next. change: mean absolute difference; brightness: of the darker one; both of 255."""

    change: float
    brightness: float
    seconds: Fraction


def small_luma(image: Image) -> NDArray[np.uint8]:
    """The brightness of an RGB picture, uint8 [height, width, 3], shrunk to at most ``LUMA_SIZE`` a side."""
    height, width = image.shape[:2]
    scale = min(1.0, LUMA_SIZE / max(height, width))
    rgb = torch.from_numpy(image).float()
    luma = rgb @ rgb.new_tensor([0.2126, 0.7152, 0.0722])
    small = F.interpolate(luma[None, None], (max(1, round(height * scale)), max(1, round(width * scale))), mode="area")
    return small[0, 0].round().byte().numpy()


def no_cuts(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Takes everything for one scene."""
    return ((frame, False) for frame in frames)


def detected_cuts(frames: Iterable[Frame], threshold: float = THRESHOLD) -> Iterator[tuple[Frame, bool]]:
    """Finds cuts, reading ``AHEAD`` frames ahead."""
    earlier: deque[_Step] = deque(maxlen=HISTORY)
    waiting: deque[tuple[Frame, _Step | None]] = deque()
    luma: NDArray[np.float32] | None = None
    brightness = 0.0

    def decided() -> tuple[Frame, bool]:
        frame, step = waiting.popleft()
        if step is None:
            return frame, False
        score = _score(step, earlier, [later for _, later in waiting if later is not None])
        earlier.append(step)
        return frame, score > threshold

    start = Fraction(0)
    for frame in frames:
        plane = (small_luma(frame.image) if frame.luma is None else frame.luma).astype(np.float32)
        mean = float(plane.mean())
        step = None
        if luma is not None:
            step = _Step(float(np.abs(plane - luma).mean()), min(mean, brightness), frame.start - start)
        luma, brightness, start = plane, mean, frame.start
        waiting.append((frame, step))
        if len(waiting) > AHEAD:
            yield decided()
    while waiting:
        yield decided()


def _score(step: _Step, earlier: Sequence[_Step], later: Sequence[_Step]) -> float:
    """How much ``step`` looks like a cut; 0 and less where it changes no more than its neighbours do."""
    near = [*list(earlier)[-AHEAD:], *later]
    if all(other.change <= STILLNESS for other in near):  # pictures may be repeated: what moved before them?
        moving = [other for other in earlier if other.change > STILLNESS]
        near += sorted(moving[-3:])[-2:-1]  # not the largest, which may have been a cut itself
    changes = [other.change * max(1.0, float(step.seconds / other.seconds)) for other in near]
    ratio = step.change / (max(changes) + STILLNESS) if near else UNKNOWN_RATIO
    if step.seconds > FAR_APART:
        ratio = max(ratio, UNKNOWN_RATIO)
    return (min(ratio, LARGEST_RATIO) ** 2 - 1) * step.change / (step.brightness + DARKNESS)


def listed_cuts(times: Sequence[Fraction]) -> Cuts:
    """Cuts at the frames that start at ``times``, or first after them; seconds after the first frame."""

    def cuts(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
        before: Fraction | None = None
        for frame in frames:
            until = frame.start + TOLERANCE
            yield frame, before is not None and any(before < time <= until for time in times)
            before = until

    return cuts


def read_cuts(path: Path, reader: Reader) -> Cuts:
    """The cuts that a text file lists, one a line: the number of the frame that begins a scene (0 is the first one), or
    its time in seconds ("12.5", "12s") or as "1:02:03.5". Lines that are empty or begin with # say nothing.

    Raises:
        ValueError: for a line that is neither, and a file that is not text.
    """
    numbers, times = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"the list of cuts {path} cannot be read: {error}") from error
    for line in lines:
        text = line.split("#")[0].strip().removesuffix("s")
        try:
            if text.isdecimal() and not line.strip().endswith("s"):
                numbers.append(int(text))
            elif text:
                parts = [Fraction(part) for part in text.split(":")]
                times.append(functools.reduce(lambda total, part: 60 * total + part, parts))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{path}: {line.strip()!r} is neither the number of a frame nor a time") from error
    if numbers:
        starts = reader.starts()
        times += [starts[number] for number in numbers if number < len(starts)]
    return listed_cuts(sorted(times))
