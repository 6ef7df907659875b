"""The two passes in plain PyTorch: any device, differentiable. Every other kernel is tested against this one.

Per pair of frames, ``project`` applies the first layers' shared columns at the input's size. Per frame there are two
passes over the output's pixels:

1. ``implicit``: F = SIF(nearest(P_sif), relative position, t), flow = TIF(F, bilinear(P_tif), t).
   No pixel depends on another.
2. ``decode``: rgb = decoder(F(p0), F(p1), P_0(p0), P_1(p1), t) at the positions p0, p1 to which the flow points.

Cost per output pixel and time: 37 k + 26 k + 95 k multiply-adds and 1,408 sines; only F, 64 channels, exists as a
whole map. In half precision, weights, maps and activations are rounded to that dtype and products accumulate in
float32; coordinates, flow and interpolation weights stay float32.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.geometry import Box, Geometry, in_output_pixels, to_pixels, warp_coordinates
from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.ops.implicit import training
from stif_rt.ops.implicit.interface import Projections
from stif_rt.ops.implicit.weights import RADIANS, FoldedSiren, FoldedWeights, fold

CHUNK_PIXELS = 1 << 12
"""Output pixels per step when no gradient is wanted: the widest activation, 4 MiB, stays in the cache."""


def unavailable_reason(config: Config, device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def build(functions: ImplicitFunctions, device: torch.device, dtype: torch.dtype) -> "ReferenceKernels":
    with torch.no_grad():
        return ReferenceKernels(fold(functions.to(device).float(), RADIANS), dtype)


class ReferenceKernels:
    """See the module's docstring, and ``Kernels`` for the shapes."""

    def __init__(self, weights: FoldedWeights, dtype: torch.dtype = torch.float32) -> None:
        self.weights = weights
        self.dtype = dtype

    def project(self, features: Tensor, frames: Tensor) -> Projections:
        return project(self.weights, features, frames, self.dtype)

    def implicit(
        self, projections: Projections, times: Tensor, geometry: Geometry, box: Box
    ) -> tuple[Tensor | None, Tensor | None]:
        if torch.is_grad_enabled():
            return self._implicit(projections, times, geometry, box)
        weights, shape = self.weights, (*times.shape, box.height, box.width)
        feature = None if weights.sif is None else times.new_empty((*shape, CHANNELS), dtype=self.dtype)
        flow = None if weights.tif is None else times.new_empty((*shape, 4))
        for chunk in _chunks(box, times):
            rows = slice(chunk.top - box.top, chunk.top - box.top + chunk.height)
            for whole, part in zip((feature, flow), self._implicit(projections, times, geometry, chunk), strict=True):
                if whole is not None and part is not None:
                    whole[:, :, rows] = part
        return feature, flow

    def _implicit(
        self, projections: Projections, times: Tensor, geometry: Geometry, box: Box
    ) -> tuple[Tensor | None, Tensor | None]:
        sif, tif = self.weights.sif, self.weights.tif
        rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
        vertical, horizontal = geometry.vertical, geometry.horizontal
        feature = flow = None

        located, maps = (tif, projections.tif) if sif is None else (sif, projections.sif)
        if located is None:
            return None, None
        assert located.local is not None
        relative = torch.broadcast_tensors(vertical.relative[rows, None], horizontal.relative[None, columns])
        table = maps[0].float() if torch.is_grad_enabled() else maps[0]  # so that gradients add in float32
        nearest = table[:, vertical.cells[rows]][:, :, horizontal.cells[columns]].float()
        first = nearest + torch.stack(relative, -1) @ located.local.T
        made = self._network(located, first[:, None], times)
        if sif is None:
            return None, in_output_pixels(made, geometry)

        feature = made.to(self.dtype)
        if tif is not None:
            assert tif.local is not None
            y, x = torch.broadcast_tensors(vertical.positions[rows, None], horizontal.positions[None, columns])
            first = bilinear(projections.tif[0], y.expand(len(times), -1, -1), x.expand(len(times), -1, -1))
            flow = self._network(tif, first[:, None] + self._linear(feature, tif.local), times)
            flow = in_output_pixels(flow, geometry)
        return feature, flow

    def decode(
        self,
        projections: Projections,
        feature: Tensor | None,
        flow: Tensor | None,
        times: Tensor,
        geometry: Geometry,
        region: Box,
        box: Box,
    ) -> Tensor:
        if flow is None:
            flow = times.new_zeros((*times.shape, region.height, region.width, 4))
        if torch.is_grad_enabled():
            return self._decode(projections, feature, flow, times, geometry, region, box)
        rgb = times.new_empty((*times.shape, 3, region.height, region.width))
        for chunk in _chunks(region, times):
            rows = slice(chunk.top - region.top, chunk.top - region.top + chunk.height)
            rgb[:, :, :, rows] = self._decode(projections, feature, flow[:, :, rows], times, geometry, chunk, box)
        return rgb

    def _decode(
        self,
        projections: Projections,
        feature: Tensor | None,
        flow: Tensor,
        times: Tensor,
        geometry: Geometry,
        region: Box,
        box: Box,
    ) -> Tensor:
        network = self.weights.decoder
        (h, w), (H, W) = geometry.inputs, geometry.outputs
        first = residual = torch.zeros((), device=times.device)
        for k, share in enumerate((1 - times, times)):
            y = warp_coordinates(flow[..., 2 * k + 1], geometry.vertical, region.top, dim=2)  # [B, T, height, width]
            x = warp_coordinates(flow[..., 2 * k], geometry.horizontal, region.left, dim=3)
            if feature is not None:
                assert network.local is not None
                rows, columns = to_pixels(y, H) - box.top, to_pixels(x, W) - box.left
                sample = bilinear(feature.flatten(0, 1), rows.flatten(0, 1), columns.flatten(0, 1))
                weight = network.local[:, k * CHANNELS : (k + 1) * CHANNELS]
                first = first + self._linear(sample.unflatten(0, times.shape), weight)
            rows, columns = to_pixels(y, h), to_pixels(x, w)
            if projections.decoder:
                first = first + bilinear(projections.decoder[k], rows, columns)
            if self.weights.config.residual:
                frame = bilinear(projections.frames[:, k], rows.clamp(0, h - 1), columns.clamp(0, w - 1))
                residual = residual + share[:, :, None, None, None] * frame
        return (self._network(network, first, times) + residual).movedim(-1, 2)

    def _network(self, network: FoldedSiren, first: Tensor, times: Tensor) -> Tensor:
        """A SIREN from the sum of what its first layer is given but time and bias. float32 [B, T, height, width, n]."""
        time = times[..., None] * network.time + network.bias  # [B, T, 64]
        first = first + time[:, :, None, None]
        if _trains_in_bfloat16(self.dtype):
            x = training.sine(first)
            for weight, bias in network.hidden:
                x = training.sine_layer(x, weight, bias)
            return training.linear(x, *network.output)
        x = torch.sin(first)
        for weight, bias in network.hidden:
            x = torch.sin(self._linear(x, weight, bias))
        return self._linear(x, *network.output)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias, self.dtype)


def project(weights: FoldedWeights, features: Tensor, frames: Tensor, dtype: torch.dtype) -> Projections:
    """The first layers' shared columns at the input's size. See ``Kernels.project``."""
    maps = torch.cat((features.flatten(1, 2), frames.flatten(1, 2)), 1).movedim(1, -1).float()

    def apply(network: FoldedSiren | None) -> tuple[Tensor, ...]:
        columns = () if network is None else network.projections
        return tuple(linear(maps, weight, None, dtype).to(dtype) for weight in columns)

    images = frames.movedim(2, -1).float().contiguous()
    return Projections(apply(weights.sif), apply(weights.tif), apply(weights.decoder), images)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x W^T + bias in float32, x and the weight rounded to ``dtype`` first."""
    if _trains_in_bfloat16(dtype):
        return training.linear(x, weight, bias)
    return F.linear(x.to(dtype).float(), weight.to(dtype).float(), bias)


def _trains_in_bfloat16(dtype: torch.dtype) -> bool:
    """Whether ``kernels.siren`` takes over: the same numbers, with a backward pass in bfloat16."""
    return torch.is_grad_enabled() and dtype == torch.bfloat16


def bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear samples of channels-last maps, each of the four neighbours outside the map counting as zero.

    maps: [N, h, w, C]. y, x: float32 [N, ...], finite positions in pixels. Returns float32 [N, ..., C].
    """
    N, h, w, C = maps.shape
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    start = torch.arange(N, device=maps.device).view(N, *[1] * (y.ndim - 1)) * (h * w)
    indices, shares = [], []
    for row, vertical in ((top, 1 - down), (top + 1, down)):
        for column, horizontal in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            indices.append(start + row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long())
            shares.append(vertical * horizontal * inside)
    index, share = torch.stack(indices, -1), torch.stack(shares, -1)
    table = maps.reshape(-1, C)
    # a weighted sum of four rows is an embedding bag: one pass, and a fast backward, which adds in float32
    if maps.dtype == torch.float32 or torch.is_grad_enabled():
        samples = F.embedding_bag(index.view(-1, 4), table.float(), per_sample_weights=share.view(-1, 4), mode="sum")
    else:
        samples = torch.einsum("nkc,nk->nc", table[index.view(-1, 4)].float(), share.view(-1, 4))
    return samples.view(*y.shape, C)


def _chunks(box: Box, times: Tensor) -> Iterator[Box]:
    """Whole rows of the box, about CHUNK_PIXELS pixels at a time."""
    step = max(1, CHUNK_PIXELS // (box.width * times.numel()))
    for top in range(box.top, box.top + box.height, step):
        yield Box(top, box.left, min(step, box.top + box.height - top), box.width)
