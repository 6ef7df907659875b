"""What turns the decoded frames of one input into upright RGB pictures."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

import av
import torch

from stif_rt.video.colour import (
    IDENTITY,
    LINEAR,
    LUMA_WEIGHTS,
    UNSPECIFIED,
    YCGCO,
    Colour,
    Picture,
    describe,
    to_rgb,
)
from stif_rt.video.frame_tags import side_data
from stif_rt.video.options import Tonemap
from stif_rt.video.orientation import Orientation, exif_orientation, frame_orientation
from stif_rt.video.tonemap import SRGB, content_peak, from_light, tonemap, tonemapped


@dataclass
class Conversion:
    """Made from the first frame of an input by ``make_conversion``.

    Attributes:
        colour: Of the pictures, after tone mapping.
        orientation: Of the stored frames.
        codec: FFmpeg's name of the codec.
        operator: Tone mapping of HDR; None to keep it.
    """

    colour: Colour
    orientation: Orientation
    codec: str = ""
    operator: Tonemap | None = None
    _described: dict[tuple[int | str, ...], Colour] = field(default_factory=dict)

    def __call__(self, frame: av.VideoFrame, device: torch.device | str = "cpu") -> Picture:
        """The picture of a frame, whose format and colours may differ from those of the first one.

        Linear light becomes sRGB: the network knows signals alone.
        """
        colour = self._describe(frame)
        rgb, alpha = to_rgb(frame, colour, device)
        if self.operator is not None and colour.hdr:
            rgb = tonemap(rgb, colour, self.operator, content_peak(colour.mastering, colour.light_level))
        if colour.transfer == LINEAR:
            rgb = from_light(rgb, SRGB)
        return Picture(self.orientation.apply(rgb), None if alpha is None else self.orientation.apply(alpha))

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(height, width) of the picture of a frame."""
        return self.orientation.size(frame.height, frame.width)

    def _describe(self, frame: av.VideoFrame) -> Colour:
        tags = (frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc)
        key = (frame.format.name, frame.height, *tags)
        if key not in self._described:
            self._described[key] = describe(frame, self.codec)
        return self._described[key]


LOST = {
    "DOVI_METADATA": "Dolby Vision metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "A53_CC": "closed captions in the pictures",
    "STEREO3D": "the arrangement of a stereoscopic picture",
    "SPHERICAL": "the projection of a spherical picture",
}
"""What a frame can carry besides its pixels and is not written, by PyAV's name of the side data."""
KNOWN_MATRICES = {*LUMA_WEIGHTS, IDENTITY, YCGCO, UNSPECIFIED}


def what_is_lost(frames: Iterable[av.VideoFrame]) -> list[str]:
    """Notices about what the first frames of a video say and the output will not."""
    lost: list[str] = []
    for frame in frames:
        lost += [LOST[kind] for kind in LOST if side_data(frame, kind) is not None]
        if not frame.format.is_rgb and frame.colorspace not in KNOWN_MATRICES:
            matrix = "BT.2020's" if frame.colorspace in (10, 14) else "that of other pictures of this size"
            lost.append(f"its own YCbCr matrix (number {frame.colorspace} of H.273; {matrix} is taken instead)")
    return [f"not kept: {', '.join(dict.fromkeys(lost))}"] if lost else []


def make_conversion(
    frame: av.VideoFrame,
    codec: str = "",
    exif: bytes | None = None,
    operator: Tonemap | None = None,
) -> Conversion:
    """The conversion for an input.

    Args:
        frame: Its first frame.
        codec: FFmpeg's name of the codec.
        exif: For an image file, its bytes, which tell the orientation; None for a video.
        operator: Tone mapping of HDR to SDR; None to keep HDR.
    """
    colour = describe(frame, codec)
    orientation = frame_orientation(frame) if exif is None else exif_orientation(exif)
    conversion = Conversion(colour, orientation, codec, operator)
    if operator is not None and colour.hdr:
        conversion.colour = tonemapped(colour)
    if colour.transfer == LINEAR:
        conversion.colour = dataclasses.replace(colour, transfer=SRGB)
    return conversion
