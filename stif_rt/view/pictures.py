"""What a page wishes to see, and the pictures that answer it: a coarse one at once, then the fine one in tiles."""

import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.data.resize import imresize
from stif_rt.errors import show
from stif_rt.flow import flow_to_image
from stif_rt.geometry import Box
from stif_rt.runtime import Pair, Runtime
from stif_rt.runtime.requests import LARGEST_SIDE
from stif_rt.runtime.tiling import split
from stif_rt.video.colour import flatten
from stif_rt.video.plan import Pair as Moment
from stif_rt.video.reader import Reader
from stif_rt.video.render import is_grey
from stif_rt.view.clip import Clip

LAYERS = ("picture", "blend", "flow")
"""What can be shown: the network's picture, bicubic enlargement with linear blending, the flow as colours."""
LARGEST_CANVAS = 8192
"""Pixels of a side."""
COARSE_PIXELS = 30_000
"""About how many the coarse picture has."""
SMALL_SIDE = {"cpu": 96, "cuda": 640}
"""Longest side of the shrunk frames that a coarse picture is made of until the full ones are encoded."""
TILE_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Of the fine picture; a newer wish interrupts between two tiles."""
BYTES_OF_PAIRS = 1 << 30
BYTES_PER_PIXEL = 1024
"""What an encoded pair keeps for each pixel of its frames: about four maps of 64 channels in float32."""
SMALL_PAIRS = 32


@dataclass(frozen=True)
class Wish:
    """A view of one moment.

    number: the page's own, which the answers carry. time: seconds. centre: the point of the picture in the middle of
    the canvas, (x, y) in [0, 1]. zoom: canvas pixels per pixel of the clip. size: (width, height) of the canvas.
    layers: which of ``LAYERS``. fine: whether the coarse picture is not enough.
    """

    number: int
    time: Fraction
    centre: tuple[float, float]
    zoom: float
    size: tuple[int, int]
    layers: tuple[str, ...] = ("picture",)
    fine: bool = True


def parse_wish(text: str) -> Wish:
    """A wish from the page's JSON.

    Raises:
        ValueError: It is something else; the message says what.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a wish must be JSON, not {show(text)}") from error
    if not isinstance(given, dict):
        raise ValueError(f"a wish must be an object, not {show(given)}")
    (number,) = _numbers(given, "number", 1, 0, 2**53, whole=True)
    (time,) = _numbers(given, "t", 1, 0, 1e9)
    x, y = _numbers(given, "centre", 2, 0, 1)
    (zoom,) = _numbers(given, "zoom", 1, 1e-3, 1e4)
    width, height = _numbers(given, "size", 2, 1, LARGEST_CANVAS, whole=True)
    layers = given.get("layers", ["picture"])
    if not isinstance(layers, list) or not layers or not all(layer in LAYERS for layer in layers):
        raise ValueError(f"layers must be some of {', '.join(LAYERS)}, not {show(layers)}")
    fine = given.get("fine", True)
    if not isinstance(fine, bool):
        raise ValueError(f"fine must be true or false, not {show(fine)}")
    size = int(width), int(height)
    return Wish(int(number), Fraction(time), (x, y), zoom, size, tuple(dict.fromkeys(layers)), fine)


def _numbers(
    given: dict[str, Any], name: str, count: int, smallest: float, largest: float, whole: bool = False
) -> list[float]:
    values = given.get(name)
    listed: list[Any] = values if isinstance(values, list) and count > 1 else [values]
    kinds = (int,) if whole else (int, float)
    if len(listed) != count or not all(type(v) in kinds and smallest <= v <= largest for v in listed):
        what = f"{count} numbers" if count > 1 else "a number"
        raise ValueError(f"{name} must be {what} from {smallest:g} to {largest:g}, not {show(values)}")
    return listed


class View(NamedTuple):
    """Where a canvas lies on the enlarged picture: outputs (H, W) of the whole picture, region the part in sight."""

    outputs: tuple[int, int]
    region: Box

    def coarse(self) -> "View":
        """The same part in at most about ``COARSE_PIXELS``."""
        factor = math.sqrt(max(1.0, self.region.pixels / COARSE_PIXELS))
        H, W = self.outputs
        height, width = max(1, math.ceil(H / factor)), max(1, math.ceil(W / factor))
        top, left = self.region.top * height // H, self.region.left * width // W
        bottom = -(-(self.region.top + self.region.height) * height // H)
        right = -(-(self.region.left + self.region.width) * width // W)
        return View((height, width), Box(top, left, bottom - top, right - left))

    def only(self, tile: Box) -> "View":
        return View(self.outputs, tile)

    @property
    def rectangle(self) -> list[float]:
        """Left, top, right, bottom of the region as parts of the whole picture."""
        (H, W), (top, left, height, width) = self.outputs, self.region
        return [left / W, top / H, (left + width) / W, (top + height) / H]


def view_of(wish: Wish, size: tuple[int, int]) -> View:
    """The view that a wish asks for of a picture of ``size`` (height, width), as the page computes it.

    Raises:
        ValueError: The picture would be larger than any that can be rendered.
    """
    outputs, places = [], []
    for side, middle, canvas in zip(size, reversed(wish.centre), reversed(wish.size), strict=True):
        whole = max(1, math.floor(side * wish.zoom + 0.5))
        if whole > LARGEST_SIDE:
            raise ValueError(f"zoom {wish.zoom:g} makes a picture of more than {LARGEST_SIDE} pixels")
        start = math.floor(middle * whole - canvas / 2 + 0.5)
        start = min(max(start, 1 - canvas), whole - 1)  # a pixel at least is in sight
        first, stop = max(start, 0), min(start + canvas, whole)
        outputs.append(whole)
        places.append((first, stop - first))
    (top, height), (left, width) = places
    return View((outputs[0], outputs[1]), Box(top, left, height, width))


class Answer(NamedTuple):
    """A picture for a wish.

    Attributes:
        image: RGB, uint8 [h, w, 3].
        header: What the page needs to know of it.
    """

    image: NDArray[np.uint8]
    header: dict[str, Any]


class _Kept(OrderedDict[tuple[Fraction, Fraction], Pair]):
    """The pairs that were used last."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def used(self, key: tuple[Fraction, Fraction]) -> Pair | None:
        if key in self:
            self.move_to_end(key)
        return self.get(key)

    def keep(self, key: tuple[Fraction, Fraction], pair: Pair) -> Pair:
        self[key] = pair
        while len(self) > self.count:
            self.popitem(last=False)
        return pair


class Viewer:
    """Answers wishes about one clip. For one thread.

    Attributes:
        clip: That is shown.
        runtime: Makes the pictures.
        size: (height, width) of the clip with square pixels.
    """

    def __init__(self, reader: Reader, runtime: Runtime) -> None:
        self.clip, self.runtime = Clip(reader), runtime
        self.size = (reader.height, max(1, round(reader.width * (reader.sample_aspect_ratio or 1))))
        pair_bytes = reader.height * reader.width * BYTES_PER_PIXEL
        self._pairs = _Kept(max(2, min(16, BYTES_OF_PAIRS // pair_bytes)))
        self._small_pairs = _Kept(SMALL_PAIRS)
        self._small_side = SMALL_SIDE[runtime.device.type]
        self._shrinks = max(reader.height, reader.width) > 1.5 * self._small_side

    def answers(self, wish: Wish) -> Iterator[Answer]:
        """The coarse picture of every layer, then the tiles of the fine one; not all need be taken.

        Raises:
            ValueError: The wish cannot be fulfilled.
        """
        moment = self.clip.at(wish.time)
        view = view_of(wish, self.size)
        pair = self._pairs.used(_key(moment))
        coarse = self._small_pair(moment) if pair is None and self._shrinks else pair or self._pair(moment)
        pieces: list[tuple[Pair | None, View, str]] = [(coarse, view.coarse(), "coarse")]
        if wish.fine:
            tiles = split(view.region, TILE_PIXELS[self.runtime.device.type])
            middle = _middle(view.region)
            tiles.sort(key=lambda tile: math.dist(_middle(tile), middle))
            pieces += [(None, view.only(tile), "fine") for tile in tiles]
        for number, (source, part, quality) in enumerate(pieces):
            for layer in wish.layers:
                image = self._layer(layer, source or self._pair(moment), moment, part)
                last = number == len(pieces) - 1 and layer == wish.layers[-1]
                yield Answer(image, _header(wish, moment, layer, quality, part, last))

    def _layer(self, layer: str, pair: Pair, moment: Moment, view: View) -> NDArray[np.uint8]:
        (t,) = moment.times
        if layer == "picture":
            image = pair.render(t, size=view.outputs, region=view.region, output="uint8")
            if is_grey(moment.before.picture) and is_grey(moment.after.picture):  # the network may tint it
                image = image.float().mean(-1, keepdim=True).round().byte().expand(-1, -1, 3)
        elif layer == "blend":
            blend = (1 - t) * flatten(moment.before.picture) + t * flatten(moment.after.picture)
            large = imresize(blend, view.outputs, view.region).clamp(0, 1)
            image = (large * 255).round().byte().movedim(0, -1)
        else:
            largest = self._largest_motion(pair) * view.outputs[1]
            image = flow_to_image(pair.flow(t, size=view.outputs, region=view.region), largest)
        return np.ascontiguousarray(image.cpu().numpy())

    def _largest_motion(self, pair: Pair) -> float:
        """The motion that has the full colour, in widths of the picture: one for all times and zooms of a pair."""
        h, w = pair.size
        factor = max(1.0, math.sqrt(h * w / COARSE_PIXELS))
        size = max(1, round(h / factor)), max(1, round(w / factor))
        x, y = pair.flow(0.5, size=size)[:2]
        lengths = x.hypot(y).nan_to_num(0, 0, 0).flatten()
        long = float(lengths.kthvalue(math.ceil(0.99 * len(lengths))).values) / size[1]
        return max(long, 0.5 / w)  # less than half a pixel is stillness

    def _pair(self, moment: Moment) -> Pair:
        pair = self._pairs.used(_key(moment))
        if pair is None:
            frames = (flatten(frame.picture) for frame in (moment.before, moment.after))
            pair = self._pairs.keep(_key(moment), self.runtime.encode(*frames))
        return pair

    def _small_pair(self, moment: Moment) -> Pair:
        pair = self._small_pairs.used(_key(moment))
        if pair is None:
            frames = (_shrunk(flatten(frame.picture), self._small_side) for frame in (moment.before, moment.after))
            pair = self._small_pairs.keep(_key(moment), self.runtime.encode(*frames))
        return pair


def _key(moment: Moment) -> tuple[Fraction, Fraction]:
    return moment.before.start, moment.after.start


def _shrunk(picture: Tensor, side: int) -> Tensor:
    height, width = picture.shape[1:]
    factor = max(height, width) / side
    return F.interpolate(picture[None], (max(1, round(height / factor)), max(1, round(width / factor))), mode="area")[0]


def _middle(box: Box) -> tuple[float, float]:
    return box.top + box.height / 2, box.left + box.width / 2


def _header(wish: Wish, moment: Moment, layer: str, quality: str, view: View, last: bool) -> dict[str, Any]:
    return {
        "number": wish.number,
        "time": float(wish.time),
        "layer": layer,
        "quality": quality,
        "rectangle": view.rectangle,
        "last": last,
        "before": float(moment.before.start),
        "after": float(moment.after.start),
        "t": moment.times[0],
    }
