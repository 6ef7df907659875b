"""Video frames to RGB tensors and back: matrix, range, bit depth, chroma siting and alpha, exactly, on any device.

The numbers for matrices, primaries and transfer functions are those of ITU-T H.273, which FFmpeg uses too. RGB here is
the signal as it is coded (gamma, PQ or HLG); ``tonemap.py`` changes that.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import av
import av.logging
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.video.frame_tags import chroma_siting, side_data
from stif_rt.video.planes import Layout, layout, pack, unpack
from stif_rt.video.resampling import enlarge, reduce

IDENTITY, BT709, UNSPECIFIED, BT470BG, SMPTE170M, YCGCO, BT2020 = 0, 1, 2, 5, 6, 8, 9
LINEAR, PQ, HLG = 8, 16, 18
LIMITED, FULL = 1, 2
LUMA_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    BT470BG: (0.299, 0.114),
    SMPTE170M: (0.299, 0.114),
    7: (0.212, 0.087),
    BT2020: (0.2627, 0.0593),
}
"""Weights of red and blue in luma, by matrix."""
HIGHEST_SD = 576
"""Lines up to which players take an untagged picture for BT.601, and for BT.709 above."""
SITINGS = {
    "left": (None, 0),
    "center": (None, None),
    "topleft": (0, 0),
    "top": (0, None),
    "bottomleft": (1, 0),
    "bottom": (1, None),
}
"""Where the first chroma sample lies, (down, across), in luma steps from the first luma sample; None: in the middle."""
CENTRED_CODECS = {"mjpeg", "mjpegb", "ljpeg", "webp", "mpeg1video", "theora", "h261", "h263", "flv1"}
"""Codecs that put chroma samples between the luma samples, always."""


Components = dict[str, Tensor]
"""Stored values by the letter of their component, as in ``planes``."""


class Picture(NamedTuple):
    """A picture.

    Attributes:
        rgb: float32 [3, h, w] in [0, 1].
        alpha: float32 [h, w] in [0, 1], not multiplied into ``rgb``; None where everything is opaque.
    """

    rgb: Tensor
    alpha: Tensor | None = None


@dataclass(frozen=True)
class Colour:
    """How a video's values stand for colours.

    Attributes:
        matrix: From RGB to Y'CbCr; ``IDENTITY`` for RGB.
        primaries: Chromaticities of red, green, blue and white.
        transfer: Transfer characteristics.
        full_range: Whether the values use their whole range, rather than 16 to 235 (of 255).
        siting: Where subsampled chroma lies, a key of ``SITINGS``.
        bits: Of a value; 32 for floating point.
        grey: Whether there is no colour.
        alpha: Whether there is transparency.
        mastering: FFmpeg's AVMasteringDisplayMetadata of HDR; None where the stream has none.
        light_level: FFmpeg's AVContentLightMetadata.
    """

    matrix: int = BT709
    primaries: int = BT709
    transfer: int = BT709
    full_range: bool = False
    siting: str = "left"
    bits: int = 8
    grey: bool = False
    alpha: bool = False
    mastering: bytes | None = None
    light_level: bytes | None = None

    @property
    def hdr(self) -> bool:
        return self.transfer in (PQ, HLG)


def describe(frame: av.VideoFrame, codec: str = "") -> Colour:
    """The colours that a decoded frame is tagged with; where a tag is missing, those that players assume.

    Args:
        frame: The first frame of a stream: asking for the chroma siting takes longer than converting a frame.
        codec: FFmpeg's name of the codec, such as ``h264``.
    """
    name = frame.format.name
    storage = layout(name)
    rgb = storage.rgb if storage else frame.format.is_rgb or name == "pal8"
    grey = storage.grey if storage else name.startswith("mono")
    subsampled = storage.subsampling != (1, 1) if storage else "422" in name
    jpeg = name.startswith("yuvj") or codec in ("mjpeg", "webp")
    matrix = frame.colorspace
    if rgb:
        matrix = IDENTITY
    elif matrix not in LUMA_WEIGHTS and matrix not in (IDENTITY, YCGCO):
        bt601 = jpeg or frame.height <= HIGHEST_SD
        wide = frame.color_primaries == BT2020 or matrix in (10, 14)
        matrix = BT2020 if wide else SMPTE170M if bt601 else BT709
    if frame.color_range in (LIMITED, FULL):
        full_range = frame.color_range == FULL
    else:
        full_range = rgb or grey or jpeg
    siting = None
    if subsampled:
        siting = "center" if codec in CENTRED_CODECS else chroma_siting(frame)
    return Colour(
        matrix=matrix,
        primaries=frame.color_primaries,
        transfer=LINEAR if codec == "exr" and frame.color_trc == UNSPECIFIED else frame.color_trc,
        full_range=full_range,
        siting=siting if siting in SITINGS else "left",
        bits=max(component.bits for component in frame.format.components) if name != "pal8" else 8,
        grey=grey,
        alpha=storage.alpha if storage else name == "pal8",
        mastering=side_data(frame, "MASTERING_DISPLAY_METADATA"),
        light_level=side_data(frame, "CONTENT_LIGHT_LEVEL"),
    )


def to_rgb(frame: av.VideoFrame, colour: Colour, device: torch.device | str = "cpu") -> Picture:
    """The picture of a frame. Values beyond black and white are cut off.

    Args:
        frame: In any pixel format that FFmpeg knows.
        colour: What ``describe`` said of the stream's first frame.
        device: Where the tensors shall be; planes are moved there before they are converted.
    """
    storage, components = unpack(frame, device)
    alpha = None
    if "a" in components:
        alpha = _dequantised(components.pop("a"), storage, Quantisation(0, _largest(storage.bits))).clamp_(0, 1)
        if bool((alpha == 1).all()):
            alpha = None
    luma, chroma = quantisation(storage.bits, colour.full_range or storage.floating)
    if storage.rgb or colour.matrix == IDENTITY:
        red, green, blue = (components[c] for c in ("rgb" if storage.rgb else "vyu"))
        rgb = torch.stack([_dequantised(plane, storage, luma) for plane in (red, green, blue)])
        return Picture(rgb.clamp_(0, 1), alpha)
    y = _dequantised(components["y"], storage, luma)
    if storage.grey:
        return Picture(y.clamp_(0, 1).expand(3, *y.shape), alpha)
    h, w = y.shape
    (down, across), (top, left) = storage.subsampling, _first_sample(colour.siting, storage)
    small = (_dequantised(components[letter], storage, chroma) for letter in "uv")
    u, v = (enlarge(enlarge(plane, 0, h, down, top), 1, w, across, left) for plane in small)
    rgb = y.new_empty(3, h, w)
    for plane, (_, from_u, from_v) in zip(rgb, to_rgb_matrix(colour.matrix).tolist(), strict=True):
        if not from_u:
            torch.add(y, v, alpha=from_v, out=plane)
        else:
            torch.add(y, u, alpha=from_u, out=plane)
            if from_v:
                plane.add_(v, alpha=from_v)
    return Picture(rgb.clamp_(0, 1), alpha)


def to_components(picture: Picture, colour: Colour, pixel_format: str) -> Components:
    """The values that a pixel format stores for a picture, on the picture's device.

    Args:
        picture: Laid on black where the format has no alpha.
        colour: Of the frame to be made; its ``bits`` and ``alpha`` do not matter here, ``grey`` takes the colour out.
        pixel_format: One that ``planes.layout`` knows.
    """
    storage = layout(pixel_format)
    if storage is None:
        raise ValueError(f"pixel format {pixel_format} cannot be written")
    rgb = picture.rgb if storage.alpha else flatten(picture)
    if colour.grey:
        rgb = _mixed(rgb, [1 / 3] * 3).expand(3, -1, -1)
    luma, chroma = quantisation(storage.bits, colour.full_range or storage.floating)
    components = {}
    if storage.alpha:
        alpha = picture.alpha if picture.alpha is not None else rgb.new_ones(rgb.shape[1:])
        components["a"] = _quantised(alpha, storage, Quantisation(0, _largest(storage.bits)))
    if storage.rgb or (colour.matrix == IDENTITY and not storage.grey):
        for letter, plane in zip("rgb" if storage.rgb else "vyu", rgb, strict=True):
            components[letter] = _quantised(plane, storage, luma)
        return components
    rows = np.linalg.inv(to_rgb_matrix(BT709 if colour.matrix == IDENTITY else colour.matrix)).tolist()
    components["y"] = _quantised(_mixed(rgb, rows[0]), storage, luma)
    if not storage.grey:
        (down, across), (top, left) = storage.subsampling, _first_sample(colour.siting, storage)
        for letter, row in zip("uv", rows[1:], strict=True):
            small = reduce(reduce(_mixed(rgb, row), 0, down, top), 1, across, left)
            components[letter] = _quantised(small.clamp_(-0.5, 0.5), storage, chroma)
    return components


def from_components(components: Components, colour: Colour, pixel_format: str, size: tuple[int, int]) -> av.VideoFrame:
    """The frame of ``size`` (h, w) that stores such values, tagged with ``colour``."""
    frame = pack(components, pixel_format, size)
    tag(frame, colour, pixel_format)
    return frame


def from_rgb(picture: Picture, colour: Colour, pixel_format: str) -> av.VideoFrame:
    """A frame of a pixel format, tagged with ``colour``; see ``to_components``."""
    h, w = picture.rgb.shape[1:]
    return from_components(to_components(picture, colour, pixel_format), colour, pixel_format, (h, w))


def tag(target: av.VideoFrame | av.VideoCodecContext, colour: Colour, pixel_format: str) -> None:
    """Writes what ``colour`` says into a frame or an encoder of a pixel format."""
    storage = layout(pixel_format)
    grey = storage is not None and storage.grey
    rgb = storage is None or storage.rgb
    target.colorspace = IDENTITY if rgb else BT709 if colour.matrix == IDENTITY and grey else colour.matrix
    target.color_range = FULL if colour.full_range else LIMITED
    target.color_primaries, target.color_trc = colour.primaries, colour.transfer


def flatten(picture: Picture) -> Tensor:
    """The picture laid on black: float32 [3, h, w]."""
    return picture.rgb if picture.alpha is None else picture.rgb * picture.alpha


def from_image(image: NDArray[np.uint8]) -> Picture:
    """A picture from 8-bit RGB, [h, w, 3]."""
    return Picture(torch.from_numpy(image).permute(2, 0, 1).float().div_(255))


def to_image(picture: Picture) -> NDArray[np.uint8]:
    """The picture laid on black, in 8 bits: [h, w, 3]."""
    values = (flatten(picture) * 255).round_().to(torch.uint8)
    return values.permute(1, 2, 0).contiguous().cpu().numpy()


class Quantisation(NamedTuple):
    """A signal s is stored as offset + scale * s."""

    offset: float
    scale: float


def quantisation(bits: int, full_range: bool) -> tuple[Quantisation, Quantisation]:
    """How luma (and RGB) in [0, 1], and chroma in [-0.5, 0.5], become integers."""
    if full_range:
        return Quantisation(0, _largest(bits)), Quantisation(2 ** (bits - 1), _largest(bits))
    step = 2 ** (bits - 8)
    return Quantisation(16 * step, 219 * step), Quantisation(128 * step, 224 * step)


@functools.cache
def to_rgb_matrix(matrix: int) -> NDArray[np.float64]:
    """[3, 3]: RGB from Y' in [0, 1] and both chroma signals in [-0.5, 0.5]."""
    if matrix == YCGCO:
        return np.array([[1, -1, 1], [1, 1, 0], [1, -1, -1]], dtype=np.float64)
    red, blue = LUMA_WEIGHTS[matrix]
    green = 1 - red - blue
    from_u, from_v = 2 * (1 - blue), 2 * (1 - red)
    return np.array([[1, 0, from_v], [1, -blue * from_u / green, -red * from_v / green], [1, from_u, 0]])


def _largest(bits: int) -> int:
    return 2**bits - 1


def _dequantised(values: Tensor, storage: Layout, quantised: Quantisation) -> Tensor:
    if storage.floating:
        return torch.nan_to_num(values.float(), 0.0)
    signal = values.to(torch.float32, copy=True)
    return signal.sub_(quantised.offset).div_(quantised.scale)


def _quantised(signal: Tensor, storage: Layout, quantised: Quantisation) -> Tensor:
    if storage.floating:
        return signal.float()
    values = (signal * quantised.scale).add_(quantised.offset + 0.5).clamp_(0, _largest(storage.bits))
    return values.to(torch.uint8 if storage.bits == 8 else torch.int32)


def _mixed(rgb: Tensor, weights: list[float]) -> Tensor:
    red, green, blue = weights
    return (rgb[0] * red).add_(rgb[1], alpha=green).add_(rgb[2], alpha=blue)


def _first_sample(siting: str, storage: Layout) -> tuple[float, float]:
    """Position of the first chroma sample, (down, across), in luma samples from the first luma sample."""
    down, across = (
        (step - 1) * (0.5 if place is None else place)
        for place, step in zip(SITINGS[siting], storage.subsampling, strict=True)
    )
    return down, across
