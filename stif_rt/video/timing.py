"""Raw timestamps into a sane timeline: continuous, strictly increasing, with every decoded picture on it.

Three steps, each local and deterministic, so that a file read twice gives the same times: ``Continuity`` mends jumps of
a file's packets before they are decoded, ``pts_are_invented`` decides once which of a picture's two timestamps to
believe, and ``timeline`` gives a place to pictures whose timestamp is missing, repeated or out of order.
"""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import av

from stif_rt.video.notices import Notices

BACKWARD_JUMP = Fraction(1, 10)
"""Seconds by which decoding times may fall back before they are taken to start again. FFmpeg allows the same."""
FORWARD_JUMP = 10
"""Seconds of a gap that is taken for a jump, in containers whose clock may be reset (TS, VOB, FLV)."""
FORWARD_JUMP_ELSEWHERE = 600
"""The same in other containers, where a long gap more often is a picture that stands still."""
OVERLAP = Fraction(1, 2)
"""Seconds by which a stream may overlap itself where it follows a jump that another stream made first."""
MAX_PENDING = 8
"""Pictures without a usable timestamp that are held back, at most, for one with a usable timestamp."""

T = TypeVar("T")


@dataclass
class _Clock:
    """A stream's clock.

    offset: seconds added to its raw times. start, end: of its last packet, with the offset.
    """

    offset: Fraction
    start: Fraction
    end: Fraction


class Continuity:
    """Moves the packets of a file so that the clock of its sound and pictures neither jumps nor starts again.

    Sound and picture that jump together get the same offset, so they stay in step. A gap that another stream fills is
    no jump: there the picture stands still, or the sound is silent.

    Args:
        container: the open input; its format says whether clocks may be reset.
        notices: gets one for each jump.

    Attributes:
        may_reset: whether clocks are reset in files of that format.
        jumps: how many were met.
    """

    def __init__(self, container: "av.container.InputContainer", notices: Notices) -> None:
        self.may_reset = bool(av.format.Flags.ts_discont & av.format.Flags(container.format.flags))
        self.forward = FORWARD_JUMP if self.may_reset else FORWARD_JUMP_ELSEWHERE
        self.notices = notices
        self.offset = Fraction(0)  # the newest one of any stream
        self.jumps = 0
        self._begin = Fraction(0)
        self._clocks: dict[int, _Clock] = {}

    def correct(self, packet: "av.Packet[Any]") -> None:
        """Adds the offset that is due to the packet's timestamps. Packets must come in the order of the file."""
        offset = self._offset(packet) if packet.stream.type in ("video", "audio") else self.offset
        if offset:
            ticks = round(offset / packet.time_base)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks

    def _offset(self, packet: "av.Packet[Any]") -> Fraction:
        clock = self._clocks.get(packet.stream_index)
        if packet.dts is None:
            return clock.offset if clock else self.offset
        raw = packet.dts * packet.time_base
        if clock is None:
            if not self._clocks:
                self._begin = raw
            clock = self._clocks[packet.stream_index] = _Clock(self.offset, raw + self.offset, raw + self.offset)
        if abs(self.offset - clock.offset) <= OVERLAP:
            clock.offset = self.offset  # another stream has jumped a little: at once, to stay in step
        jump = raw + clock.offset - clock.end
        back = clock.end - BACKWARD_JUMP
        if self.may_reset and packet.stream.type == "video":
            back = clock.start  # no video's decoding times ever fall back within one recording
        if (raw + clock.offset < back or jump > self.forward) and not self._is_filled(clock, jump):
            if not -OVERLAP <= raw + self.offset - clock.end <= self.forward or self.offset == clock.offset:
                self.offset = clock.end - raw
                self.jumps += 1
                place = f"{float(clock.end - self._begin):.2f} s"
                self.notices.add("timestamps jump; what follows is moved to continue", place)
            clock.offset = self.offset
        clock.start = raw + clock.offset
        clock.end = raw + clock.offset + (packet.duration or 0) * packet.time_base
        return clock.offset

    def _is_filled(self, clock: _Clock, jump: Fraction) -> bool:
        return any(other.end - clock.end > jump / 2 > 0 for other in self._clocks.values())


def pts_are_invented(pts: Sequence[int | None], dts: Sequence[int | None]) -> bool:
    """Whether the presentation times of consecutive pictures are worth less than the decoding times of their packets.

    AVI and raw streams hold no presentation times; a demuxer's guess comes in coding order and goes back and forth.
    """

    def faults(times: Sequence[int | None]) -> int:
        known = [time for time in times if time is not None]
        return sum(b <= a for a, b in itertools.pairwise(known)) + len(times) - len(known)

    while dts and dts[-1] is None:  # pictures that a decoder gives at the end of a stream come without one
        pts, dts = pts[:-1], dts[:-1]
    return 8 * (faults(pts) - faults(dts)) > len(pts)


def measured_rate(times: Sequence[Fraction], nominal: Fraction | None) -> Fraction | None:
    """Frames per second: ``nominal`` where ``times`` bear it out, else their own mean without long gaps.

    Args:
        times: of consecutive pictures, seconds, ascending.
        nominal: what the file says.

    Returns:
        None where neither says anything.
    """
    steps = [b - a for a, b in itertools.pairwise(times)]
    usual = statistics.median([step for step in steps if step] or [Fraction(0)])
    total = sum(step for step in steps if step <= 8 * usual)
    mean = sum(step <= 8 * usual for step in steps) / total if total else None
    if nominal is not None and nominal > 0:
        fitting = sum(_is_near(step * nominal) for step in steps)
        if 10 * fitting >= len(steps) or (mean is not None and _is_near(mean / nominal)):
            return nominal
    return mean


def _is_near(ratio: Fraction) -> bool:
    """To one."""
    return Fraction(2, 3) <= ratio <= Fraction(3, 2)


def timeline(
    pictures: Iterable[tuple[Fraction | None, Fraction, T]], step: Fraction
) -> Iterator[tuple[Fraction, Fraction, T]]:
    """Gives every picture a start later than the one before.

    A picture without a usable time lies evenly between its neighbours; after ``MAX_PENDING`` such pictures in a row the
    clock is taken to have started again and all that follows is moved.

    Args:
        pictures: (time in seconds or None, duration in seconds or 0 where unknown, picture), in the order shown.
        step: usual time between two pictures, seconds.

    Yields:
        (start, end, picture): a picture ends where the next one starts, the last one after its duration.
    """
    shift = Fraction(0)
    ready: tuple[Fraction, Fraction, T] | None = None  # (start, duration, picture), waits for its end
    pending: list[tuple[Fraction | None, Fraction, T]] = []

    def settle(until: Fraction | None) -> Iterator[tuple[Fraction, Fraction, T]]:
        nonlocal ready
        interval = step if until is None or ready is None else min(step, (until - ready[0]) / (len(pending) + 1))
        start = -step  # without any time known, the first picture is at zero
        if ready is not None:
            start = ready[0]
        elif until is not None:
            start = until - (len(pending) + 1) * step
        for _, duration, picture in pending:
            start += interval
            if ready is not None:
                yield ready[0], start, ready[2]
            ready = start, duration, picture
        pending.clear()

    for raw, duration, picture in pictures:
        time = None if raw is None else raw + shift
        if time is not None and (ready is None or time > ready[0]):
            yield from settle(time)
            if ready is not None:
                yield ready[0], time, ready[2]
            ready = time, duration, picture
            continue
        pending.append((raw, duration, picture))
        if len(pending) == MAX_PENDING:
            yield from settle(None)
            if raw is not None and ready is not None:
                shift = ready[0] - raw
    yield from settle(None)
    if ready is not None:
        yield ready[0], ready[0] + (ready[1] or step), ready[2]
