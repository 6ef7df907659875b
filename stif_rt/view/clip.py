"""Which two frames of a clip a moment lies between, at random access, by the rules of a render."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction

from stif_rt.video.cuts import CONTEXT, detected_cuts
from stif_rt.video.plan import Pair, plan
from stif_rt.video.reader import Frame, Reader

FRAMES_BEFORE = 4
"""Decoded frames before the one that is sought, so that a slider may be drawn back a little without seeking."""
FRAMES_AHEAD = 24
"""As far ahead decoding goes on; what is farther is sought."""
BYTES_KEPT = 256 << 20


class Clip:
    """An open input and the frames around the moment that was asked for last. For one thread.

    Attributes:
        reader: Of the file or folder.
        duration: Seconds, as far as the file tells.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.duration = reader.duration or reader.starts()[-1] + 1 / reader.rate
        kept = max(4, min(FRAMES_BEFORE + FRAMES_AHEAD, BYTES_KEPT // (reader.height * reader.width * 12)))
        self._decided: deque[tuple[Frame, bool]] = deque(maxlen=kept)  # neighbours, with whether they begin a scene
        self._deciding: Iterator[tuple[Frame, bool]] = iter(())
        self._wanted_from = Fraction(0)

    def at(self, time: Fraction) -> Pair:
        """The two frames that a moment, seconds after the first picture, lies between, and its one time between them.

        As in a render, nothing is interpolated across a scene cut or a long gap: both frames are the same one there.

        Raises:
            ValueError: Nothing can be decoded there.
        """
        time = min(max(time, Fraction(0)), self.duration)
        if not self._is_near(time):
            self._seek(time)
        skipped: list[tuple[Frame, bool]] = []
        while not self._decided or self._decided[-1][0].start <= time:
            item = next(self._deciding, None)
            if item is None:
                break
            if item[0].end > self._wanted_from:
                self._decided.append(item)
            else:
                skipped = [item]  # too few are known before it to say whether it is a cut
        self._decided.extend(skipped if not self._decided else ())  # the file ends before its duration
        if not self._decided:
            raise ValueError(f"no picture can be decoded at {float(time):.3f} s")
        decided = list(self._decided)
        first = max(0, sum(frame.start <= time for frame, _ in decided) - 1)
        around = decided[first : first + 2]
        planned = plan((), Fraction(1), lambda _: iter(around), origin=time, stop=1)
        last = around[-1][0]
        return next((pair for pair in planned if pair.times), Pair(last, last, [1.0]))

    def _is_near(self, time: Fraction) -> bool:
        if not self._decided or time < self._decided[0][0].start:
            return False
        return time <= self._decided[-1][0].start + FRAMES_AHEAD / self.reader.rate

    def _seek(self, time: Fraction) -> None:
        self._wanted_from = max(Fraction(0), time - FRAMES_BEFORE / self.reader.rate)
        self._decided.clear()
        self._deciding = detected_cuts(self.reader.read(self._wanted_from, None, CONTEXT))
