"""Pictures and flows of any size within a memory budget: several times together, or one picture in tiles."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stif_rt.geometry import Box, Geometry, to_pixels, warp_coordinates
from stif_rt.ops.implicit.interface import Kernels, Projections, View

SMALLEST_TILE = 256
"""Output pixels below which a picture is not split further, whatever the memory budget."""


def render_within(
    budget: int,
    kernels: Kernels,
    projections: Projections,
    times: Tensor,
    geometry: Geometry,
    region: Box,
    output: torch.dtype,
) -> Tensor:
    """The pictures of ``region`` at all times, as ``Kernels.decode`` returns them.

    Args:
        budget: Output pixels, of all pictures that are worked on at a time, whose spatial feature may be in memory.
            Tiles of ``SMALLEST_TILE`` pixels are never split, even if what their flow reads exceeds it.
        kernels: What renders.
        projections: Of the pairs, B of them.
        times: float32 [B, T].
        geometry: Of the whole picture.
        region: The output pixels that are wanted.
        output: See ``Kernels.decode``.
    """
    whole = Box(0, 0, *geometry.outputs)
    if region == whole and times.numel() * whole.pixels <= budget:
        return _render_whole(kernels, projections, times, geometry, output)
    planar = output != torch.uint8
    size = (region.height, region.width)
    shape = (*times.shape, 3, *size) if planar else (*times.shape, *size, 3)
    out = torch.empty(shape, dtype=output, device=times.device)
    for pairs, moments in _groups(times, region.pixels, budget):
        part = _some_pairs(projections, pairs)
        some = times[pairs, moments].contiguous()
        if region == whole and some.numel() * whole.pixels <= budget:
            out[pairs, moments] = _render_whole(kernels, part, some, geometry, output)
        else:
            tiles = _Tiles(budget // some.numel(), kernels, part, View(some, geometry, region), output)
            tiles.render(region, out[pairs, moments])
    return out


def flow_within(
    budget: int, kernels: Kernels, projections: Projections, times: Tensor, geometry: Geometry, region: Box
) -> Tensor:
    """The flow over ``region``, float32 [B, T, 4, height, width]. Arguments as for ``render_within``."""
    out = torch.empty(*times.shape, 4, region.height, region.width, dtype=torch.float32, device=times.device)
    for pairs, moments in _groups(times, region.pixels, budget):
        part, some = _some_pairs(projections, pairs), times[pairs, moments].contiguous()
        for tile in split(region, budget // some.numel()):
            _, flow = kernels.implicit(part, View(some, geometry, tile))
            assert flow is not None
            rows, columns = _within(tile, region)
            out[pairs, moments, :, rows, columns] = flow.movedim(-1, 2)
    return out


def _render_whole(
    kernels: Kernels, projections: Projections, times: Tensor, geometry: Geometry, output: torch.dtype
) -> Tensor:
    view = View.whole(times, geometry)
    feature, flow = kernels.implicit(projections, view)
    return kernels.decode(projections, view, feature, flow, output=output)


def _groups(times: Tensor, pixels: int, budget: int) -> Iterator[tuple[slice, slice]]:
    """Pairs and times that are rendered together: all, as many times of all pairs as fit, or of one pair."""
    B, T = times.shape
    pictures = max(budget // pixels, 1)
    together, step = (B, pictures // B) if pictures >= B else (1, pictures)
    for b in range(0, B, together):
        for t in range(0, T, step):
            yield slice(b, b + together), slice(t, t + step)


def _some_pairs(projections: Projections, pairs: slice) -> Projections:
    return projections.map(lambda x: x[pairs])


class _Tiles:
    """Pictures that are rendered tile by tile.

    A pixel reads the spatial feature where its flow points, which may lie outside its tile. So the feature is computed
    over a box that is wider by what the tiles before needed, and again where that is not enough.
    """

    def __init__(
        self,
        budget: int,
        kernels: Kernels,
        projections: Projections,
        view: View,
        output: torch.dtype,
    ) -> None:
        self.budget = budget
        self.kernels, self.projections, self.view, self.output = kernels, projections, view, output
        self.halo = 0  # output pixels around a tile that its flow is expected to read

    def render(self, tile: Box, out: Tensor) -> None:
        """Renders a tile into its place in ``out``, the pictures of the view; in halves where it is too large."""
        geometry = self.view.geometry
        box = grow(tile, self.halo, geometry)
        if box.pixels > self.budget:
            box = tile  # no room for a guess
        while True:
            if box.pixels > self.budget and tile.pixels > SMALLEST_TILE:
                feature = flow = None  # they make room
                for half in halves(tile):
                    self.render(half, out)
                return
            feature = flow = None
            feature, flow = self.kernels.implicit(self.projections, self.view.within(box))
            if flow is not None and box != tile:
                rows, columns = _within(tile, box)
                flow = flow[:, :, rows, columns].contiguous()
            needed = tile if feature is None else source_box(tile, flow, geometry)
            if box.contains(needed):
                break
            box = needed
        self._learn(tile, needed)
        decoded = self.kernels.decode(self.projections, self.view.within(tile), feature, flow, box, self.output)
        rows, columns = _within(tile, self.view.box)
        if self.output == torch.uint8:
            out[:, :, rows, columns] = decoded
        else:
            out[..., rows, columns] = decoded

    def _learn(self, tile: Box, needed: Box) -> None:
        """Keeps slack: a halo too wide costs a few rows, one too narrow repeats pass 1."""
        top, left = tile.top - needed.top, tile.left - needed.left
        widest = max(top, left, needed.height - tile.height - top, needed.width - tile.width - left)
        self.halo = max(widest + widest // 4, self.halo * 3 // 4)


def source_box(tile: Box, flow: Tensor | None, geometry: Geometry) -> Box:
    """The smallest box that holds a tile and every pixel of the spatial feature that its flow reads.

    One pixel wider than computed, for backends that round positions differently. Waits once for the device.

    Args:
        tile: Output pixels.
        flow: float32 [B, T, tile.height, tile.width, 4], or None where each pixel reads at its own place.
        geometry: Of the whole picture.
    """
    H, W = geometry.outputs
    if flow is None:
        flow = geometry.vertical.cell_offset.new_zeros(()).expand(1, 1, tile.height, tile.width, 4)
    y = to_pixels(warp_coordinates(flow[..., 1::2], geometry.vertical, tile.top, dim=2), H)
    x = to_pixels(warp_coordinates(flow[..., 0::2], geometry.horizontal, tile.left, dim=3), W)
    top, bottom, left, right = torch.stack((*y.aminmax(), *x.aminmax())).tolist()
    top, left = (max(min(first, math.floor(low) - 1), 0) for first, low in ((tile.top, top), (tile.left, left)))
    bottom = min(max(tile.top + tile.height, math.floor(bottom) + 3), H)
    right = min(max(tile.left + tile.width, math.floor(right) + 3), W)
    return Box(top, left, bottom - top, right - left)


def grow(box: Box, margin: int, geometry: Geometry) -> Box:
    """The box and ``margin`` pixels around it, as far as the picture goes."""
    H, W = geometry.outputs
    top, left = max(box.top - margin, 0), max(box.left - margin, 0)
    bottom, right = min(box.top + box.height + margin, H), min(box.left + box.width + margin, W)
    return Box(top, left, bottom - top, right - left)


def halves(box: Box) -> tuple[Box, Box]:
    """The box split across its longer side."""
    top, left, height, width = box
    if height >= width:
        half = height // 2
        return Box(top, left, half, width), Box(top + half, left, height - half, width)
    half = width // 2
    return Box(top, left, height, half), Box(top, left + half, height, width - half)


def split(box: Box, pixels: int) -> list[Box]:
    """Tiles of at most that many pixels, or of one."""
    if box.pixels <= max(pixels, 1):
        return [box]
    return [tile for half in halves(box) for tile in split(half, pixels)]


def _within(inner: Box, outer: Box) -> tuple[slice, slice]:
    """The rows and columns of ``inner`` in an array over ``outer``."""
    top, left = inner.top - outer.top, inner.left - outer.left
    return slice(top, top + inner.height), slice(left, left + inner.width)
