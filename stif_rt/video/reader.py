"""Frames with their exact times from a video file or a folder of images."""

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".ogv", ".wmv", ".flv"}
MATRICES = {
    1: Colorspace.ITU709,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: getattr(Colorspace, "BT2020", Colorspace.ITU709),  # PyAV before 18 does not name it
}
"""Conversion by the YCbCr matrix a stream is tagged with (ITU-T H.273, MatrixCoefficients)."""

Image = NDArray[np.uint8]
"""One picture: RGB, uint8 [height, width, 3]."""


class Frame(NamedTuple):
    """A picture and when it is shown, in seconds."""

    start: Fraction
    end: Fraction
    image: Image


class Reader(Protocol):
    """An open input, to be closed; an iterator over its frames in the order they are shown.

    rate: frames per second. frames: how many there are, None where the file does not say.
    sample_aspect_ratio: width of a pixel over its height, None where the input does not say.
    """

    height: int
    width: int
    rate: Fraction
    frames: int | None
    sample_aspect_ratio: Fraction | None

    def __iter__(self) -> Iterator[Frame]: ...
    def close(self) -> None: ...


def open_reader(path: Path, rate: Fraction = Fraction(24)) -> Reader:
    """Opens a video file or a folder of images. rate: frames per second of a folder, which has none of its own.

    Raises FileNotFoundError, or ValueError for something that holds no pictures.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return ImageReader(path, rate) if path.is_dir() else VideoReader(path)


def to_rgb(frame: av.VideoFrame) -> Image:
    """RGB, upright. An untagged stream is taken to be BT.709 from 720 lines on and BT.601 below, as players do."""
    matrix = MATRICES.get(frame.colorspace, Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601)
    rgb = frame.to_ndarray(format="rgb24", src_colorspace=matrix)
    return np.ascontiguousarray(np.rot90(rgb, round(_rotation(frame) / 90) % 4))


def _rotation(frame: av.VideoFrame) -> float:
    """Degrees counter-clockwise by which the file asks to turn the picture."""
    return frame.rotation


def _time(frame: av.VideoFrame) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


class VideoReader:
    """The first video stream of a file. start: when its first frame is shown, seconds."""

    def __init__(self, path: Path) -> None:
        try:
            self.container = av.open(str(path.absolute()))  # a relative name with a colon would be taken for a URL
        except av.FFmpegError as error:
            raise ValueError(f"{path} cannot be read as a video: {error.strerror}") from error
        try:
            if not self.container.streams.video:
                raise ValueError(f"{path} has no video stream")
            stream = self.container.streams.video[0]
            stream.thread_type = "AUTO"
            self.rate = stream.guessed_rate or stream.average_rate or Fraction(24)
            self.frames = stream.frames or None
            self.sample_aspect_ratio = stream.sample_aspect_ratio
            self._decoded = self.container.decode(stream)
            try:
                first = next(self._decoded, None)
            except av.FFmpegError as error:
                raise ValueError(f"{path} cannot be decoded: {error.strerror}") from error
            if first is None:
                raise ValueError(f"{path} has a video stream without a frame in it")
        except ValueError:
            self.container.close()
            raise
        self.path = path
        self.start = _time(first) or Fraction(0)
        self._first = first
        self.height, self.width = to_rgb(first).shape[:2]
        if self.sample_aspect_ratio and round(_rotation(first) / 90) % 2:
            self.sample_aspect_ratio = 1 / self.sample_aspect_ratio

    def __iter__(self) -> Iterator[Frame]:
        start = None
        try:
            for frame in itertools.chain((self._first,), self._decoded):
                shown = _time(frame)
                if shown is None:  # formats without timestamps: evenly spaced
                    shown = self.start if start is None else start + 1 / self.rate
                if start is not None and shown <= start:
                    continue  # a repeated or disordered timestamp has no place on the time axis
                start = shown
                length = frame.duration * frame.time_base if frame.duration and frame.time_base else 1 / self.rate
                yield Frame(start, start + length, to_rgb(frame))
        except av.FFmpegError as error:
            after = "the beginning" if start is None else f"{float(start):.2f} s"
            raise ValueError(f"{self.path} is damaged after {after}: {error.strerror}") from error

    def close(self) -> None:
        self.container.close()


class ImageReader:
    """The images of a folder in the order of their names, all of one size."""

    sample_aspect_ratio: Fraction | None = None

    def __init__(self, path: Path, rate: Fraction) -> None:
        files = (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        self.paths = sorted(files, key=_natural)
        if not self.paths:
            raise ValueError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.rate = rate
        self.frames: int | None = len(self.paths)
        self.height, self.width = read_image(self.paths[0]).shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        for number, path in enumerate(self.paths):
            image = read_image(path)
            if image.shape[:2] != (self.height, self.width):
                h, w = image.shape[:2]
                raise ValueError(f"{path} is {w}x{h}, but the folder's first image is {self.width}x{self.height}")
            yield Frame(number / self.rate, (number + 1) / self.rate, image)

    def close(self) -> None:
        pass


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def read_image(path: Path) -> Image:
    """One image file. Raises ValueError where it is not one."""
    try:
        with av.open(str(path.absolute())) as container:
            return to_rgb(next(container.decode(video=0)))
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise ValueError(f"{path} cannot be read as an image") from error
