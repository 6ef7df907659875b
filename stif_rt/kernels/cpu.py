"""The two passes and the encoder's deformable convolution in native code; the kernels are in ``csrc/cpu``.

The same mathematics as ``reference``, with pre-activations in turns, and each pass one loop over tiles of output
pixels whose activations never leave the cache.
"""

import ctypes

import torch
from torch import Tensor

from stif_rt.kernels import native
from stif_rt.kernels.folded import TURNS, FoldedSiren, FoldedWeights, fold
from stif_rt.kernels.interface import Box, Projections
from stif_rt.kernels.reference import project
from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.coordinates import Axis, Geometry
from stif_rt.model.implicit_functions import ImplicitFunctions

LARGEST_INPUTS = 1 << 16


def unavailable_reason(config: Config, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it runs on CPUs, not on {device}"
    chosen = native.choose(dtype)
    return chosen if isinstance(chosen, str) else None


def build(functions: ImplicitFunctions, device: torch.device, dtype: torch.dtype) -> "CpuKernels":
    chosen = native.choose(dtype)
    assert not isinstance(chosen, str)
    with torch.no_grad():
        return CpuKernels(fold(functions.to(device).float(), TURNS), *chosen)


class _Siren:
    """One network with its weights packed."""

    def __init__(self, network: FoldedSiren, library: native.Library, isa: native.Isa, pixelwise: bool) -> None:
        """pixelwise: whether the local columns meet activations (and are packed) or the relative position."""

        def pack(weight: Tensor, bias: Tensor | None) -> native.Linear:
            packed = library.pack(isa, weight, bias)
            self._memory.append(packed)
            return native.Linear(packed.data_ptr(), weight.shape[1], weight.shape[0])

        self._memory: list[Tensor] = []  # what the structures point to
        self._time, self._bias = network.time, network.bias
        layers = (*network.hidden, network.output)
        self._hidden = (native.Linear * 5)(*(pack(weight, bias) for weight, bias in layers))
        self._count = len(layers)
        self._local = native.Linear() if network.local is None or not pixelwise else pack(network.local, None)

    def at(self, time: Tensor) -> tuple[native.Siren, Tensor]:
        """The network at one time, and the tensor that it points to."""
        start = self._bias + time * self._time
        return native.Siren(self._local, self._hidden, self._count, start.data_ptr()), start


class CpuKernels:
    """See the module's docstring, and ``Kernels`` for the shapes. Safe to use from several threads."""

    def __init__(self, weights: FoldedWeights, library: native.Library, isa: native.Isa) -> None:
        self.weights = weights
        self.dtype = isa.dtype
        self._library, self._isa = library, isa
        located = weights.tif if weights.sif is None else weights.sif
        self._first = self._second = None
        if located is not None:
            assert located.local is not None
            self._relative = located.local.T.contiguous()  # [2, 64]
            self._first = _Siren(located, library, isa, pixelwise=False)
        if weights.sif is not None and weights.tif is not None:
            self._second = _Siren(weights.tif, library, isa, pixelwise=True)
        self._decoder = _Siren(weights.decoder, library, isa, pixelwise=True)

    def project(self, features: Tensor, frames: Tensor) -> Projections:
        return project(self.weights, features, frames, self.dtype)

    def implicit(
        self, projections: Projections, times: Tensor, geometry: Geometry, box: Box
    ) -> tuple[Tensor | None, Tensor | None]:
        if self._first is None:
            return None, None
        shape = (*times.shape, box.height, box.width)
        feature = None if self.weights.sif is None else torch.empty(*shape, CHANNELS, dtype=self.dtype, device="cpu")
        flow = None if self.weights.tif is None else torch.empty(*shape, 4, dtype=torch.float32, device="cpu")
        nearest = projections.tif if self.weights.sif is None else projections.sif
        bilinear = projections.tif if self._second is not None else ()
        for b, t in _indices(times):
            first, _keep_first = self._first.at(times[b, t])
            second, _keep_second = (native.Siren(), None) if self._second is None else self._second.at(times[b, t])
            call = native.Implicit(
                _axis(geometry.vertical),
                _axis(geometry.horizontal),
                native.Box(*box),
                _pointer(nearest[0], b),
                _pointer(bilinear[0], b) if bilinear else None,
                self._relative.data_ptr(),
                first,
                second,
                _pointer(feature, b, t),
                _pointer(flow, b, t),
            )
            self._library.run("implicit", self._isa, call)
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
        rgb = torch.empty(*times.shape, 3, region.height, region.width, dtype=torch.float32, device="cpu")
        feature = None if feature is None else feature.contiguous()
        flow = None if flow is None else flow.contiguous()
        for b, t in _indices(times):
            decoder, _keep = self._decoder.at(times[b, t])
            call = native.Decode(
                _axis(geometry.vertical),
                _axis(geometry.horizontal),
                native.Box(*region),
                native.Box(*box),
                _pointer(feature, b, t),
                _pointer(flow, b, t),
                (ctypes.c_void_p * 2)(*(_pointer(positions, b) for positions in projections.decoder)),
                _pointer(projections.frames, b) if self.weights.config.residual else None,
                float(times[b, t]),
                decoder,
                _pointer(rgb, b, t),
            )
            self._library.run("decode", self._isa, call)
        return rgb


def deform_conv_unavailable(dtype: torch.dtype) -> str | None:
    """Why ``deform_conv2d`` cannot run on tensors of this dtype, or None."""
    chosen = native.choose(dtype)
    return chosen if isinstance(chosen, str) else None


def deform_conv2d(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Modulated deformable convolution; shapes as in ``stif_rt.model.deform_conv``. The result is channels last."""
    chosen = native.choose(x.dtype)
    if isinstance(chosen, str):
        raise RuntimeError(f"the native deformable convolution cannot run: {chosen}")
    library, isa = chosen
    return run_deform_conv2d(library, isa, x, offset, mask, weight, bias)


def run_deform_conv2d(
    library: native.Library,
    isa: native.Isa,
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """``deform_conv2d`` with one instruction set of one library."""
    B, C, h, w = x.shape
    outputs = weight.shape[0]
    if 9 * C > LARGEST_INPUTS or h * w >= 1 << 31:
        raise ValueError(f"x is {list(x.shape)}; the native code takes {LARGEST_INPUTS // 9} channels and 2^31 pixels")
    x, offset, mask = (_pixels(tensor) for tensor in (x, offset, mask))
    packed = library.pack(isa, weight.permute(0, 2, 3, 1).reshape(outputs, 9 * C), bias)
    out = torch.empty(B, outputs, h, w, dtype=x.dtype, memory_format=torch.channels_last, device="cpu")
    for b in range(B):
        call = native.DeformConv(
            h,
            w,
            mask.shape[1] // 9,
            _pointer(x, b),
            _pointer(offset, b),
            _pointer(mask, b),
            *(tensor.stride(3) for tensor in (x, offset, mask)),
            outputs,
            native.Linear(packed.data_ptr(), 9 * C, outputs),
            _pointer(out, b),
        )
        library.run("deform_conv", isa, call)
    return out


def _pixels(maps: Tensor) -> Tensor:
    """[B, C, h, w] with a pixel's channels side by side and pixels evenly spaced; itself where it is so already."""
    _, C, _, w = maps.shape
    _, channel, row, column = maps.stride()
    if (C == 1 or channel == 1) and column >= C and row == w * column:
        return maps
    out = torch.empty(maps.shape, dtype=maps.dtype, memory_format=torch.channels_last, device="cpu")
    return out.copy_(maps)


def _indices(times: Tensor) -> list[tuple[int, int]]:
    return [(b, t) for b in range(times.shape[0]) for t in range(times.shape[1])]


def _pointer(tensor: Tensor | None, *index: int) -> int | None:
    return None if tensor is None else tensor[index].data_ptr()


def _axis(axis: Axis) -> native.Axis:
    return native.Axis(
        axis.inputs,
        axis.outputs,
        axis.cells.data_ptr(),
        axis.relative.data_ptr(),
        axis.positions.data_ptr(),
        axis.origin,
        axis.step,
        axis.flow_unit,
    )
