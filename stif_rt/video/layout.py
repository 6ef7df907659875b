"""The size of output pictures, and which part of the rendered picture they show; nothing here needs PyTorch."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

LARGEST_SIDE = 1 << 16
Fit = Literal["contain", "cover", "stretch"]
FITS: tuple[Fit, ...] = ("contain", "cover", "stretch")


class Layout(NamedTuple):
    """How an output frame is made of a rendered picture. All sizes are (height, width) in pixels.

    frame: size of the output. picture: size at which the input is rendered. region: (y, x, height, width) of it that is
    shown. offset: (y, x) in the frame where that part goes; around it the frame is black. sample_aspect_ratio: of the
    frame's pixels, None for square ones.
    """

    frame: tuple[int, int]
    picture: tuple[int, int]
    region: tuple[int, int, int, int]
    offset: tuple[int, int]
    sample_aspect_ratio: Fraction | None

    @property
    def is_whole(self) -> bool:
        """Whether the frame is the rendered picture itself."""
        return self.region == (0, 0, *self.frame) and self.picture == self.frame

    def scale(self, inputs: tuple[int, int]) -> float:
        """Pixels of the rendered picture per pixel of the input of that size, the geometric mean of both axes."""
        return math.sqrt(math.prod(self.picture) / math.prod(inputs))


def make_layout(
    inputs: tuple[int, int],
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    fit: Fit = "contain",
    region: Sequence[int] | None = None,
    sample_aspect_ratio: Fraction | None = None,
    square_pixels: bool = False,
    even: bool = False,
) -> Layout:
    """The layout of output frames.

    Args:
        inputs: (height, width) of the input.
        scale: output pixels per input pixel; 4 where no size is given either.
        width, height: of the output, square pixels; with one of them the other one keeps the input's shape.
        fit: for both of them, what happens to an input of another shape: ``contain`` shows all of it with black bars,
            ``cover`` fills the frame and cuts the rest off, ``stretch`` changes its shape.
        region: (x, y, width, height) in output pixels, to render that part alone.
        sample_aspect_ratio: width over height of the input's pixels, None for square ones.
        square_pixels: give the output square pixels where ``scale`` would keep those of the input.
        even: whether sides must be even, as for 4:2:0 chroma: what is computed is rounded, what is given must be so.

    Raises:
        ValueError: for sizes that cannot be, and regions outside the frame.
    """
    ratio = sample_aspect_ratio or Fraction(1)
    if width is None and height is None:
        picture, kept = _scaled(inputs, 4 if scale is None else scale, ratio, square_pixels, even)
        frame, offset = picture, (0, 0)
    else:
        if scale is not None:
            raise ValueError("give either a scale or a size, not both")
        frame, kept = _given_size(inputs, width, height, ratio, even), None
        picture = frame if width is None or height is None else _fitted(inputs, ratio, frame, fit)
        offset = ((frame[0] - picture[0]) // 2, (frame[1] - picture[1]) // 2)
    for name, (h, w) in (("the output", frame), ("the picture that is cut to fit it", picture)):
        if not (1 <= h <= LARGEST_SIDE and 1 <= w <= LARGEST_SIDE):
            raise ValueError(f"{name} would be {w}x{h} pixels; sizes go from 1x1 to {LARGEST_SIDE}x{LARGEST_SIDE}")
    y, x, h, w = (0, 0, *frame) if region is None else _region(region, frame, even)
    top, left = max(y, offset[0]), max(x, offset[1])
    bottom, right = min(y + h, offset[0] + picture[0]), min(x + w, offset[1] + picture[1])
    if bottom <= top or right <= left:
        raise ValueError(f"--region {_words(region)} shows nothing but the black bars around the picture")
    shown = (top - offset[0], left - offset[1], bottom - top, right - left)
    return Layout((h, w), picture, shown, (top - y, left - x), kept)


def _scaled(
    inputs: tuple[int, int], scale: float, ratio: Fraction, square_pixels: bool, even: bool
) -> tuple[tuple[int, int], Fraction | None]:
    """The frame for a scale, and the aspect ratio of its pixels."""
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"--scale {scale:g}: must be a positive number")
    if max(inputs) * scale > 2 * LARGEST_SIDE:
        raise ValueError(f"--scale {scale:g}: sizes go from 1x1 to {LARGEST_SIDE}x{LARGEST_SIDE}")
    h, w = (side * scale for side in inputs)
    if square_pixels:
        w *= float(ratio)
    keeps = ratio != 1 and not square_pixels
    return (_rounded(h, even), _rounded(w, even)), ratio if keeps else None


def _given_size(
    inputs: tuple[int, int], width: int | None, height: int | None, ratio: Fraction, even: bool
) -> tuple[int, int]:
    """The frame for a width, a height or both."""
    for side in (width, height):
        if side is not None and not 1 <= side <= LARGEST_SIDE:
            raise ValueError(f"a side of {side} pixels: sizes go from 1x1 to {LARGEST_SIDE}x{LARGEST_SIDE}")
        if side is not None and even and side % 2:
            raise ValueError(f"a side of {side} pixels: sides of a video file must be even (4:2:0 chroma)")
    shape = float(inputs[1] * ratio / inputs[0])
    if height is None:
        assert width is not None
        return _rounded(width / shape, even), width
    return height, _rounded(height * shape, even) if width is None else width


def _fitted(inputs: tuple[int, int], ratio: Fraction, frame: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """The size of the picture for a frame of perhaps another shape."""
    if fit not in FITS:
        raise ValueError(f"--fit {fit}: there are {', '.join(FITS)}")
    if fit == "stretch":
        return frame
    factors = (Fraction(frame[0]) / inputs[0], Fraction(frame[1]) / (inputs[1] * ratio))
    factor = min(factors) if fit == "contain" else max(factors)
    picture = round(inputs[0] * factor), round(inputs[1] * ratio * factor)
    near = all(abs(a - b) <= 1 for a, b in zip(picture, frame, strict=True))
    return frame if near else (max(1, picture[0]), max(1, picture[1]))  # no bar, and no cut, of a single pixel


def _region(region: Sequence[int], frame: tuple[int, int], even: bool) -> tuple[int, int, int, int]:
    """(y, x, height, width) of a region given as (x, y, width, height)."""
    x, y, w, h = region
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > frame[1] or y + h > frame[0]:
        raise ValueError(f"--region {_words(region)} does not lie in the output of {frame[1]}x{frame[0]} pixels")
    if even and (w % 2 or h % 2):
        raise ValueError(f"--region {_words(region)}: sides of a video file must be even (4:2:0 chroma)")
    return y, x, h, w


def _words(region: Sequence[int] | None) -> str:
    return ",".join(map(str, region or ()))


def _rounded(side: float, even: bool) -> int:
    return max(2, 2 * round(side / 2)) if even else max(1, round(side))
