"""Interlaced pictures made progressive, by FFmpeg's ``bwdif``."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import av

from stif_rt.video.options import Deinterlace

P = TypeVar("P", bound=NamedTuple)


def deinterlaced(pictures: Iterator[P], mode: Deinterlace = "auto") -> Iterator[P]:
    """The same pictures, as many of them, with the lines of their second field interpolated where they are interlaced.

    Args:
        pictures: Named tuples with a field ``frame``, an ``av.VideoFrame``; all else is passed on.
        mode: ``auto`` for pictures that are flagged as interlaced, ``on`` for all, ``off`` for none.
    """
    if mode == "off":
        yield from pictures
        return
    graph: _Graph | None = None
    before: P | None = None
    for picture in pictures:
        frame = picture.frame  # type: ignore[attr-defined]
        if graph is not None and not graph.takes(frame):
            yield from graph.finish()
            graph = before = None
        if graph is None:
            if mode == "auto" and not frame.interlaced_frame:
                yield picture  # nothing to do so far
                before = picture
                continue
            graph = _Graph(frame, mode)
            if before is not None and graph.takes(before.frame):  # type: ignore[attr-defined]
                yield from graph.push(before, give=False)  # so that a run that begins later gives the same
        yield from graph.push(picture)
    if graph is not None:
        yield from graph.finish()


class _Graph:
    """One filter for pictures of one size and format; it gives each one after it has seen the next."""

    def __init__(self, frame: av.VideoFrame, mode: Deinterlace) -> None:
        self.kind = _kind(frame)
        self.graph = av.filter.Graph()
        source = self.graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        filter = self.graph.add("bwdif", f"mode=send_frame:deint={'interlaced' if mode == 'auto' else 'all'}")
        self.graph.link_nodes(source, filter, self.graph.add("buffersink")).configure()
        self.waiting: deque[Any] = deque()
        self.count = 0

    def takes(self, frame: av.VideoFrame) -> bool:
        return _kind(frame) == self.kind

    def push(self, picture: Any, give: bool = True) -> Iterator[Any]:
        """Pictures that are finished; this one not, but for ``give`` later."""
        self.waiting.append(picture if give else None)
        frame = picture.frame
        times = frame.pts, frame.time_base
        frame.pts, frame.time_base = self.count, Fraction(1, 1000)  # the file's own times may be missing or repeat
        self.count += 1
        self.graph.push(frame)
        _set_times(frame, *times)
        yield from self._finished()

    def finish(self) -> Iterator[Any]:
        self.graph.push(None)
        yield from self._finished()

    def _finished(self) -> Iterator[Any]:
        while self.waiting:
            try:
                frame = self.graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            picture = self.waiting.popleft()
            if picture is None:
                continue
            _set_times(frame, picture.frame.pts, picture.frame.time_base)
            yield picture._replace(frame=frame)


def _set_times(frame: av.VideoFrame, pts: int | None, time_base: Fraction | None) -> None:
    frame.pts = pts
    if time_base is not None:  # None cannot be set
        frame.time_base = time_base


def _kind(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
