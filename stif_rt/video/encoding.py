"""Which codec and pixel format pictures are written in, and the pictures as its frames."""

import dataclasses
import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.container

from stif_rt.video.colour import (
    BT709,
    BT2020,
    IDENTITY,
    UNSPECIFIED,
    Colour,
    Components,
    Picture,
    from_components,
    tag,
    to_components,
)
from stif_rt.video.notices import Notices
from stif_rt.video.planes import Layout, layout
from stif_rt.video.tonemap import SRGB, to_light

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".m4v": "libx264", ".webm": "libvpx-vp9"}
"""Encoders of 8-bit video without alpha, by the ending of the file's name."""
DEEP_CODECS = {**dict.fromkeys(CODECS, "libx265"), ".webm": "libsvtav1"}
"""Encoders of video above 8 bits: hardly anything plays 10-bit H.264."""
IMAGE_CODECS = {".png": "png", ".tif": "tiff", ".tiff": "tiff", ".exr": "exr"}
CRF = 16
WIDE = {BT2020, 10, 11, 12, 22}
"""Primaries that no viewer assumes where a file does not name them."""
ALPHA_FORMATS = {"prores_ks": "yuva444p10le", "libvpx-vp9": "yuva420p", "ffv1": "yuva444p", "libx265": "yuva420p"}
VIDEO_FORMATS = {"prores_ks": "yuv422p10le", "prores": "yuv422p10le", "mjpeg": "yuvj420p", "dnxhd": "yuv422p"}
"""Pixel formats of codecs that keep alpha, and of those that do not take 4:2:0."""
HEVC_TAG = {".mp4", ".mov", ".m4v"}


@dataclass(frozen=True)
class Encoding:
    """How pictures are written, made by ``choose_encoding`` or ``choose_image_encoding``.

    Attributes:
        codec: FFmpeg's name of the encoder.
        pixel_format: FFmpeg's name.
        colour: Of the written frames.
        options: Of the encoder.
        tag: The codec's name in the container, where it is not the usual one.
    """

    codec: str
    pixel_format: str
    colour: Colour
    options: dict[str, str]
    tag: str | None = None

    @property
    def subsampled(self) -> bool:
        """Whether several pixels share a sample of chroma, so that sides must be even."""
        return _layout(self.pixel_format).subsampling != (1, 1)

    def components(self, picture: Picture) -> Components:
        """The values to be stored for a picture, on its device."""
        if self.codec == "exr":
            transfer = SRGB if self.colour.transfer == UNSPECIFIED else self.colour.transfer
            picture = picture._replace(rgb=to_light(picture.rgb, transfer))
        return to_components(picture, self.colour, self.pixel_format)

    def frame(self, components: Components, size: tuple[int, int]) -> av.VideoFrame:
        """The frame of ``size`` (H, W) for such values."""
        return from_components(components, self.colour, self.pixel_format, size)

    def add_stream(
        self,
        container: av.container.OutputContainer,
        size: tuple[int, int],
        rate: Fraction,
        sample_aspect_ratio: Fraction | None = None,
    ) -> av.VideoStream:
        """Adds a stream of such frames, one every 1 / ``rate`` seconds, to a container."""
        os.environ.setdefault("SVT_LOG", "1")  # libsvtav1 takes no option to say less
        stream = cast(av.VideoStream, container.add_stream(self.codec, rate=rate, options=self.options))
        stream.height, stream.width = size
        stream.pix_fmt, stream.time_base = self.pixel_format, 1 / rate
        context = stream.codec_context
        tag(context, self.colour, self.pixel_format)
        if self.tag is not None:
            context.codec_tag = self.tag
        if sample_aspect_ratio:
            context.sample_aspect_ratio = sample_aspect_ratio
        if self.codec == "libvpx-vp9" and _layout(self.pixel_format).alpha:
            stream.metadata["alpha_mode"] = "1"
        return stream

    def write_image(self, path: Path, components: Components, size: tuple[int, int]) -> None:
        """Writes an image file of ``size`` (H, W)."""
        encoder = cast(av.VideoCodecContext, av.CodecContext.create(self.codec, "w"))
        encoder.height, encoder.width = size
        encoder.pix_fmt, encoder.time_base, encoder.options = self.pixel_format, Fraction(1), dict(self.options)
        tag(encoder, self.colour, self.pixel_format)
        packets = [*encoder.encode(self.frame(components, size)), *encoder.encode(None)]
        path.write_bytes(b"".join(bytes(packet) for packet in packets))


def choose_encoding(
    suffix: str,
    colour: Colour,
    notices: Notices,
    codec: str | None = None,
    pixel_format: str | None = None,
    crf: int | None = None,
    options: dict[str, str] | None = None,
) -> Encoding:
    """How to write a video.

    Args:
        suffix: Of the file's name, such as ``.mp4``.
        colour: Of the pictures.
        notices: Where to say what cannot be kept.
        codec: FFmpeg's name of the encoder; None for one that holds depth and, in .mov and .webm, transparency.
        pixel_format: FFmpeg's name; None for one that the codec and the pictures suggest, at most 10 bits.
        crf: The encoder's quality; 16 for None.
        options: More for the encoder.

    Raises:
        ValueError: for an encoder or a pixel format that does not exist, and for two that do not go together.
    """
    if codec is None:
        deep = colour.bits > 8 if pixel_format is None else _layout(pixel_format).bits > 8
        alpha = colour.alpha if pixel_format is None else _layout(pixel_format).alpha
        codec = (DEEP_CODECS if deep else CODECS)[suffix]
        if alpha and suffix in (".mov", ".webm"):
            codec = "prores_ks" if suffix == ".mov" else "libvpx-vp9"
    codec = encoder_name(codec)
    offered = encoder_formats(codec)
    pixel_format = _checked_format(pixel_format, codec, offered) or _default_format(codec, colour, offered)
    storage = _layout(pixel_format)
    full_range = colour.full_range and colour.matrix != IDENTITY
    of_rgb = BT2020 if colour.primaries == BT2020 else BT709
    written = dataclasses.replace(
        colour,
        matrix=IDENTITY if storage.rgb else of_rgb if colour.matrix == IDENTITY else colour.matrix,
        full_range=storage.rgb or pixel_format.startswith("yuvj") or (full_range and not codec.startswith("prores")),
        siting="left",
        bits=storage.bits,
        alpha=storage.alpha,
    )
    if colour.matrix == IDENTITY and not storage.rgb and not colour.hdr:  # images, which hardly ever say so
        primaries = BT709 if colour.primaries == UNSPECIFIED else colour.primaries
        written = dataclasses.replace(written, primaries=primaries, transfer=BT709)
    _say_what_is_lost(colour, storage, codec, pixel_format, notices)
    own = _codec_options(codec, written, CRF if crf is None else crf, storage)
    for key, value in (options or {}).items():
        own[key] = f"{own[key]}:{value}" if key.endswith("-params") and key in own else value
    tag = "hvc1" if codec == "libx265" and suffix in HEVC_TAG else None
    return Encoding(codec, pixel_format, written, own, tag)


def choose_image_encoding(
    suffix: str,
    colour: Colour,
    notices: Notices,
    pixel_format: str | None = None,
    options: dict[str, str] | None = None,
) -> Encoding:
    """How to write a folder of images; ``suffix`` is one of ``IMAGE_CODECS``. As ``choose_encoding`` otherwise."""
    codec = IMAGE_CODECS[suffix]
    offered = encoder_formats(codec)
    if pixel_format is None:
        letters = ("ya" if colour.alpha else "gray") if colour.grey else ("rgba" if colour.alpha else "rgb")
        shallow = {"ya": "ya8", "gray": "gray", "rgba": "rgba", "rgb": "rgb24"}
        deep = {"ya": "ya16", "gray": "gray16", "rgba": "rgba64", "rgb": "rgb48"}
        wanted = shallow if colour.bits <= 8 else deep
        if codec == "exr":
            wanted = {"ya": "gbrapf32le", "gray": "grayf32le", "rgba": "gbrapf32le", "rgb": "gbrpf32le"}
        pixel_format = wanted[letters]
    pixel_format = _checked_format(pixel_format, codec, offered)
    assert pixel_format is not None
    storage = _layout(pixel_format)
    written = dataclasses.replace(
        colour, matrix=IDENTITY if storage.rgb or storage.grey else colour.matrix, full_range=True, bits=storage.bits
    )
    if codec == "exr":
        written = dataclasses.replace(written, primaries=UNSPECIFIED if not colour.hdr else colour.primaries)
    elif not colour.hdr and colour.primaries not in WIDE:  # PNG viewers would take video's transfer for a gamma
        written = dataclasses.replace(written, primaries=UNSPECIFIED, transfer=UNSPECIFIED)
    elif codec == "tiff":
        notices.add("TIFF files cannot say that their pictures are HDR or of wide gamut; PNG and EXR files can")
    _say_what_is_lost(colour, storage, codec, pixel_format, notices)
    return Encoding(codec, pixel_format, written, dict(options or {}))


def encoder_name(codec: str) -> str:
    """The encoder's own name, also for the name of a format such as hevc. ValueError for one that encodes no video."""
    try:
        encoder = av.Codec(codec, "w")
    except ValueError as error:
        raise ValueError(f"there is no encoder {codec!r} here") from error
    if encoder.type != "video":
        raise ValueError(f"{codec!r} does not encode video")
    return encoder.name


def encoder_formats(codec: str) -> list[str]:
    """The pixel formats that an encoder takes and this package can write; none where it does not say."""
    encoder = av.Codec(codec, "w")
    return [format.name for format in encoder.video_formats or [] if layout(format.name) is not None]


def _checked_format(name: str | None, codec: str, offered: list[str]) -> str | None:
    """The format of that name, which need not say the order of its bytes."""
    if name is None:
        return None
    for candidate in (name, f"{name}le", f"{name}be"):
        if candidate in offered or (not offered and _exists(candidate)):
            return candidate
    if not any(map(_exists, (name, f"{name}le"))):
        raise ValueError(f"there is no pixel format {name!r}")
    raise ValueError(f"{codec} does not write {name}; it writes {', '.join(offered)}")


def _exists(name: str) -> bool:
    try:
        return layout(name) is not None
    except ValueError:
        return False


def _layout(name: str) -> Layout:
    for candidate in (name, f"{name}le", f"{name}be"):
        if _exists(candidate):
            storage = layout(candidate)
            assert storage is not None
            return storage
    raise ValueError(f"there is no pixel format {name!r}")


def _default_format(codec: str, colour: Colour, offered: list[str]) -> str:
    """4:2:0 in 8 or 10 bits where the codec has it, with alpha where it can."""
    if colour.alpha and codec in ALPHA_FORMATS and codec != "libx265":
        return ALPHA_FORMATS[codec]
    if codec in VIDEO_FORMATS:
        return VIDEO_FORMATS[codec]
    shallow, deep = ["yuv420p", "nv12"], ["yuv420p10le", "p010le"]
    wanted = deep + shallow if colour.bits > 8 else shallow + deep
    return next((name for name in wanted if name in offered), offered[0] if offered else wanted[0])


def _say_what_is_lost(colour: Colour, storage: Layout, codec: str, pixel_format: str, notices: Notices) -> None:
    if colour.alpha and not storage.alpha:
        notices.add(f"{codec} in {pixel_format} has no transparency; transparent pictures are laid on black")
    if colour.hdr and storage.bits < 10:
        notices.add(f"HDR in the 8 bits of {pixel_format} shows steps; give --tonemap, or a format of 10 bits")
    if colour.hdr and (colour.mastering or colour.light_level) and codec not in HDR_PARAMETERS and codec != "png":
        notices.add(f"{codec} does not keep the mastering display and light levels of HDR")


def _codec_options(codec: str, colour: Colour, crf: int, storage: Layout) -> dict[str, str]:
    options = {}
    if codec in ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "libaom-av1"):
        options["crf"] = str(crf)
    elif codec.endswith("_nvenc"):
        options["cq"] = str(crf)
    if storage.subsampling != (1, 1):
        options["chroma_sample_location"] = colour.siting
    if codec == "prores_ks" and storage.alpha:
        options |= {"profile": "4", "alpha_bits": "16"}
    if codec in HDR_PARAMETERS:
        parameters = ["log-level=error"] if codec == "libx265" else []
        if codec == "libx264" and _has_avx512():
            # its AVX-512 code reads memory that was never written, and makes other pictures from run to run
            parameters.append("asm=avx2")
        if colour.hdr:
            parameters += _hdr_parameters(codec, colour)
        if parameters:
            options[HDR_PARAMETERS[codec]] = ":".join(parameters)
    return options


def _has_avx512() -> bool:
    try:
        return " avx512f " in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux, where it is not known to matter
        return False


HDR_PARAMETERS = {"libx264": "x264-params", "libx265": "x265-params", "libsvtav1": "svtav1-params"}
"""Options of the encoders that write mastering display and light levels into the video itself."""


def _hdr_parameters(codec: str, colour: Colour) -> list[str]:
    """What the stream says of the display it was mastered on, and its light levels, in an encoder's words."""
    names = {
        "libx264": ("mastering-display", "cll"),
        "libx265": ("master-display", "max-cll"),
        "libsvtav1": ("mastering-display", "content-light"),
    }[codec]
    parameters = []
    if colour.mastering is not None:
        numbers = struct.unpack_from("=20i2i", colour.mastering)
        values = [n / d if d else 0.0 for n, d in zip(numbers[:20:2], numbers[1:20:2], strict=True)]
        red, green, blue, white = (values[i : i + 2] for i in range(0, 8, 2))
        darkest, brightest = values[8:]
        chromaticities, light = (lambda v: f"{v:.5f}"), (lambda v: f"{v:.4f}")
        if codec != "libsvtav1":
            chromaticities, light = (lambda v: str(round(v * 50000))), (lambda v: str(round(v * 10000)))
        points = zip(["G", "B", "R", "WP"], (green, blue, red, white), strict=True)
        text = "".join(f"{name}({chromaticities(x)},{chromaticities(y)})" for name, (x, y) in points)
        parameters.append(f"{names[0]}={text}L({light(brightest)},{light(darkest)})")
    if colour.light_level is not None:
        parameters.append("{}={},{}".format(names[1], *struct.unpack_from("=2I", colour.light_level)))
    return parameters
