"""The continuous part of STIF in the paper's own form: two implicit functions, the warp, and the decoder (Section 3).

This is the definition that everything else is tested against. It is written to be read;
``stif_rt.ops.implicit`` holds the same mathematics rearranged to be fast.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stif_rt.geometry import Geometry, in_output_pixels, make_geometry, warp_coordinates
from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.encoder import Features
from stif_rt.model.siren import Siren

FEATURES = 3 * CHANNELS
"""Channels of the encoder's three maps together."""
IMAGES = 6
"""Channels of the two input frames together."""
BLEND_LIMIT = 8.0
"""Largest size of the decoder's fourth output; e^16 to 1 is as good as one frame alone."""


class Decoded(NamedTuple):
    """One frame per batch element. sif is None for the "-s" variant, flow for "-f".

    rgb: [B, 3, H, W], not clamped. sif: spatial feature F, [B, 64, H, W].
    flow: [B, 4, H, W], (x0, y0, x1, y1) in output pixels: where frame 0 and frame 1 are read.
    """

    rgb: Tensor
    sif: Tensor | None
    flow: Tensor | None


def check_time(config: Config, times: Tensor) -> None:
    """Raise ValueError for times, of any shape, that a network of fixed time does not know."""
    if config.fixed_time and not torch.all(times == 0.5):
        raise ValueError(f"this model was trained for t = 0.5 only and cannot render t = {times.flatten().tolist()}")


class ImplicitFunctions(nn.Module):
    """SIF (``feat_imnet``), TIF (``flow_imnet``) and the decoder (``encode_imnet``)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        scale = int(config.scale)
        if config.single_function:
            flow_inputs = FEATURES + IMAGES + 2
        else:
            flow_inputs = CHANNELS + FEATURES + IMAGES
            # features, frames, position within the cell; size of an output pixel; time
            self.feat_imnet = Siren(FEATURES + IMAGES + 2 + scale + config.sif_time, config.sif_widths, CHANNELS)
        if config.flow:
            self.flow_imnet = Siren(flow_inputs + 1, config.tif_widths, 4)
        inputs = 0 if config.single_function else 2 * CHANNELS
        inputs += 2 * (FEATURES + IMAGES) if config.aggregation else 0
        self.encode_imnet = Siren(inputs + scale + 1, config.decoder_widths, 4 if config.blend else 3)
        if config.residual:
            self._prepare_residual()

    @torch.no_grad()
    def _prepare_residual(self) -> None:
        """Starts as a blend of the two frames that is ready to learn.

        SIREN's own first layer is meant for inputs that fill [-1, 1]; features and positions barely move it. With the
        wider one a batch was fitted to 0.74 of the blend's loss in 60 iterations, 0.94 without.
        """
        scale = int(self.config.scale)
        told = {"feat_imnet": scale + self.config.sif_time, "flow_imnet": 1, "encode_imnet": scale + 1}
        for name, network in self.named_children():
            weight = cast(Siren, network).linears[0].weight
            weight[:, : weight.shape[1] - told[name]] *= 10  # all but scale and time
        if not self.config.single_function:
            position = FEATURES + IMAGES
            self.feat_imnet.linears[0].weight[:, position : position + 2] *= 3
        for parameter in self.encode_imnet.linears[-1].parameters():
            parameter.zero_()
        if self.config.flow:
            for parameter in self.flow_imnet.linears[-1].parameters():
                parameter.mul_(0 if self.config.motion else 0.1)

    def forward(self, features: Features, frames: Tensor, times: Tensor, size: tuple[int, int]) -> Decoded:
        """The frames at ``times`` and ``size``.

        features: from the encoder. frames: [B, 2, 3, h, w], RGB in [0, 1]. times: [B], in [0, 1].
        size: (H, W), any two positive integers.
        """
        check_time(self.config, times)
        inputs = (frames.shape[-2], frames.shape[-1])
        return self.forward_geometry(
            features, frames, times, make_geometry(self.config, inputs, size).to(frames.device)
        )

    def forward_geometry(self, features: Features, frames: Tensor, times: Tensor, geometry: Geometry) -> Decoded:
        """The frames at ``times`` and the pixels of ``geometry``; as ``forward`` otherwise."""
        config = self.config
        B, _, _, h, w = features.maps.shape
        H, W = geometry.outputs
        vertical, horizontal = geometry.vertical, geometry.horizontal
        encoded = features.maps.flatten(1, 2)  # [B, 192, h, w]
        images = at_cells(frames, config.feature_stride).flatten(1, 2)  # [B, 6, h, w]
        time = times.view(B, 1, 1, 1).expand(B, 1, H, W)
        told = [torch.ones_like(time) * geometry.pixel_size] if config.scale else []

        def nearest(x: Tensor) -> Tensor:
            return x[:, :, vertical.nearest_index][:, :, :, horizontal.nearest_index]

        def apply(network: Siren, *inputs: Tensor) -> Tensor:
            return network(torch.cat(inputs, 1).movedim(1, -1)).movedim(-1, 1)

        # Spatial implicit function, Eq. 2 (published checkpoints also show it the frames and the time)
        relative = torch.stack(torch.meshgrid(vertical.cell_offset, horizontal.cell_offset, indexing="ij"))
        relative = relative.expand(B, 2, H, W).to(encoded.dtype)
        nearest_inputs = (nearest(encoded), nearest(images), relative)
        sif = None
        if not config.single_function:
            sif = apply(self.feat_imnet, *nearest_inputs, *told, *([time] if config.sif_time else []))

        # Temporal implicit function
        flow = None
        y, x = (2 * vertical.source_coords + 1) / h - 1, (2 * horizontal.source_coords + 1) / w - 1
        query = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(B, H, W, 2)
        if config.flow and sif is None:
            flow = apply(self.flow_imnet, *nearest_inputs, time)
        elif config.flow and sif is not None:
            flow = apply(self.flow_imnet, sif, sample(encoded, query), sample(images, query), time)
        if flow is not None:
            flow = in_output_pixels(flow.movedim(1, -1), geometry).movedim(-1, 1)
        if flow is not None and features.velocity is not None:
            flow = flow + flow_of(features.velocity, query, times, geometry)

        # Warp and decode
        flows = torch.zeros(B, 4, H, W, device=frames.device, dtype=torch.float32) if flow is None else flow
        flows = flows.to(torch.promote_types(flows.dtype, torch.float32))
        p0, p1 = (
            torch.stack(
                (warp_coordinates(flows[:, k], horizontal, 0, 2), warp_coordinates(flows[:, k + 1], vertical, 0, 1)), -1
            )
            for k in (0, 2)
        )
        inputs = [] if sif is None else [sample(sif, p0), sample(sif, p1)]
        if config.aggregation:
            q0, q1 = (_on_cells(p, geometry, (h, w)) for p in (p0, p1))
            inputs += [sample(encoded, q0), sample(encoded, q1), sample(images, q0), sample(images, q1)]
        rgb = apply(self.encode_imnet, *inputs, *told, time)
        if config.residual:
            mode = "bicubic" if config.bicubic else "bilinear"
            warped0, warped1 = (sample(frames[:, k], p, "border", mode) for k, p in enumerate((p0, p1)))
            if config.blend:
                rgb, m = rgb.split((3, 1), 1)
                frame0_weight = first_frame_weight(m, time)
                rgb = rgb + frame0_weight * warped0 + (1 - frame0_weight) * warped1
            else:
                rgb = rgb + (1 - time) * warped0 + time * warped1
        return Decoded(rgb, sif, flow)


def sample(x: Tensor, position: Tensor, padding: str = "zeros", mode: str = "bilinear") -> Tensor:
    """x: [B, C, h, w]. position: [B, H, W, 2], normalised, x first. Returns [B, C, H, W]."""
    wide = torch.promote_types(x.dtype, torch.float32)  # positions are never half precision
    sampled = F.grid_sample(x.to(wide), position.to(wide), mode, padding, align_corners=False)
    return sampled.to(x.dtype)


def first_frame_weight(m: Tensor, time: Tensor) -> Tensor:
    """Share of the first warped frame in the blend: (1 - t) e^m / ((1 - t) e^m + t e^-m), for the decoder's m."""
    against = time * torch.exp(-2 * m.clamp(-BLEND_LIMIT, BLEND_LIMIT))
    return (1 - time) / (1 - time + against)


def at_cells(frames: Tensor, stride: int) -> Tensor:
    """Frames [B, 2, 3, h, w] at the size of the encoder's maps, whose last cells may be partly outside."""
    if stride == 1:
        return frames
    small = F.avg_pool2d(frames.flatten(0, 1), stride, ceil_mode=True, count_include_pad=False)
    return small.unflatten(0, frames.shape[:2])


def flow_of(velocity: Tensor, query: Tensor, times: Tensor, geometry: Geometry) -> Tensor:
    """The flow that a velocity implies, [B, 4, H, W] in output pixels.

    What is at x at time t is midway at X = x - (t - 1/2) v(X); one step of that fixed point, from X = x, is taken.
    velocity: [B, 2, h, w]. query: [B, H, W, 2], normalised, where the output's pixels lie in it. times: [B].
    """
    (h, w), stride = velocity.shape[-2:], geometry.vertical.stride
    t = times.view(-1, 1, 1, 1)
    x, y = sample(velocity, query, "border").unbind(1)
    here = torch.stack((x * (2 / (w * stride)), y * (2 / (h * stride))), -1)  # normalised, as the query
    x, y = sample(velocity, query - (t - 0.5) * here, "border").unbind(1)
    V = torch.stack((x * geometry.horizontal.scale, y * geometry.vertical.scale), 1)
    return torch.cat((-t * V, (1 - t) * V), 1)


def _on_cells(position: Tensor, geometry: Geometry, cells: tuple[int, int]) -> Tensor:
    """Positions normalised by the frames' edges, normalised by those of maps, which may reach beyond."""
    axes = (geometry.horizontal, cells[1]), (geometry.vertical, cells[0])
    if all(axis.extent == count for axis, count in axes):
        return position
    ratio = position.new_tensor([axis.extent / count for axis, count in axes])
    return (position + 1) * ratio - 1
