"""The two passes in plain PyTorch, on any device and differentiable. The tests compare it, as every backend, with the
model's own form (``model/implicit_functions.py``), which is the definition.

Per pair of frames, ``project`` applies the first layers' shared columns at the input's size. Per frame there are two
passes over the output's pixels:

1. ``implicit``: F = SIF(nearest(P_sif), relative position, t), flow = TIF(F, bilinear(P_tif), t) + that of the
   velocity. No pixel depends on another.
2. ``decode``: rgb = decoder(F(p0), F(p1), P_0(p0), P_1(p1), t) + blend of the frames at the positions p0, p1 to which
   the flow points.

Cost per output pixel and time, with the paper's widths: 37 k + 26 k + 95 k multiply-adds and 1,408 sines; only F, 64
channels, exists as a whole map. In half precision, weights, maps and activations are rounded to that dtype and products
accumulate in float32; coordinates, flow and interpolation weights stay float32.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.geometry import Box, Geometry, in_output_pixels, to_pixels, warp_coordinates
from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.encoder import Features
from stif_rt.model.implicit_functions import ImplicitFunctions, first_frame_weight
from stif_rt.ops.implicit import training
from stif_rt.ops.implicit.interface import Projections, View, first_layer_inputs, read_maps, require_contiguous
from stif_rt.ops.implicit.weights import RADIANS, FoldedSiren, FoldedWeights, fold

CHUNK_PIXELS = 1 << 12
"""Output pixels per step when no gradient is wanted: the widest activation, 4 MiB, stays in the cache."""


def unavailable_reason(config: Config, device: torch.device, dtype: torch.dtype) -> str | None:
    """None: they run everywhere."""
    return None


def build(functions: ImplicitFunctions, device: torch.device, dtype: torch.dtype) -> "ReferenceKernels":
    """The kernels of a network, made of PyTorch's own operations."""
    with torch.no_grad():
        return ReferenceKernels(fold(functions.to(device).float(), RADIANS), dtype)


class ReferenceKernels:
    """See the module's docstring, and ``Kernels`` for the shapes."""

    name = "reference"
    reads_maps = True

    def __init__(self, weights: FoldedWeights, dtype: torch.dtype = torch.float32) -> None:
        self.weights = weights
        self.dtype = dtype

    def project(self, features: Features, frames: Tensor) -> Projections:
        return project(self.weights, features, frames, self.dtype)

    def implicit(
        self, projections: Projections, view: View, feature: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        require_contiguous(projections, view.times, feature)
        if torch.is_grad_enabled():
            return self._implicit(projections, view, feature)
        weights, known, (B, T, height, width) = self.weights, feature, view.shape
        if weights.sif is not None and known is None:
            shape = (B, T if weights.config.sif_time else 1, height, width, CHANNELS)
            feature = view.times.new_empty(shape, dtype=self.dtype)
        flow = None if weights.tif is None else view.times.new_empty((*view.shape, 4))
        for rows, chunk in _chunks(view):
            known_rows = None if known is None else known[:, :, rows]
            parts = self._implicit(projections, chunk, known_rows)
            for whole, part in zip((feature, flow), parts, strict=True):
                if whole is not None and part is not None and part is not known_rows:
                    whole[:, :, rows] = part
        return feature, flow

    def _implicit(
        self, projections: Projections, view: View, feature: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        sif, tif = self.weights.sif, self.weights.tif
        times, geometry, box = view.times, view.geometry, view.box
        rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
        vertical, horizontal = geometry.vertical, geometry.horizontal
        entry_net, maps = (tif, projections.tif) if sif is None else (sif, projections.sif)
        if entry_net is None:
            return None, None
        if feature is None:
            assert entry_net.local is not None
            relative = torch.broadcast_tensors(vertical.cell_offset[rows, None], horizontal.cell_offset[None, columns])
            table = maps[0].float() if torch.is_grad_enabled() else maps[0]  # so that gradients add in float32
            nearest = table[:, vertical.nearest_index[rows]][:, :, horizontal.nearest_index[columns]].float()
            preact = nearest + torch.stack(relative, -1) @ entry_net.local.T
            shown = times if sif is None or self.weights.config.sif_time else times[:, :1]
            out = self._network(entry_net, preact[:, None], shown, geometry)
            if sif is None:
                return None, in_output_pixels(out, geometry)
            feature = out.to(self.dtype)
        if tif is None:
            return feature, None
        assert tif.local is not None
        y, x = torch.broadcast_tensors(vertical.source_coords[rows, None], horizontal.source_coords[None, columns])
        y, x = y.expand(len(times), -1, -1), x.expand(len(times), -1, -1)
        preact = bilinear(projections.tif[0], y, x)
        flow = self._network(tif, preact[:, None] + self._linear(feature, tif.local), times, geometry)
        flow = in_output_pixels(flow, geometry)
        if projections.velocity is not None:
            flow = flow + flow_of(projections.velocity, y, x, times, geometry)
        return feature, flow

    def decode(
        self,
        projections: Projections,
        view: View,
        feature: Tensor | None,
        flow: Tensor | None,
        feature_box: Box | None = None,
        output: torch.dtype = torch.float32,
    ) -> Tensor:
        require_contiguous(projections, feature, flow, view.times)
        feature_box = feature_box or view.box
        if flow is None:
            flow = view.times.new_zeros((*view.shape, 4))
        if torch.is_grad_enabled():
            parts = self.decode_apart(projections, view, feature, flow, feature_box)
            return parts[0] + parts[1]
        rgb = view.times.new_empty(view.picture_shape(torch.float32))
        for rows, chunk in _chunks(view):
            parts = self.decode_apart(projections, chunk, feature, flow[:, :, rows], feature_box)
            rgb[:, :, :, rows] = parts[0] + parts[1]
        if output == torch.uint8:
            return rgb.clamp_(0, 1).mul_(255).round_().movedim(2, -1).to(output, memory_format=torch.contiguous_format)
        return rgb

    def decode_apart(
        self,
        projections: Projections,
        view: View,
        feature: Tensor | None,
        flow: Tensor,
        feature_box: Box,
    ) -> tuple[Tensor, Tensor]:
        """The two terms of ``decode``: the decoder's output, and the blended frames (zero without residual)."""
        network, config = self.weights.decoder, self.weights.config
        times, geometry = view.times, view.geometry
        (h, w), (H, W) = geometry.inputs, geometry.outputs
        preact = times.new_zeros(())
        warped = []
        for k in (0, 1):
            y = warp_coordinates(flow[..., 2 * k + 1], geometry.vertical, view.box.top, dim=2)  # [B, T, height, width]
            x = warp_coordinates(flow[..., 2 * k], geometry.horizontal, view.box.left, dim=3)
            if feature is not None:
                assert network.local is not None
                rows, columns = to_pixels(y, H) - feature_box.top, to_pixels(x, W) - feature_box.left
                sample = self._read_feature(feature, rows, columns)
                weight = network.local[:, k * CHANNELS : (k + 1) * CHANNELS]
                preact = preact + self._linear(sample, weight)
            if projections.decoder:
                rows, columns = to_pixels(y, geometry.vertical.extent), to_pixels(x, geometry.horizontal.extent)
                preact = preact + bilinear(projections.decoder[k], rows, columns)
            if config.residual:
                read = bicubic if config.bicubic else _bilinear_border
                warped.append(read(projections.frames[:, k], to_pixels(y, h), to_pixels(x, w)))
        rgb = self._network(network, preact, times, geometry)
        if not config.residual:
            return rgb.movedim(-1, 2), times.new_zeros(())
        time = times[:, :, None, None, None]
        frame0_weight = 1 - time
        if config.blend:
            rgb, m = rgb.split((3, 1), -1)
            frame0_weight = first_frame_weight(m, time)
        return rgb.movedim(-1, 2), (frame0_weight * warped[0] + (1 - frame0_weight) * warped[1]).movedim(-1, 2)

    def _read_feature(self, feature: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """F, of every time or of all, at positions [B, T, height, width]."""
        if feature.shape[1] == 1:
            return bilinear(feature[:, 0], y, x)
        return bilinear(feature.flatten(0, 1), y.flatten(0, 1), x.flatten(0, 1)).unflatten(0, y.shape[:2])

    def _network(self, network: FoldedSiren, preact: Tensor, times: Tensor, geometry: Geometry) -> Tensor:
        """A SIREN from what its first layer makes of its inputs at each pixel. float32 [B, T, height, width, n]."""
        preact = preact + network.first_bias(times, geometry.pixel_size)[:, :, None, None]
        if _trains_in_bfloat16(self.dtype):
            x = training.sine(preact)
            for weight, bias in network.hidden:
                x = training.sine_layer(x, weight, bias)
            return training.linear(x, *network.output)
        x = torch.sin(preact)
        for weight, bias in network.hidden:
            x = torch.sin(self._linear(x, weight, bias))
        return self._linear(x, *network.output)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias, self.dtype)


def project(weights: FoldedWeights, features: Features, frames: Tensor, dtype: torch.dtype) -> Projections:
    """The first layers' shared columns at the maps' size. See ``Kernels.project``."""
    rounded = torch.float32 if _trains_in_bfloat16(dtype) else dtype
    inputs = first_layer_inputs(features, frames, weights.config.feature_stride, rounded).float()

    def apply(network: FoldedSiren | None) -> tuple[Tensor, ...]:
        columns = () if network is None else network.projections
        return tuple(linear(inputs, weight, None, dtype).to(dtype) for weight in columns)

    return Projections(apply(weights.sif), apply(weights.tif), apply(weights.decoder), *read_maps(features, frames))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x W^T + bias in float32, x and the weight rounded to ``dtype`` first."""
    if _trains_in_bfloat16(dtype):
        return training.linear(x, weight, bias)
    return F.linear(x.to(dtype).float(), weight.to(dtype).float(), bias)


def _trains_in_bfloat16(dtype: torch.dtype) -> bool:
    """Whether ``training.py`` takes over: the same numbers, with a backward pass in bfloat16."""
    return torch.is_grad_enabled() and dtype == torch.bfloat16


def flow_of(velocity: Tensor, y: Tensor, x: Tensor, times: Tensor, geometry: Geometry) -> Tensor:
    """The flow (x0, y0, x1, y1) that a velocity implies, float32 [B, T, height, width, 4], in output pixels.

    velocity: [B, h, w, 2]. y, x: [B, height, width], cells of it. times: [B, T]. See ``implicit_functions.flow_of``.
    """
    t = times[:, :, None, None]
    here = _bilinear_border(velocity, y, x)[:, None] * ((t - 0.5) / geometry.vertical.stride)[..., None]
    there = _bilinear_border(velocity, y[:, None] - here[..., 1], x[:, None] - here[..., 0])
    there = there * there.new_tensor((geometry.horizontal.scale, geometry.vertical.scale))
    return torch.cat((-t[..., None] * there, (1 - t[..., None]) * there), -1)


def bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear samples of channels-last maps, each of the four neighbours outside the map counting as zero.

    maps: [N, h, w, C]. y, x: float32 [N, ...], finite positions in pixels. Returns float32 [N, ..., C].
    """
    _, h, w, _ = maps.shape
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    taps = []
    for row, vertical in ((top, 1 - down), (top + 1, down)):
        for column, horizontal in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            taps.append((row, column, vertical * horizontal * inside))
    return _weighted(maps, taps)


def _bilinear_border(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The same with the border repeated."""
    return bilinear(maps, y.clamp(0, maps.shape[1] - 1), x.clamp(0, maps.shape[2] - 1))


def bicubic(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples of channels-last maps by Keys' cubic convolution with a = -3/4 and the border repeated, as PyTorch has
    it. Shapes as for ``bilinear``."""
    top, left = y.floor(), x.floor()
    rows, columns = cubic_weights(y - top), cubic_weights(x - left)
    taps = [(top + i - 1, left + j - 1, rows[i] * columns[j]) for i in range(4) for j in range(4)]
    return _weighted(maps, taps)


def cubic_weights(fraction: Tensor) -> tuple[Tensor, ...]:
    """Weights of the neighbours at -1, 0, 1 and 2, for a position ``fraction`` beyond the one at 0."""

    def near(d: Tensor) -> Tensor:
        return (1.25 * d - 2.25) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((-0.75 * d + 3.75) * d - 6) * d + 3

    return far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)


def _weighted(maps: Tensor, taps: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Weighted sums of pixels of maps [N, h, w, C], of those nearest to the taps' rows and columns. [N, ..., C]."""
    N, h, w, C = maps.shape
    rows, columns, weights = zip(*taps, strict=True)
    start = torch.arange(N, device=maps.device).view(N, *[1] * (rows[0].ndim - 1)) * (h * w)
    nearest = [
        start + row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long()
        for row, column in zip(rows, columns, strict=True)
    ]
    index, weight = torch.stack(nearest, -1).view(-1, len(taps)), torch.stack(weights, -1).view(-1, len(taps))
    table = maps.reshape(-1, C)
    # a weighted sum of rows is an embedding bag: one pass, and a fast backward, which adds in float32
    if maps.dtype == torch.float32 or torch.is_grad_enabled():
        samples = F.embedding_bag(index, table.float(), per_sample_weights=weight, mode="sum")
    else:
        samples = torch.einsum("nkc,nk->nc", table[index].float(), weight)
    return samples.view(*rows[0].shape, C)


def _chunks(view: View) -> Iterator[tuple[slice, View]]:
    """Whole rows of the view's box, about CHUNK_PIXELS pixels at a time: which rows they are, and their view."""
    top, left, height, width = view.box
    step = max(1, CHUNK_PIXELS // (width * view.times.numel()))
    for row in range(0, height, step):
        count = min(step, height - row)
        yield slice(row, row + count), view.within(Box(top + row, left, count, width))
