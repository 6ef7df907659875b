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
from stif_rt.model.siren import Siren

FEATURES = 3 * CHANNELS
"""Channels of the encoder's three maps together."""
IMAGES = 6
"""Channels of the two input frames together."""


class Decoded(NamedTuple):
    """One frame per batch element. sif is None for the "-s" variant, flow for "-f".

    rgb: [B, 3, H, W], not clamped. sif: spatial feature F, [B, 64, H, W].
    flow: [B, 4, H, W], (x0, y0, x1, y1) in output pixels: where frame 0 and frame 1 are read.
    """

    rgb: Tensor
    sif: Tensor | None
    flow: Tensor | None


def check_time(config: Config, times: Tensor) -> None:
    if config.fixed_time and not torch.all(times == 0.5):
        raise ValueError(f"this model was trained for t = 0.5 only and cannot render t = {times.flatten().tolist()}")


class ImplicitFunctions(nn.Module):
    """SIF (``feat_imnet``), TIF (``flow_imnet``) and the decoder (``encode_imnet``)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        located = FEATURES + IMAGES + 2 + 1  # features, frames, relative position, time
        if not config.single_function:
            self.feat_imnet = Siren(located, (64, 64, 256), CHANNELS)
        if config.flow:
            inputs = located if config.single_function else CHANNELS + FEATURES + IMAGES + 1
            self.flow_imnet = Siren(inputs, (64, 64, 256), 4)
        inputs = 0 if config.single_function else 2 * CHANNELS
        inputs += 2 * (FEATURES + IMAGES) if config.aggregation else 0
        self.encode_imnet = Siren(inputs + 1, (64, 64, 256, 256), 3)
        if config.residual:
            self._prepare_residual()

    @torch.no_grad()
    def _prepare_residual(self) -> None:
        """Starts as a blend of the two frames that is ready to learn.

        SIREN's own first layer is meant for inputs that fill [-1, 1]; features and positions barely move it. With the
        wider one a batch was fitted to 0.74 of the blend's loss in 60 iterations, 0.94 without.
        """
        for network in self.children():
            cast(Siren, network).linears[0].weight[:, :-1] *= 10  # all but the time
        if not self.config.single_function:
            self.feat_imnet.linears[0].weight[:, FEATURES + IMAGES : -1] *= 3  # the position within the cell
        for parameter in self.encode_imnet.linears[-1].parameters():
            parameter.zero_()
        if self.config.flow:
            for parameter in self.flow_imnet.linears[-1].parameters():
                parameter.mul_(0.1)

    def forward(self, features: Tensor, frames: Tensor, times: Tensor, size: tuple[int, int]) -> Decoded:
        """The frames at ``times`` and ``size``.

        features: [B, 3, 64, h, w] from the encoder. frames: [B, 2, 3, h, w], RGB in [0, 1]. times: [B], in [0, 1].
        size: (H, W), any two positive integers.
        """
        check_time(self.config, times)
        h, w = features.shape[-2:]
        return self.at(features, frames, times, make_geometry(self.config, (h, w), size).to(features.device))

    def at(self, features: Tensor, frames: Tensor, times: Tensor, geometry: Geometry) -> Decoded:
        """The frames at ``times`` and the pixels of ``geometry``; as ``forward`` otherwise."""
        config = self.config
        B, _, _, h, w = features.shape
        H, W = geometry.outputs
        vertical, horizontal = geometry.vertical, geometry.horizontal
        encoded = features.flatten(1, 2)  # [B, 192, h, w]
        images = frames.flatten(1, 2)  # [B, 6, h, w]
        time = times.view(B, 1, 1, 1).expand(B, 1, H, W)

        def nearest(x: Tensor) -> Tensor:
            return x[:, :, vertical.cells][:, :, :, horizontal.cells]

        def bilinear(x: Tensor, position: Tensor, padding: str = "zeros") -> Tensor:
            wide = torch.promote_types(x.dtype, torch.float32)  # positions are never half precision
            sampled = F.grid_sample(x.to(wide), position.to(wide), padding_mode=padding, align_corners=False)
            return sampled.to(x.dtype)

        def apply(network: Siren, *inputs: Tensor) -> Tensor:
            return network(torch.cat(inputs, 1).movedim(1, -1)).movedim(-1, 1)

        # Spatial implicit function, Eq. 2 (published checkpoints also show it the frames and the time)
        relative = torch.stack(torch.meshgrid(vertical.relative, horizontal.relative, indexing="ij"))
        relative = relative.expand(B, 2, H, W).to(features.dtype)
        located = (nearest(encoded), nearest(images), relative, time)
        sif = None if config.single_function else apply(self.feat_imnet, *located)

        # Temporal implicit function
        flow = None
        if config.flow and sif is None:
            flow = apply(self.flow_imnet, *located)
        elif config.flow and sif is not None:
            y, x = (2 * vertical.positions + 1) / h - 1, (2 * horizontal.positions + 1) / w - 1
            query = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(B, H, W, 2)
            flow = apply(self.flow_imnet, sif, bilinear(encoded, query), bilinear(images, query), time)
        if flow is not None:
            flow = in_output_pixels(flow.movedim(1, -1), geometry).movedim(-1, 1)

        # Warp and decode
        flows = torch.zeros(B, 4, H, W, device=frames.device) if flow is None else flow
        flows = flows.to(torch.promote_types(flows.dtype, torch.float32))
        p0, p1 = (
            torch.stack(
                (warp_coordinates(flows[:, k], horizontal, 0, 2), warp_coordinates(flows[:, k + 1], vertical, 0, 1)), -1
            )
            for k in (0, 2)
        )
        inputs = [] if sif is None else [bilinear(sif, p0), bilinear(sif, p1)]
        if config.aggregation:
            inputs += [bilinear(encoded, p0), bilinear(encoded, p1), bilinear(images, p0), bilinear(images, p1)]
        rgb = apply(self.encode_imnet, *inputs, time)
        if config.residual:
            warped0, warped1 = (bilinear(frames[:, k], p, "border") for k, p in enumerate((p0, p1)))
            rgb = rgb + (1 - time) * warped0 + time * warped1
        return Decoded(rgb, sif, flow)
