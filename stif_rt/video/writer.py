"""Frames into a video file or a folder of images. Nothing appears under the final name before it is complete."""

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import av.container

from stif_rt.files import check_parent, whole_file
from stif_rt.video.colour import IDENTITY, Colour, Components, from_image
from stif_rt.video.encoding import CODECS, CRF, IMAGE_CODECS, Encoding, choose_encoding
from stif_rt.video.notices import Notices
from stif_rt.video.reader import Image


def is_video(path: Path) -> bool:
    """Whether an output name asks for a video file (else a folder of images). ValueError for an unknown ending."""
    suffix = path.suffix.lower()
    if suffix and not suffix[1:].isdigit() and suffix not in CODECS and not path.is_dir():
        raise ValueError(
            f"{path.name}: cannot write {suffix} files; use {', '.join(sorted(CODECS))}, or a folder name for images"
        )
    return suffix in CODECS


def check_target(path: Path, source: Path, overwrite: bool) -> None:
    """Checks that a video or a folder of images can be written to ``path``.

    Raises:
        FileExistsError: It is there already, and not to be overwritten.
        FileNotFoundError: The folder around it does not exist.
        ValueError: It is the input, of the wrong kind, or its ending is unknown.
    """
    as_video = is_video(path)
    if path.resolve() == source.resolve():
        raise ValueError(f"{path} is the input itself; choose another output")
    check_parent(path)
    if as_video and path.is_dir():
        raise ValueError(f"{path} is a folder; choose another name for the video")
    if not as_video and path.is_file():
        raise ValueError(f"{path} is a file; choose another name for the folder of images")
    occupied = path.exists() and (path.is_file() or any(path.iterdir()))
    if occupied and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it")


class VideoWriter:
    """Writes frames into a container.

    Args:
        container: an open one, without streams.
        size: (H, W), both even for most encodings.
        rate: frames per second.
        encoding: of the frames.
        sample_aspect_ratio: width of a pixel over its height, None for square ones.

    Raises:
        ValueError: where the encoder does not take such frames.
    """

    def __init__(
        self,
        container: av.container.OutputContainer,
        size: tuple[int, int],
        rate: Fraction,
        encoding: Encoding,
        sample_aspect_ratio: Fraction | None = None,
    ) -> None:
        self.container, self.size, self.rate, self.encoding = container, size, rate, encoding
        self.count = 0
        try:
            self.stream = encoding.add_stream(container, size, rate, sample_aspect_ratio)
            container.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            H, W = size
            kind = f"{W}x{H} pixels of {encoding.pixel_format} with {encoding.codec}"
            if isinstance(error, av.FFmpegError):  # its text repeats the call with all that was passed
                given = ", ".join(f"{key}={value}" for key, value in encoding.options.items())
                raise ValueError(f"cannot encode {kind}: it refuses one of {given} ({error.strerror})") from error
            raise ValueError(f"cannot encode {kind}: {error}") from error
        if self.stream.codec_context.options:
            raise ValueError(f"{encoding.codec} has no option {', '.join(sorted(self.stream.codec_context.options))}")

    def write(self, components: Components) -> None:
        """Appends a frame; see ``Encoding.components``."""
        frame = self.encoding.frame(components, self.size)
        frame.pts, frame.time_base = self.count, 1 / self.rate
        self.container.mux(self.stream.encode(frame))
        self.count += 1

    def finish(self) -> None:
        """Writes what the encoder still holds."""
        packets = self.stream.encode(None)
        if self.count <= 2:  # x265 leaves the decoding times of such short clips undefined
            for packet in packets:
                packet.dts = packet.pts
        self.container.mux(packets)


def write_video(path: Path, images: Iterable[Image], rate: Fraction, crf: int = CRF) -> None:
    """A video of pictures, uint8 [H, W, 3], in the usual encoding for the name of the file."""
    iterator = iter(images)
    first = next(iterator)
    encoding = choose_encoding(path.suffix.lower(), Colour(IDENTITY), Notices(), crf=crf)
    with whole_file(path.absolute()) as temporary, av.open(str(temporary), "w") as container:
        writer = VideoWriter(container, (first.shape[0], first.shape[1]), rate, encoding)
        for image in itertools.chain((first,), iterator):
            writer.write(encoding.components(from_image(image)))
        writer.finish()


def publish_images(temporary: Path, target: Path, overwrite: bool) -> None:
    """Gives a folder of finished images its final name; in a folder that exists, such images are replaced.

    Raises FileExistsError where files have appeared in it and ``overwrite`` is not set.
    """
    if target.exists() and any(target.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{target} has appeared meanwhile; give --overwrite to replace its images")
        for file in target.glob("frame_*"):
            if file.suffix in IMAGE_CODECS:
                file.unlink()
    target.mkdir(exist_ok=True)
    for file in temporary.iterdir():
        file.replace(target / file.name)


class ImageWriter:
    """Writes frames into a folder as ``frame_000000.png``, or what else the encoding is."""

    def __init__(self, folder: Path, size: tuple[int, int], encoding: Encoding, suffix: str = ".png") -> None:
        self.folder, self.size, self.encoding, self.suffix = folder, size, encoding, suffix
        self.count = 0

    def write(self, components: Components) -> None:
        """Appends a frame; see ``Encoding.components``."""
        self.encoding.write_image(self.folder / f"frame_{self.count:06d}{self.suffix}", components, self.size)
        self.count += 1


def write_png(path: Path, image: Image) -> None:
    """Write one picture as a PNG file.

    Args:
        path: the file; one that exists is replaced.
        image: RGB, uint8 [H, W, 3].

    Raises:
        OSError: the file cannot be written.
    """
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *encoder.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
