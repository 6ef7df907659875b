"""YUV4MPEG2 through pipes: pictures from standard input and to standard output, 8 to 16 bits."""

import contextlib
import io
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np
import torch

from stif_rt.video.colour import Components
from stif_rt.video.conversion import make_conversion
from stif_rt.video.encoding import Encoding
from stif_rt.video.notices import Notices
from stif_rt.video.options import Tonemap
from stif_rt.video.reader import Frame, make_frame

PIPE = Path("-")
"""The name of standard input and standard output."""
COLOUR_SPACES = {
    "yuv420p": "420mpeg2",
    "yuv422p": "422",
    "yuv444p": "444",
    "gray": "mono",
    "yuv420p10le": "420p10",
    "yuv422p10le": "422p10",
    "yuv444p10le": "444p10",
    "yuv420p12le": "420p12",
    "yuv422p12le": "422p12",
    "yuv444p12le": "444p12",
}
"""By pixel format, its name in the header."""


class _Input:
    """A file or a pipe, and how many bytes were read from it."""

    def __init__(self, source: str | int) -> None:
        self._file = io.FileIO(source, "rb", closefd=isinstance(source, str))
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.count += len(data)
        return data

    def close(self) -> None:
        self._file.close()


class PipeReader:
    """Pictures of a YUV4MPEG2 stream, which can be read once."""

    def __init__(self, notices: Notices, tonemap: Tonemap | None = None, source: str | int = 0) -> None:
        self.path, self.notices = PIPE, notices
        self._input = _Input(source)
        self._end = 0  # of the last whole picture, in bytes
        try:
            self._container = av.open(self._input, "r", format="yuv4mpegpipe")
            stream = self._container.streams.video[0]
            self._decoded = self._decode(stream)
            first = next(self._decoded, None)
        except av.FFmpegError as error:
            raise ValueError(f"standard input is not YUV4MPEG2 (Y4M) video: {error.strerror}") from error
        if first is None:
            raise ValueError("standard input holds no picture")
        self._first: av.VideoFrame | None = first
        self._conversion = make_conversion(first, "rawvideo", None, tonemap)
        self.colour = self._conversion.colour
        self.height, self.width = first.height, first.width
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(24)
        self.sample_aspect_ratio = stream.sample_aspect_ratio or None
        self.frames: int | None = None
        self.duration: Fraction | None = None
        self.origin = Fraction(0)
        self.device: torch.device | str = "cpu"

    def __iter__(self) -> Iterator[Frame]:
        return self.read(Fraction(0))

    def read(self, start: Fraction, end: Fraction | None = None, context: int = 0) -> Iterator[Frame]:
        """As ``Reader.read``, but once only."""
        if self._first is None:
            raise ValueError("standard input can be read once only, so that its render cannot be resumed")
        first, self._first = self._first, None
        number = 0
        after = 0
        for frame in self._frames(first):
            begin = number / self.rate
            number += 1
            if begin + (context + 1) / self.rate <= start:
                continue
            yield make_frame(begin, number / self.rate, frame, self._conversion, (self.height, self.width), self.device)
            after += end is not None and begin >= end
            if after > context:
                return

    def _decode(self, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        for packet in self._container.demux(stream):
            if packet.size and packet.pos is not None:
                self._end = packet.pos + packet.size
            yield from packet.decode()

    def _frames(self, first: av.VideoFrame) -> Iterator[av.VideoFrame]:
        yield first
        with contextlib.suppress(av.FFmpegError):  # FFmpeg says nothing, or this, of a picture that is not whole
            yield from self._decoded
        if self._input.count > self._end:
            self.notices.add("standard input ends in the middle of a picture")

    def starts(self) -> list[Fraction]:
        """Not to be had."""
        raise ValueError("the frames of standard input cannot be counted before they are read")

    def close(self) -> None:
        """Closes the pipe."""
        self._container.close()
        self._input.close()


class PipeWriter:
    """Writes frames as YUV4MPEG2.

    Args:
        stream: the binary stream to write to.
        size: (H, W).
        rate: frames per second.
        encoding: with a planar pixel format of ``COLOUR_SPACES``.
        sample_aspect_ratio: None for square pixels.

    Raises:
        ValueError: for another pixel format.
    """

    def __init__(
        self,
        stream: IO[bytes],
        size: tuple[int, int],
        rate: Fraction,
        encoding: Encoding,
        sample_aspect_ratio: Fraction | None = None,
    ) -> None:
        self._stream, self._size, self._encoding = stream, size, encoding
        space = COLOUR_SPACES.get(encoding.pixel_format)
        if space is None:
            formats = ", ".join(name.removesuffix("le") for name in COLOUR_SPACES)
            raise ValueError(f"Y4M cannot hold {encoding.pixel_format}; it can {formats}")
        (H, W), ratio = size, sample_aspect_ratio or Fraction(1)
        range_ = "FULL" if encoding.colour.full_range else "LIMITED"
        header = f"YUV4MPEG2 W{W} H{H} F{rate.numerator}:{rate.denominator} Ip A{ratio.numerator}:{ratio.denominator}"
        stream.write(f"{header} C{space} XCOLORRANGE={range_}\n".encode())

    def write(self, components: Components) -> None:
        """Appends a frame; see ``Encoding.components``."""
        frame = self._encoding.frame(components, self._size)
        self._stream.write(b"FRAME\n")
        for plane in frame.planes:
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]
            sample_bytes = (frame.format.components[0].bits + 7) // 8
            self._stream.write(np.ascontiguousarray(rows[:, : plane.width * sample_bytes]).data)
        self._stream.flush()


def standard_output() -> IO[bytes]:
    """The binary stream of standard output. ValueError where it is closed or a terminal."""
    if sys.stdout is None or sys.stdout.closed:
        raise ValueError("standard output is closed, so that nothing can be written to it")
    if sys.stdout.isatty():
        raise ValueError("standard output is a terminal; send it to a file or another program, as in - | ffplay -i -")
    return sys.stdout.buffer
