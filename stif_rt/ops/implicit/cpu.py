"""The two passes in native code; the kernels are in ``csrc/cpu``.

The same mathematics as ``reference``, with pre-activations in turns, and each pass one loop over tiles of output
pixels whose activations never leave the cache.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.geometry import Axis, Box, Geometry, cell_count
from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.encoder import Features
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.ops import native
from stif_rt.ops.implicit.interface import Projections, View, first_layer_inputs, read_maps, require_contiguous
from stif_rt.ops.implicit.reference import project
from stif_rt.ops.implicit.weights import TURNS, FoldedSiren, FoldedWeights, fold


def unavailable_reason(config: Config, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot run, or None: see ``BACKENDS``."""
    if device.type != "cpu":
        return f"it runs on CPUs, not on {device}"
    selected = native.select_isa(dtype)
    return selected if isinstance(selected, str) else None


def build(functions: ImplicitFunctions, device: torch.device, dtype: torch.dtype) -> "CpuKernels":
    """The native kernels of a network, by the instruction set that is fastest for the dtype."""
    selected = native.select_isa(dtype)
    assert not isinstance(selected, str)
    with torch.no_grad():
        return CpuKernels(fold(functions.to(device).float(), TURNS), *selected)


class _PackedSiren:
    """One network with its weights packed."""

    def __init__(self, network: FoldedSiren, library: native.Library, isa: native.Isa, pixelwise: bool) -> None:
        """pixelwise: whether the local columns meet activations (and are packed) or the relative position."""

        def pack(weight: Tensor, bias: Tensor | None) -> native.Linear:
            packed = library.pack(isa, weight, bias)
            self._memory.append(packed)
            return native.Linear(packed.data_ptr(), weight.shape[1], weight.shape[0])

        self._memory: list[Tensor] = []  # what the structures point to
        self._network = network
        self.is_constant = network.is_constant
        layers = () if self.is_constant else (*network.hidden, network.output)
        self._hidden = (native.Linear * 5)(*(pack(weight, bias) for weight, bias in layers))
        self._count = len(layers)
        self._local = native.Linear() if network.local is None or not pixelwise else pack(network.local, None)

    def bind_time(self, time: Tensor, geometry: Geometry) -> tuple[native.Siren, Tensor]:
        """The network at one time, and the tensor that it points to."""
        bias = self._network.output[1]
        if self.is_constant:
            start = F.pad(bias, (0, CHANNELS - len(bias)))
        else:
            start = self._network.first_bias(time, geometry.pixel_size)
        return native.Siren(self._local, self._hidden, self._count, start.data_ptr()), start


class CpuKernels:
    """See the module's docstring, and ``Kernels`` for the shapes. Safe to use from several threads."""

    name = "cpu"

    def __init__(self, weights: FoldedWeights, library: native.Library, isa: native.Isa) -> None:
        self.weights = weights
        self.dtype = isa.dtype
        self._library, self._isa = library, isa
        entry_net = weights.tif if weights.sif is None else weights.sif
        self._entry_net = self._tif = None
        if entry_net is not None:
            assert entry_net.local is not None
            self._relative = entry_net.local.T.contiguous()  # [2, 64]
            self._entry_net = _PackedSiren(entry_net, library, isa, pixelwise=False)
        if weights.sif is not None and weights.tif is not None:
            self._tif = _PackedSiren(weights.tif, library, isa, pixelwise=True)
        self._decoder = _PackedSiren(weights.decoder, library, isa, pixelwise=True)
        flow_net = self._entry_net if weights.sif is None else self._tif
        self._constant_flow = flow_net if flow_net is not None and flow_net.is_constant else None
        # a spatial feature that only constant networks read is not computed
        self._has_feature = weights.sif is not None and not (
            self._decoder.is_constant and (flow_net is None or flow_net.is_constant)
        )

        self._projected = (
            weights.sif.projections if weights.sif is not None and self._has_feature else (),
            weights.tif.projections if weights.tif is not None and self._constant_flow is None else (),
            () if self._decoder.is_constant else weights.decoder.projections,
        )
        self.reads_maps = any(self._projected)

    def project(self, features: Features, frames: Tensor) -> Projections:
        if not self.reads_maps:
            return Projections((), (), (), *read_maps(features, frames))
        if self.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return project(self.weights, features, frames, self.dtype)
        # products of bfloat16 that accumulate in float32: what the reference computes, in a fifth of its time
        inputs = first_layer_inputs(features, frames, self.weights.config.feature_stride, self.dtype)
        sif, tif, decoder = (
            tuple(F.linear(inputs, weight.to(self.dtype)) for weight in columns) for columns in self._projected
        )
        return Projections(sif, tif, decoder, *read_maps(features, frames))

    def implicit(
        self, projections: Projections, view: View, feature: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        require_contiguous(projections, view.times, feature)
        times, geometry = view.times, view.geometry
        if self._entry_net is None:
            return None, None
        (B, T, height, width), known = view.shape, feature is not None
        if feature is None and self._has_feature:
            count = T if self.weights.config.sif_time else 1
            feature = torch.empty(B, count, height, width, CHANNELS, dtype=self.dtype, device="cpu")
        flow = None if self.weights.tif is None else torch.empty(*view.shape, 4, dtype=torch.float32, device="cpu")
        nearest_maps = projections.tif if self.weights.sif is None else projections.sif
        for b, t in _indices(times):
            time_of_feature = t if feature is None else min(t, feature.shape[1] - 1)
            computed = not known and time_of_feature == t
            if flow is None and (feature is None or not computed):
                continue
            entry_net, tif_net, written = self._entry_net, self._tif, native.pointer(feature, b, time_of_feature)
            if self._constant_flow is not None and (feature is None or not computed):
                entry_net, tif_net, written, computed = self._constant_flow, None, None, False
            entry, _keep_entry = entry_net.bind_time(times[b, t], geometry)
            tif, _keep_tif = native.Siren(), None
            if tif_net is not None:
                tif, _keep_tif = tif_net.bind_time(times[b, t], geometry)
            call = native.Implicit(
                _axis(geometry.vertical),
                _axis(geometry.horizontal),
                native.Box(*view.box),
                native.pointer(nearest_maps[0], b) if computed else None,
                native.pointer(projections.tif[0], b) if tif_net is not None and not tif_net.is_constant else None,
                native.pointer(projections.velocity, b),
                self._relative.data_ptr(),
                float(times[b, t]),
                entry,
                tif,
                written,
                native.pointer(flow, b, t),
            )
            self._library.run("implicit", self._isa, call)
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
        times, geometry = view.times, view.geometry
        as_bytes, config = output == torch.uint8, self.weights.config
        maps = projections.decoder
        if self._decoder.is_constant:
            feature, maps = None, ()
        out = torch.empty(view.picture_shape(output), dtype=output, device="cpu")
        for b, t in _indices(times):
            decoder, _keep = self._decoder.bind_time(times[b, t], geometry)
            call = native.Decode(
                _axis(geometry.vertical),
                _axis(geometry.horizontal),
                native.Box(*view.box),
                native.Box(*(feature_box or view.box)),
                None if feature is None else native.pointer(feature, b, min(t, feature.shape[1] - 1)),
                native.pointer(flow, b, t),
                (ctypes.c_void_p * 2)(*(native.pointer(positions, b) for positions in maps)),
                native.pointer(projections.frames, b) if config.residual else None,
                config.bicubic,
                config.blend,
                float(times[b, t]),
                decoder,
                None if as_bytes else native.pointer(out, b, t),
                native.pointer(out, b, t) if as_bytes else None,
            )
            self._library.run("decode", self._isa, call)
        return out


def _indices(times: Tensor) -> list[tuple[int, int]]:
    return [(b, t) for b in range(times.shape[0]) for t in range(times.shape[1])]


def _axis(axis: Axis) -> native.Axis:
    return native.Axis(
        axis.inputs,
        axis.outputs,
        cell_count(axis.inputs, axis.stride),
        axis.nearest_index.data_ptr(),
        axis.cell_offset.data_ptr(),
        axis.source_coords.data_ptr(),
        axis.origin,
        axis.step,
        axis.flow_unit,
        axis.extent,
        axis.stride,
        axis.scale,
    )
