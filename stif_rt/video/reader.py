"""Pictures with their exact times from a video file, an animated image or a folder of images.

``open_reader`` gives a ``Reader``. What is wrong with the input costs as little as possible and is said in
``reader.notices``: a packet that cannot be decoded, a size that changes, a file that ends early.
"""

import bisect
import contextlib
import io
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import av
import av.container
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.video.colour import IDENTITY, Colour, Picture, to_image
from stif_rt.video.conversion import Conversion, make_conversion, what_is_lost
from stif_rt.video.deinterlace import deinterlaced
from stif_rt.video.notices import Notices
from stif_rt.video.options import Deinterlace, Tonemap
from stif_rt.video.timing import Continuity, measured_rate, pts_are_invented, timeline

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".exr"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".ogv", ".wmv", ".flv"}
PROBE = 16
"""Pictures that are decoded when a file is opened, to learn its size and what its timestamps are worth."""
LUMA_SIZE = 64
"""Largest side of the small luma planes that scene cuts are found in."""
PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "libjxl"}
"""Decoders of still pictures; a stream of a single one beside sound or a moving picture is a cover."""
DURATION_IN_HEADER = ("mov", "matroska", "avi", "asf", "flv")
"""Demuxers whose duration is written in the file rather than found at its end."""
SEEK_FROM = 2
"""Seconds; what starts earlier is reached by decoding from the beginning."""
SEEKABLE = ("mov", "matroska")
"""Demuxers whose seeks can be checked: all pictures have presentation times, and an index says where they are."""
STILL_PACKETS = 2000
"""Packets of a file among which a second picture must be for its stream to be more than a cover."""
LARGE_FILE = 2**32
"""Bytes; smaller files whose clock may jump are read through to know how long they are."""
MAX_READ_ERRORS = 100
"""Errors in a row, without a packet between them, after which the rest of a file is given up."""

Image = NDArray[np.uint8]
"""One picture: RGB, uint8 [height, width, 3]."""


class Frame(NamedTuple):
    """A picture and when it is shown.

    start, end: seconds after the start of the input's first picture; a frame ends where the next one starts.
    picture: RGB, upright, and alpha.
    luma: its brightness, shrunk to at most ``LUMA_SIZE`` a side, uint8 [h, w]; scene cuts are found in it. None where
        it is yet to be computed from the image.
    """

    start: Fraction
    end: Fraction
    picture: Picture
    luma: NDArray[np.uint8] | None = None

    @property
    def image(self) -> Image:
        """The picture in 8 bits, laid on black where it is transparent."""
        return to_image(self.picture)


class Reader(Protocol):
    """An open input, to be closed. Iterating gives all frames in the order they are shown, every time.

    path: the file or folder.
    height, width: of every picture, upright.
    rate: frames per second, as measured where the file's own word is wrong.
    frames, duration: how many frames and seconds there are, None where the file does not say. Estimates: damaged files
        hold fewer.
    sample_aspect_ratio: width of a pixel over its height, None where the input does not say.
    colour: of the pictures.
    origin: when the first picture is shown on the file's own clock, seconds; what its sound is shifted by.
    device: where the pictures' tensors shall be; the CPU unless it is set.
    notices: what went wrong so far; those about the middle of a file come while it is read.
    """

    path: Path
    height: int
    width: int
    rate: Fraction
    frames: int | None
    duration: Fraction | None
    sample_aspect_ratio: Fraction | None
    colour: Colour
    origin: Fraction
    device: torch.device | str
    notices: Notices

    def __iter__(self) -> Iterator[Frame]: ...

    def read(self, start: Fraction, end: Fraction | None = None, context: int = 0) -> Iterator[Frame]:
        """Frames from the one that is shown at ``start`` to the first that starts at ``end`` or later, both included.

        The times and pictures are those of a run from the beginning, exactly. Several such iterators may run at once,
        in different threads too.

        Args:
            start: seconds after the first picture.
            end: None for the end of the input.
            context: number of frames to give besides, before and after those (as far as there are any).
        """
        ...

    def starts(self) -> list[Fraction]:
        """When each frame starts, without converting any picture."""
        ...

    def close(self) -> None: ...


def open_reader(
    path: Path,
    rate: Fraction = Fraction(24),
    notices: Notices | None = None,
    deinterlace: Deinterlace = "auto",
    tonemap: Tonemap | None = None,
) -> Reader:
    """Opens a video file, an animated image or a folder of images.

    Args:
        path: the file or folder.
        rate: frames per second of a folder, which has none of its own.
        notices: where to collect what is wrong with the input; ``Notices(strict=True)`` makes that errors.
        deinterlace: which pictures of a video are deinterlaced: ``auto`` for those that are flagged, ``on``, ``off``.
        tonemap: an operator that makes SDR of HDR; None to keep HDR.

    Returns:
        A reader. Iterating over it, also several times, gives the frames in the order they are shown.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: for something that holds no pictures.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    notices = Notices() if notices is None else notices
    if path.is_dir():
        return ImageReader(path, rate, notices, tonemap)
    return VideoReader(path, notices, deinterlace, tonemap)


def make_frame(
    start: Fraction,
    end: Fraction,
    frame: av.VideoFrame,
    conversion: Conversion,
    size: tuple[int, int],
    device: torch.device | str,
) -> Frame:
    """A decoded frame as a frame of the input.

    Args:
        start, end: when it is shown, seconds after the first one.
        frame: as decoded.
        conversion: of frames to pictures.
        size: (height, width) that the picture must have; one of another size is resized.
        device: for the picture's tensors.
    """
    picture = conversion(frame, device)  # the one place where frames become tensors
    if picture.rgb.shape[1:] != size:
        rgb, alpha = picture
        picture = Picture(_resized(rgb, size), None if alpha is None else _resized(alpha, size))
    scale = min(1.0, LUMA_SIZE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    luma = frame.to_ndarray(format="gray", width=width, height=height, interpolation="AREA", threads=1)
    return Frame(start, end, picture, luma.astype(np.uint8, copy=False))


def _resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    stack = plane.reshape(1, -1, *plane.shape[-2:])
    resized = F.interpolate(stack, size, mode="bicubic", antialias=True).clamp(0, 1)
    return resized.reshape(*plane.shape[:-2], *size)


class _Shown(NamedTuple):
    """A picture on the timeline, not converted yet; seconds after the first picture."""

    start: Fraction
    end: Fraction
    picture: Any


def _window(shown: Iterable[_Shown], start: Fraction, end: Fraction | None, context: int) -> Iterator[_Shown]:
    """The frames that ``Reader.read`` promises, from an iterator that begins early enough."""
    before: deque[_Shown] = deque(maxlen=context + 1)
    after = 0
    for item in shown:
        if item.start <= start:
            before.append(item)
            continue
        yield from before
        before.clear()
        yield item
        after += end is not None and item.start >= end
        if after > context:
            return
    yield from before


def open_input(path: Path, notices: Notices) -> av.container.InputContainer:
    """Opens a media file whatever its name and the encoding of its metadata.

    Raises:
        ValueError: if it is none.
    """
    # FFmpeg takes a relative name with a colon for a URL, and % in the name of an image for a pattern.
    source: Any = path.open("rb") if path.suffix.lower() in IMAGE_SUFFIXES | {".gif", ".apng"} else str(path.absolute())
    try:
        try:
            container = av.open(source)
            container.chapters()  # the titles of which are not looked at before
            return container
        except UnicodeDecodeError:
            notices.add("metadata that is not UTF-8 is read as Latin-1")
            return av.open(source, metadata_encoding="latin-1")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read as a video: {reason}") from error


def demuxed(
    container: av.container.InputContainer, failed: Callable[[av.FFmpegError], None] = lambda error: None
) -> Iterator["av.Packet[Any]"]:
    """All packets of a file; ``failed`` is told of errors, behind which reading goes on."""
    errors = 0
    while errors < MAX_READ_ERRORS:
        errors += 1
        try:
            for packet in container.demux():
                if packet.size or packet.pts is not None or packet.dts is not None:  # else it marks the end of a stream
                    errors = 0
                    yield packet
            return
        except av.FFmpegError as error:
            failed(error)


def choose_video(path: Path) -> int:
    """The number of the stream to be rendered: the default one, else the largest; never a cover or a still.

    Raises:
        ValueError: if there is none.
    """
    still_flags = av.stream.Disposition.attached_pic | av.stream.Disposition.still_image
    still_flags |= av.stream.Disposition.timed_thumbnails
    with open_input(path, Notices()) as container:
        streams = [
            s for s in container.streams.video if s.codec_context is not None and not s.disposition & still_flags
        ]
        if len(streams) + len(container.streams.audio) > 1:  # a picture alone is what there is to be shown
            streams = [s for s in streams if s.codec_context.name not in PICTURE_CODECS or _moves(path, s)]
        if not streams:
            raise ValueError(f"{path} has no video stream")
        default = av.stream.Disposition.default
        return max(streams, key=lambda s: (bool(s.disposition & default), s.width * s.height)).index


def _moves(path: Path, stream: av.VideoStream) -> bool:
    """Whether a stream holds more than one picture, looking no further than ``STILL_PACKETS``."""
    if stream.frames:
        return stream.frames > 1
    with open_input(path, Notices()) as container:
        packets = itertools.islice(demuxed(container), STILL_PACKETS)
        return sum(1 for packet in packets if packet.stream_index == stream.index) > 1


def _alpha_decoder(stream: av.VideoStream) -> av.VideoCodecContext | None:
    """For VP8 and VP9 with transparency, a decoder that gives it: FFmpeg's own ones do not."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if name is None or tags.get("alpha_mode") != "1":
        return None
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(name, "r"))
    for tag in ("color_primaries", "color_trc", "colorspace", "color_range"):
        setattr(decoder, tag, getattr(stream.codec_context, tag))
    return decoder


class _Picture(NamedTuple):
    """A decoded picture; pts, dts and duration in ticks of its stream, None (0) where the file does not say."""

    pts: int | None
    dts: int | None
    duration: int
    frame: av.VideoFrame


class _Decoder:
    """One pass over the pictures of a file. Errors become notices; what they do not touch is decoded.

    end: when the last packet of any stream read so far ends, on the file's clock, seconds.
    video_end: the same of the chosen stream. first_dts: of its first packet.
    lost_end: when the last picture that could not be decoded would have ended.
    """

    def __init__(self, path: Path, stream_index: int, notices: Notices) -> None:
        self.notices = notices
        self.container = open_input(path, notices)
        stream = cast(av.VideoStream, self.container.streams[stream_index])
        stream.thread_type = "SLICE"  # threads for whole frames lose the pictures behind a damaged one at the end
        self.stream = stream
        self._codec = _alpha_decoder(stream) or stream.codec_context
        self.continuity = Continuity(self.container, notices)
        self.end = self.video_end = self.lost_end = Fraction(0)
        self.first_dts: int | None = None
        self._origin: Fraction | None = None

    def packets(self) -> Iterator["av.Packet[Any]"]:
        """All packets of the chosen stream, moved where the file's clock jumps."""
        for packet in demuxed(self.container, self._unreadable):
            self.continuity.correct(packet)
            is_video = packet.stream_index == self.stream.index
            last = packet.dts if packet.pts is None else packet.pts
            if last is not None:
                end = (last + (packet.duration or 0)) * packet.time_base
                self.end = max(self.end, end)
                if is_video:
                    self.video_end = max(self.video_end, end)
            if is_video:
                self.first_dts = packet.dts if self.first_dts is None else self.first_dts
                yield packet

    def _unreadable(self, error: av.FFmpegError) -> None:
        self.notices.add(f"a part of the file cannot be read ({error.strerror})", self._place(self.video_end))

    def _place(self, time: Fraction) -> str:
        return f"{float(time - (self._origin or 0)):.2f} s"

    def _decode(self, packet: "av.Packet[Any] | None") -> list[av.VideoFrame]:
        """None for the pictures that the decoder still holds at the end."""
        try:
            return self._codec.decode(packet)
        except av.FFmpegError:
            time = None if packet is None else packet.dts if packet.pts is None else packet.pts
            place = self.video_end if time is None or packet is None else time * packet.time_base
            if packet is not None and time is not None and not packet.is_discard:
                self.lost_end = max(self.lost_end, place + (packet.duration or 0) * packet.time_base)
            self.notices.add("a picture cannot be decoded; it is left out", self._place(place))
            return []

    def pictures(self) -> Iterator[_Picture]:
        """All pictures in the order they are shown, from where the container stands."""
        repeats: deque[av.Packet[Any]] = deque()
        last: av.VideoFrame | None = None

        def repeated(until: int | None) -> Iterator[_Picture]:
            while repeats and (until is None or (repeats[0].pts or repeats[0].dts or 0) <= until):
                packet = repeats.popleft()
                if last is not None:
                    yield _Picture(packet.pts, packet.dts, packet.duration or 0, last)

        for packet in itertools.chain(self.packets(), (None,)):
            if packet is not None and not packet.size:  # the picture before is shown again; decoders would stop here
                repeats.append(packet)
                continue
            for frame in self._decode(packet):
                yield from repeated(frame.pts)
                if self._origin is None and frame.pts is not None and frame.time_base is not None:
                    self._origin = frame.pts * frame.time_base
                last = frame
                yield _Picture(frame.pts, frame.dts, frame.duration, frame)
        yield from repeated(None)

    def close(self) -> None:
        self.container.close()


class VideoReader:
    """A video file or an animated image."""

    device: torch.device | str = "cpu"

    def __init__(
        self,
        path: Path,
        notices: Notices,
        deinterlace: Deinterlace = "auto",
        tonemap: Tonemap | None = None,
    ) -> None:
        self.path, self.notices, self._deinterlace = path, notices, deinterlace
        self.stream_index = choose_video(path)
        with contextlib.closing(_Decoder(path, self.stream_index, notices)) as decoder:
            stream = decoder.stream
            self._demuxer = decoder.container.format.name
            self._time_base = stream.time_base or Fraction(1, 1000)
            probe = list(itertools.islice(decoder.pictures(), PROBE))
            if not probe and is_animated_webp(path):
                raise ValueError(f"{path}: animated WebP is not supported; make it a GIF, an APNG or a video")
            if not probe:
                raise ValueError(f"{path} has a video stream without a picture that can be decoded")
            self._use_dts = pts_are_invented([p.pts for p in probe], [p.dts for p in probe])
            self._dts_delay = (probe[0].dts or 0) - (decoder.first_dts or 0)
            times = sorted(time for time, _, _ in self._timed(probe) if time is not None)
            nominal = stream.guessed_rate or stream.average_rate
            rate = measured_rate(times, nominal)
            if rate != nominal:  # the whole file knows better than its beginning
                rate = measured_rate([time * self._time_base for time in self._packet_times[0]], nominal)
            self.rate = rate or Fraction(24)
            self.origin = next(timeline(self._timed(probe), 1 / self.rate))[0]
            self.frames = stream.frames or None
            self.duration = self._declared_duration(decoder)
            picture = probe[0].frame
            self._conversion = make_conversion(picture, stream.codec_context.name, None, tonemap)
            self.colour = self._conversion.colour
            if self.colour.alpha:  # GIF and ProRes 4444 are mostly opaque
                transparent = any(self._conversion(item.frame).alpha is not None for item in probe)
                self.colour = replace(self.colour, alpha=transparent)
            for text in what_is_lost(item.frame for item in probe):
                notices.add(text)
            if deinterlace == "off" and any(item.frame.interlaced_frame for item in probe):
                notices.add("interlaced pictures are rendered as they are, with combs, and come out as progressive")
            self.height, self.width = self._conversion.size(picture)
            self.sample_aspect_ratio = stream.sample_aspect_ratio
            if self.sample_aspect_ratio and self._conversion.orientation.transpose:
                self.sample_aspect_ratio = 1 / self.sample_aspect_ratio

    def __iter__(self) -> Iterator[Frame]:
        return self.read(Fraction(0))

    def read(self, start: Fraction, end: Fraction | None = None, context: int = 0) -> Iterator[Frame]:
        """See ``Reader.read``."""
        decoder = None
        try:
            if start > SEEK_FROM and (target := self._seek(start, context)):
                decoder, pictures = target
            else:
                decoder = _Decoder(self.path, self.stream_index, self.notices)
                pictures = decoder.pictures()
            for item in _window(self._shown(decoder, pictures), start, end, context):
                height, width = self._conversion.size(item.picture)
                if (height, width) != (self.height, self.width):
                    text = f"pictures of {width}x{height} are resized to {self.width}x{self.height}, as the first one"
                    self.notices.add(text, f"{float(item.start):.2f} s")
                frame = make_frame(*item, self._conversion, (self.height, self.width), self.device)
                if frame.picture.alpha is not None and not self.colour.alpha:
                    self.notices.add("a transparent picture is laid on black", f"{float(item.start):.2f} s")
                yield frame
        finally:
            if decoder is not None:
                decoder.close()

    def starts(self) -> list[Fraction]:
        """See ``Reader.starts``."""
        ticks, exact = self._packet_times
        if exact:
            return [tick * self._time_base - self.origin for tick in ticks]
        with contextlib.closing(_Decoder(self.path, self.stream_index, Notices())) as decoder:
            shown = timeline(self._timed(decoder.pictures()), 1 / self.rate)
            return [start - self.origin for start, _, _ in shown]

    def close(self) -> None:
        """Nothing to do: every iterator closes its own file."""

    def _shown(self, decoder: _Decoder, pictures: Iterator[_Picture]) -> Iterator[_Shown]:
        """The pictures on the timeline; at the end, and only there, it is known whether all were there."""
        timed = self._timed(deinterlaced(pictures, self._deinterlace))
        last: _Shown | None = None
        for start, end, picture in timeline(timed, 1 / self.rate):
            if last is not None:
                yield last
            last = _Shown(start - self.origin, end - self.origin, picture)
        if last is not None:  # it is held in place of those behind it that cannot be decoded
            lost_end = decoder.lost_end - (self._dts_delay * self._time_base if self._use_dts else 0) - self.origin
            yield last._replace(end=max(last.end, lost_end))
        self._check_end(decoder)

    def _timed(self, pictures: Iterable[_Picture]) -> Iterator[tuple[Fraction | None, Fraction, av.VideoFrame]]:
        """Pictures with the better of their two timestamps, as ``timeline`` takes them."""
        for picture in pictures:
            ticks = picture.pts
            if self._use_dts:
                ticks = None if picture.dts is None else picture.dts - self._dts_delay
            yield None if ticks is None else ticks * self._time_base, picture.duration * self._time_base, picture.frame

    @cached_property
    def _packet_times(self) -> tuple[list[int], bool]:
        """Ticks at which the packets of the stream are shown, ascending; and whether pictures are shown just then."""
        with contextlib.closing(_Decoder(self.path, self.stream_index, Notices())) as decoder:
            packets = [p for p in decoder.packets() if not p.is_discard]
            times = [p.dts if p.pts is None or self._use_dts else p.pts for p in packets]
            ticks = sorted(time for time in times if time is not None)
            exact = not decoder.continuity.jumps and not self._use_dts and all(p.size for p in packets)
            return ticks, exact and all(p.pts is not None for p in packets) and len(set(ticks)) == len(ticks)

    def _seek(self, start: Fraction, context: int) -> tuple[_Decoder, Iterator[_Picture]] | None:
        """A pass that begins early enough for ``read``, or None where only the beginning is sure to be."""
        if not self._demuxer.startswith(SEEKABLE):
            return None
        ticks, exact = self._packet_times
        context += self._deinterlace != "off"  # which looks at the picture before
        first = bisect.bisect_right(ticks, (self.origin + start) / self._time_base) - 1 - context
        if not exact or first <= 0:
            return None
        decoder = _Decoder(self.path, self.stream_index, self.notices)
        with contextlib.suppress(av.FFmpegError):
            decoder.container.seek(ticks[first], stream=decoder.stream)
            pictures = itertools.dropwhile(lambda picture: not picture.frame.key_frame, decoder.pictures())
            key = next(pictures, None)
            if key is not None and key.pts is not None and key.pts <= ticks[first] and key.pts in ticks:
                return decoder, itertools.chain((key,), pictures)
        decoder.close()
        return None

    def _declared_duration(self, decoder: _Decoder) -> Fraction | None:
        if decoder.continuity.may_reset and decoder.container.size < LARGE_FILE:
            ticks = self._packet_times[0]
            return (ticks[-1] - ticks[0]) * self._time_base + 1 / self.rate if ticks else None
        if decoder.stream.duration:
            return decoder.stream.duration * self._time_base
        duration = decoder.container.duration
        return None if not duration else Fraction(duration, av.time_base) - max(self.origin, Fraction(0))

    def _check_end(self, decoder: _Decoder) -> None:
        """Says so where a file that was read to its end is shorter than its header promises."""
        if decoder.continuity.jumps or not self._demuxer.startswith(DURATION_IN_HEADER):
            return
        there, promised, tolerance = decoder.video_end, self._promised_end(decoder.stream), 2 / self.rate
        if promised is None:  # only the longest stream's is known, and not well
            there, promised = decoder.end, Fraction(decoder.container.duration or 0, av.time_base)
            tolerance = Fraction(1, 2)
        if there < promised - max(tolerance, Fraction(1, 10)):
            self.notices.add(f"the file ends early: {float(there):.2f} of {float(promised):.2f} s are there")

    def _promised_end(self, stream: av.VideoStream) -> Fraction | None:
        """When the stream ends by the file's header, on its clock, seconds; None where that is not told."""
        tags = {key.upper(): value for key, value in stream.metadata.items()}
        if self._demuxer.startswith("mov") and stream.duration and stream.start_time is not None:
            return (stream.start_time + stream.duration) * self._time_base
        if self._demuxer.startswith("avi"):
            return stream.frames * self._time_base
        if re.fullmatch(r"\d+:\d\d:\d\d\.\d+", tags.get("DURATION", "")):
            hours, minutes, seconds = (Fraction(part) for part in tags["DURATION"].split(":"))
            return 3600 * hours + 60 * minutes + seconds
        return None


class _Image(NamedTuple):
    """What the first look at an image file tells; size is (height, width)."""

    size: tuple[int, int]
    colour: Colour


class ImageReader:
    """The images of a folder in the order of their names, ``rate`` a second. All are looked at before the first one."""

    sample_aspect_ratio: Fraction | None = None
    origin = Fraction(0)
    device: torch.device | str = "cpu"

    def __init__(
        self,
        path: Path,
        rate: Fraction,
        notices: Notices,
        tonemap: Tonemap | None = None,
    ) -> None:
        self.path, self.rate, self.notices, self._tonemap = path, rate, notices, tonemap
        files = (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        paths = sorted(files, key=_natural)
        if not paths:
            raise ValueError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        with ThreadPoolExecutor() as pool:
            checked = list(zip(paths, pool.map(self._check, paths), strict=True))
        good = [(number, file) for number, (file, image) in enumerate(checked) if not isinstance(image, str)]
        if not good:
            raise ValueError(f"{path} holds no image that can be read; {paths[0].name}: {checked[0][1]}")
        images = [image for _, image in checked if not isinstance(image, str)]
        self.height, self.width = images[0].size
        self.colour = _common_colour([image.colour for image in images])
        for file, image in checked:
            if isinstance(image, str):
                notices.add(f"{image}; it is left out", file.name)
            elif image.size != images[0].size:
                height, width = image.size
                text = f"an image of {width}x{height} is resized to {self.width}x{self.height}, as the first one"
                notices.add(text, file.name)
        starts = [(number - good[0][0]) / rate for number, _ in good]
        self.duration: Fraction | None = (len(paths) - good[0][0]) / rate
        self._shown = [
            _Shown(*item) for item in zip(starts, [*starts[1:], self.duration], [f for _, f in good], strict=True)
        ]
        self.frames: int | None = len(good)

    def __iter__(self) -> Iterator[Frame]:
        return self.read(Fraction(0))

    def read(self, start: Fraction, end: Fraction | None = None, context: int = 0) -> Iterator[Frame]:
        """See ``Reader.read``."""
        for begin, finish, file in _window(self._shown, start, end, context):
            frame, conversion = _read_picture(file, self._tonemap)
            yield make_frame(begin, finish, frame, conversion, (self.height, self.width), self.device)

    def _check(self, path: Path) -> _Image | str:
        """What is to be known of an image before the first one is rendered, or what is wrong with the file."""
        try:
            frame, conversion = _read_picture(path, self._tonemap)
        except (ValueError, OSError) as error:
            return str(error)
        transparent = conversion.colour.alpha and conversion(frame).alpha is not None
        return _Image(conversion.size(frame), replace(conversion.colour, alpha=transparent))

    def starts(self) -> list[Fraction]:
        """See ``Reader.starts``."""
        return [item.start for item in self._shown]

    def close(self) -> None:
        """Nothing to do: no file is open between two frames."""


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _common_colour(colours: list[Colour]) -> Colour:
    """What describes all images of a folder, which are written as RGB is, whatever JPEG and WebP make of it."""
    return replace(
        colours[0],
        matrix=IDENTITY,
        full_range=True,
        bits=max(colour.bits for colour in colours),
        grey=all(colour.grey for colour in colours),
        alpha=any(colour.alpha for colour in colours),
    )


def _read_picture(path: Path, tonemap: Tonemap | None = None) -> tuple[av.VideoFrame, Conversion]:
    """Raises ValueError, saying why, where the file is not an image or not a whole one."""
    data = path.read_bytes()
    if path.suffix.lower() in (".jpg", ".jpeg") and not jpeg_is_complete(data):
        raise ValueError("the JPEG file ends early")  # decoders fill the rest with grey and say nothing
    try:
        with av.open(io.BytesIO(data), "r") as container:  # by name, % would be taken for a pattern
            stream = container.streams.video[0]
            frame = next(container.decode(stream))
            return frame, make_conversion(frame, stream.codec_context.name, data, tonemap)
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise ValueError("the file cannot be read as an image") from error


def is_animated_webp(path: Path) -> bool:
    """Whether the file is a WebP of several pictures."""
    with path.open("rb") as file:
        header = file.read(21)
    return header[:4] == b"RIFF" and header[8:16] == b"WEBPVP8X" and bool(header[20] & 2)


def jpeg_is_complete(data: bytes) -> bool:
    """Whether the file holds its end marker, that of the picture itself and not of a preview inside."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xD9:
            return True
        if marker == 0xFF:  # padding
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:  # compressed data follow, up to the next marker that is not a restart
            match = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]").search(data, position)
            if match is None:
                return False
            position = match.start()
    return data[position : position + 2] == b"\xff\xd9"


def read_image(path: Path) -> Image:
    """One image file: RGB, upright, laid on black where it is transparent, uint8 [height, width, 3].

    Raises:
        ValueError: where it is not one, or not a whole one.
    """
    try:
        frame, conversion = _read_picture(path)
        return to_image(conversion(frame))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
