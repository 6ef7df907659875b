"""What the backends on GPUs share: networks as their kernels run them, projections, and the tensors of a pass."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from stif_rt.geometry import Box
from stif_rt.model.config import CHANNELS, WIDTHS, Config
from stif_rt.model.encoder import Features
from stif_rt.ops.implicit.interface import Projections, View, first_layer_inputs, read_maps, require_contiguous
from stif_rt.ops.implicit.weights import FoldedWeights

OLDEST = (7, 5)
"""The first compute capability that the backends run on."""


class Layers(NamedTuple):
    """The hidden layers of a SIREN as the kernels run them, after the first of 64 sines.

    plain: how many have 64. wide, last: widths of the one or two that follow, rounded up to a power of two; 0 for none.
    """

    plain: int
    wide: int
    last: int

    @classmethod
    def of(cls, widths: tuple[int, ...]) -> "Layers | None":
        """None where a third layer would follow one that is wider than 64."""
        plain = next((n for n, width in enumerate(widths[1:]) if width != CHANNELS), len(widths) - 1)
        wider = [padded_width(width) for width in widths[1 + plain :]]
        return cls(plain, *wider, *[0] * (2 - len(wider))) if len(wider) <= 2 else None


def padded_width(width: int) -> int:
    """The next power of two, which the kernels compute in."""
    return 1 << (width - 1).bit_length()


def unsupported_widths(config: Config) -> str | None:
    """Why the kernels cannot run networks of a configuration's widths, or None."""
    for name in WIDTHS:
        layers, most = Layers.of(getattr(config, name)), 2 if name == "decoder_widths" else 1
        if layers is None or (layers.last and most == 1):
            return f"{name} {getattr(config, name)} have more than {most} layers from the first one wider than 64 on"
    return None


class GpuKernels(ABC):
    """``Kernels`` by two launches a frame; several times of a pair as many, or one more where F is shared by them."""

    name: str
    reads_maps = True

    def __init__(self, weights: FoldedWeights, dtype: torch.dtype) -> None:
        self.config = weights.config
        self.dtype = dtype
        networks = (weights.sif, weights.tif, weights.decoder)
        self.counts = [0 if n is None else len(n.projections) for n in networks]
        columns = [weight.T for n in networks if n is not None for weight in n.projections]
        self.projections = torch.stack(columns).to(dtype)  # [maps, 198, 64]

    def project(self, features: Features, frames: Tensor) -> Projections:
        B, _, _, h, w = features.maps.shape
        inputs = first_layer_inputs(features, frames, self.config.feature_stride, self.dtype)
        maps = inputs.reshape(1, B * h * w, -1).expand(len(self.projections), -1, -1) @ self.projections
        sif, tif, decoder = maps.view(-1, B, h, w, CHANNELS).split(self.counts)
        return Projections(tuple(sif), tuple(tif), tuple(decoder), *read_maps(features, frames))

    def implicit(
        self, projections: Projections, view: View, feature: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        require_contiguous(projections, view.times, feature)
        times = view.times
        if self.config.single_function and not self.config.flow:
            return None, None
        flow = times.new_empty((*view.shape, 4)) if self.config.flow else None
        if self.config.single_function or feature is not None:
            if flow is not None:
                self.launch_implicit(projections, view, feature, flow, computed=False)
            return feature, flow
        shared = not self.config.sif_time and times.shape[1] > 1
        B, T, height, width = view.shape
        feature = times.new_empty((B, 1 if shared else T, height, width, CHANNELS), dtype=self.dtype)
        if shared:  # F at one time, then the flow at all of them
            first = replace(view, times=times[:, :1].contiguous())
            self.launch_implicit(projections, first, feature, None, computed=True)
            if flow is not None:
                self.launch_implicit(projections, view, feature, flow, computed=False)
        else:
            self.launch_implicit(projections, view, feature, flow, computed=True)
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
        out = view.times.new_empty(view.picture_shape(output), dtype=output)
        self.launch_decode(projections, view, feature, flow, feature_box or view.box, out)
        return out

    @abstractmethod
    def launch_implicit(
        self,
        projections: Projections,
        view: View,
        feature: Tensor | None,
        flow: Tensor | None,
        computed: bool,
    ) -> None:
        """Pass 1: F where ``computed``, else it is read where there is one; and the flow where there is room for it."""

    @abstractmethod
    def launch_decode(
        self,
        projections: Projections,
        view: View,
        feature: Tensor | None,
        flow: Tensor | None,
        feature_box: Box,
        out: Tensor,
    ) -> None:
        """Pass 2, into ``out``."""
