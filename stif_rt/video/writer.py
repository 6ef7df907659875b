"""Frames into a video file or a folder of images. Nothing appears under the final name before it is complete."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, cast

import av
import av.container
from av.video.reformatter import Colorspace

from stif_rt.video.reader import Image, VideoReader

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".m4v": "libx264", ".webm": "libvpx-vp9"}
BT709 = 1
LIMITED_RANGE = 1
AUDIO_LEAD = Fraction(1, 2)
"""Seconds by which copied audio runs ahead of the video in the file, so that players need not seek."""


class Writer(Protocol):
    def write(self, image: Image) -> None:
        """Appends a frame, uint8 [H, W, 3]."""
        ...


def is_video(path: Path) -> bool:
    """Whether an output name asks for a video file (else a folder of images). ValueError for an unknown ending."""
    suffix = path.suffix.lower()
    if suffix and not suffix[1:].isdigit() and suffix not in CODECS and not path.is_dir():
        raise ValueError(
            f"{path.name}: cannot write {suffix} files; use {', '.join(sorted(CODECS))}, or a folder name for images"
        )
    return suffix in CODECS


def check_target(path: Path, source: Path, overwrite: bool) -> None:
    """Raises FileExistsError or ValueError where ``path`` must not be written."""
    as_video = is_video(path)
    if path.resolve() == source.resolve():
        raise ValueError(f"{path} is the input itself; choose another output")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {path.absolute().parent} does not exist")
    if as_video and path.is_dir():
        raise ValueError(f"{path} is a folder; choose another name for the video")
    if not as_video and path.is_file():
        raise ValueError(f"{path} is a file; choose another name for the folder of images")
    occupied = path.exists() and (path.is_file() or any(path.iterdir()))
    if occupied and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it")


@contextlib.contextmanager
def video_writer(
    path: Path,
    size: tuple[int, int],
    rate: Fraction,
    crf: int,
    sound: VideoReader | None = None,
    sample_aspect_ratio: Fraction | None = None,
) -> Iterator[Writer]:
    """Writes H.264 (VP9 for .webm) in BT.709, with the first audio stream of ``sound`` copied where it has one.

    size: (H, W), both even. The file appears under ``path`` when the context ends without an exception.
    """
    temporary = path.absolute().with_name(f".{path.stem}.part{path.suffix}")
    if sound is not None and path.suffix.lower() in (".mp4", ".m4v"):
        with av.open(str(sound.path.absolute())) as source:
            pcm = any(audio.codec_context.name.startswith("pcm") for audio in source.streams.audio[:1])
        if pcm:
            raise ValueError(f"uncompressed audio cannot be stored in {path.suffix}; write .mkv, or give --no-audio")
    try:
        with av.open(str(temporary), "w") as container:
            writer = VideoWriter(container, size, rate, CODECS[path.suffix.lower()], crf, sound, sample_aspect_ratio)
            yield writer
            writer.finish()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class VideoWriter:
    """Made by ``video_writer``."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        size: tuple[int, int],
        rate: Fraction,
        codec: str,
        crf: int,
        sound: VideoReader | None,
        sample_aspect_ratio: Fraction | None,
    ) -> None:
        H, W = size
        self.container = container
        self.rate = rate
        self.stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options={"crf": str(crf)}))
        self.stream.width, self.stream.height, self.stream.pix_fmt = W, H, "yuv420p"
        self.stream.time_base = 1 / rate
        context = self.stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        if sample_aspect_ratio:
            context.sample_aspect_ratio = sample_aspect_ratio
        self.count = 0
        self._audio = iter(()) if sound is None else _copied_audio(container, sound)
        try:
            self._packet = next(self._audio, None)
            container.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            if len(container.streams.audio) or sound is not None:
                raise ValueError(
                    f"cannot start the file ({error}); if its sound does not fit, write .mkv or give --no-audio"
                ) from error
            raise ValueError(f"cannot encode {W}x{H} pixels with {codec}: {error}") from error

    def write(self, image: Image) -> None:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = self.count, 1 / self.rate
        self.container.mux(self.stream.encode(frame))
        self.count += 1
        self._mux_audio(self.count / self.rate + AUDIO_LEAD)

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))
        self._mux_audio(None)

    def _mux_audio(self, until: Fraction | None) -> None:
        while self._packet is not None:
            packet = self._packet
            if until is not None and packet.dts is not None and packet.dts * packet.time_base > until:
                return
            self.container.mux(packet)
            self._packet = next(self._audio, None)


def copied_audio(container: av.container.OutputContainer, source: VideoReader) -> Callable[[Fraction | None], None]:
    """Adds the input's sound to a container; returns a function that writes it up to a time, all of it for None."""
    packets = _copied_audio(container, source)
    waiting = next(packets, None)

    def mux(until: Fraction | None) -> None:
        nonlocal waiting
        while waiting is not None:
            if until is not None and waiting.dts is not None and waiting.dts * waiting.time_base > until + AUDIO_LEAD:
                return
            container.mux(waiting)
            waiting = next(packets, None)

    return mux


def _copied_audio(container: av.container.OutputContainer, source: VideoReader) -> Iterator["av.Packet[Any]"]:
    """The input's audio packets, shifted so that the first video frame is at zero."""
    with av.open(str(source.path.absolute())) as file:
        if not file.streams.audio:
            return
        stream = file.streams.audio[0]
        copy = container.add_stream_from_template(stream)
        for packet in file.demux(stream):
            if packet.dts is None or packet.pts is None:  # the demuxer's end mark
                continue
            shift = round(source.origin / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copy
            yield packet


@contextlib.contextmanager
def image_writer(path: Path) -> Iterator[Writer]:
    """Writes ``frame_000000.png`` ... into a folder, which gets its files when the context ends without an exception.

    Such frames that the folder already holds are replaced, all of them; other files stay.
    """
    path = path.resolve()
    temporary = (path if path.is_dir() else path.parent) / f".{path.name}.part"  # on the file system of the target
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield ImageWriter(temporary)
        if path.exists():
            for file in path.glob("frame_*.png"):
                file.unlink()
            for file in temporary.iterdir():
                file.replace(path / file.name)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_images(temporary: Path, target: Path, overwrite: bool) -> None:
    """Gives a folder of finished images its final name; in a folder that exists, such images are replaced.

    Raises FileExistsError where files have appeared in it and ``overwrite`` is not set.
    """
    if target.exists() and any(target.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{target} has appeared meanwhile; give --overwrite to replace its images")
        for file in target.glob("frame_*.png"):
            file.unlink()
    target.mkdir(exist_ok=True)
    for file in temporary.iterdir():
        file.replace(target / file.name)


class ImageWriter:
    """Made by ``image_writer``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def write(self, image: Image) -> None:
        write_png(self.folder / f"frame_{self.count:06d}.png", image)
        self.count += 1


def write_png(path: Path, image: Image) -> None:
    """One picture, uint8 [H, W, 3], as a PNG file."""
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *encoder.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
