"""A pair of frames through the encoder: whole, or in overlapping tiles where the memory budget is too small for that.

A tile is computed with a halo as wide as what its values depend on, so that the result is that of the whole frame but
for the order in which sums are rounded. What bounds this:

- With ``motion`` the velocity, which depends on far surroundings, is found on the whole frame first. A tile then
  depends on the convolutions' receptive field and on what the velocity points to, up to ``LARGEST_REACH``.
- A deformable alignment reads where its offsets point, which is known only afterwards: they may add ``OFFSET_REACH``.
- The recurrent stage chains six such alignments, whose halo would be larger than any tile: it is never tiled.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.geometry import Box, cell_count
from stif_rt.model.config import CHANNELS, Config
from stif_rt.ops.implicit.interface import Kernels, Projections

UNIT = 8
"""Tiles begin at multiples of this, as every encoder's cells do."""
SMALLEST_CORE = 128
"""Pixels along each side of a tile without its halo below which frames are not split, whatever the memory budget."""
LARGEST_REACH = 256
"""Pixels of velocity beyond which a halo does not grow."""
OFFSET_REACH = 32
"""Pixels that deformable offsets are expected to reach, all levels together."""
ALIGNMENT = 38
"""Pixels that the pyramid and the deformable alignment depend on along each side, with offsets of zero."""


def bytes_per_pixel(config: Config, dtype: torch.dtype) -> int:
    """About how much memory the encoder works with for each pixel of a pair of frames, measured."""
    maps = {1: 18, 2: 5}[config.feature_stride] if config.motion else 24  # of 64 channels, at the frames' size
    return maps * CHANNELS * dtype.itemsize


def untileable_reason(config: Config, engine: object) -> str | None:
    """Why frames cannot be encoded in tiles, or None."""
    if config.recurrent:
        return "its recurrent stage depends on too much around each pixel"
    if not isinstance(engine, TorchEngine):
        return "an exported encoder takes whole frames"
    return None


def pad(x: Tensor, multiple: int) -> Tensor:
    """[B, C, h, w] with the last row and column repeated, up to sides that are multiples."""
    h, w = x.shape[-2:]
    return F.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate")


def encode_in_tiles(
    engine: TorchEngine, kernels: Kernels, config: Config, frames: Tensor, velocity: Tensor | None, pixels: int
) -> Projections:
    """The projections of a pair, of whose frames at most that many pixels are in the encoder at a time.

    Args:
        engine: Runs the encoder.
        kernels: Makes the projections of the encoder's maps.
        config: The network's.
        frames: float32 [B, 2, 3, h, w].
        velocity: float32 [B, 2, h, w] in pixels, or None to find it where the network has one.
        pixels: Of one frame; tiles of ``SMALLEST_CORE`` are not split further.
    """
    (h, w), stride = frames.shape[-2:], config.feature_stride
    padded = pad(frames.flatten(0, 1), config.multiple).unflatten(0, frames.shape[:2])
    reach, v = (0, 0), None
    if config.motion:
        v = engine.find_velocity(padded) if velocity is None else F.avg_pool2d(pad(velocity, config.multiple), stride)
        furthest = v.abs().amax((0, 2, 3)).clamp(max=LARGEST_REACH).ceil().tolist()
        reach = (int(furthest[1]), int(furthest[0]))
    halo = (radius(config) + reach[0], radius(config) + reach[1])
    whole = None
    for core, box in tiles((padded.shape[-2], padded.shape[-1]), halo, pixels):
        part = padded[..., box.top : box.top + box.height, box.left : box.left + box.width]
        features = engine(part) if v is None else engine.along(part, _cells(v, box, stride))
        top, left = core.top - box.top, core.left - box.left
        seen = Box(core.top, core.left, min(core.height, h - core.top), min(core.width, w - core.left))
        if seen.height <= 0 or seen.width <= 0:
            continue  # nothing but padding
        wanted = Box(top, left, seen.height, seen.width)
        features = features.map(functools.partial(_cells, box=wanted, stride=stride))
        there = frames[..., seen.top : seen.top + seen.height, seen.left : seen.left + seen.width]
        made = kernels.project(features, there)
        whole = _allocate(made, frames, stride) if whole is None else whole
        _paste(whole, made, seen, stride)
    assert whole is not None
    return whole


def radius(config: Config) -> int:
    """Pixels around a pixel of a frame that the encoder's maps depend on, what is read by velocity not counted."""
    blocks = 2 * config.front_blocks + 2 * config.back_blocks
    if not config.motion:
        return 1 + blocks + ALIGNMENT + OFFSET_REACH
    # the first convolution (and a block at stride 2), a bilinear read, the convolution after it
    return config.feature_stride * (blocks + (3 if config.feature_stride == 1 else 5))


def tiles(size: tuple[int, int], halo: tuple[int, int], pixels: int) -> list[tuple[Box, Box]]:
    """Tiles without and with their halo, which together cost the least among those of at most that many pixels.

    Args:
        size: (H, W) of the padded frames.
        halo: Pixels at top and bottom, and at left and right.
        pixels: Of a tile with its halo, at most; where not even the smallest tile keeps to it, the smallest is taken.
    """
    best: tuple[bool, int, tuple[int, int]] | None = None
    rows, columns = (sorted({_side(n, count) for count in range(1, _most(n) + 1)}) for n in size)
    for core in ((row, column) for row in rows for column in columns):
        sides = [min(side + 2 * (margin + UNIT), n) for side, margin, n in zip(core, halo, size, strict=True)]
        area = sides[0] * sides[1]
        count = math.prod(-(-n // side) for n, side in zip(size, core, strict=True))
        # where none fits: the smallest
        candidate = (area > pixels, area if area > pixels else area * count, core)
        best = candidate if best is None else min(best, candidate)
    assert best is not None
    height, width = best[2]
    cores = [
        Box(top, left, min(height, size[0] - top), min(width, size[1] - left))
        for top in range(0, size[0], height)
        for left in range(0, size[1], width)
    ]
    return [(core, _with_halo(core, halo, size)) for core in cores]


def _most(pixels: int) -> int:
    """The largest number of tiles along an axis."""
    return max(pixels // SMALLEST_CORE, 1)


def _side(pixels: int, count: int) -> int:
    """The side of so many equal tiles along an axis."""
    return min(-(-pixels // (count * UNIT)) * UNIT, pixels)


def _with_halo(core: Box, halo: tuple[int, int], size: tuple[int, int]) -> Box:
    top, left = ((start - margin) // UNIT * UNIT for start, margin in zip(core[:2], halo, strict=True))
    top, left = max(top, 0), max(left, 0)
    bottom, right = (
        min(-(-(start + side + margin) // UNIT) * UNIT, n)
        for start, side, margin, n in zip(core[:2], core[2:], halo, size, strict=True)
    )
    return Box(top, left, bottom - top, right - left)


def _slices(box: Box, stride: int) -> tuple[slice, slice]:
    """The rows and columns of a map's cells that a box of pixels covers."""
    top, left = box.top // stride, box.left // stride
    bottom, right = cell_count(box.top + box.height, stride), cell_count(box.left + box.width, stride)
    return slice(top, bottom), slice(left, right)


def _cells(x: Tensor, box: Box, stride: int) -> Tensor:
    rows, columns = _slices(box, stride)
    return x[..., rows, columns]


def _allocate(part: Projections, frames: Tensor, stride: int) -> Projections:
    """Room for the whole frame's projections; the frames are there already."""
    h, w = (cell_count(n, stride) for n in frames.shape[-2:])

    def room(x: Tensor) -> Tensor:
        return x.new_empty(len(x), h, w, x.shape[-1])

    return part.map(lambda x: room(x) if x.ndim == 4 else frames.movedim(2, -1).contiguous())


def _paste(whole: Projections, part: Projections, pixels: Box, stride: int) -> None:
    rows, columns = _slices(pixels, stride)
    for x, y in zip(whole.tensors, part.tensors, strict=True):
        if x.ndim == 4:
            x[:, rows, columns] = y
