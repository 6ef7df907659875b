"""The two passes as fused Triton kernels (``triton_kernels.py``), for NVIDIA GPUs from Turing on.

Each frame takes two launches (several times of a pair as many as one, or one more where F is shared by them), each pair
one matrix product; nothing synchronises.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.geometry import Box, cell_count
from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.ops.implicit.gpu import OLDEST, GpuKernels, Layers, padded_width, unsupported_widths
from stif_rt.ops.implicit.interface import Projections, View
from stif_rt.ops.implicit.weights import TURNS, FoldedSiren, FoldedWeights, fold

OUT_PADDED = 16
"""Width of an output layer with few channels, as in the kernels."""


@dataclass(frozen=True)
class Launch:
    """Launch configuration of one kernel. Nothing of it changes the result by more than rounding.

    rows, columns: output pixels of a tile. block_k: columns of a wide layer that are worked on at a time.
    warps, stages: warps of a program, and how many blocks' weights are under way. registers: limit per thread, or None.
    """

    rows: int
    columns: int
    block_k: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def constants(self) -> dict[str, int]:
        return {"ROWS": self.rows, "COLUMNS": self.columns, "BLOCK_K": self.block_k}

    @property
    def options(self) -> dict[str, Any]:
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


@dataclass(frozen=True)
class Launches:
    """implicit, decode: for networks as wide as the paper's. compact: both passes of those whose decoder has one wide
    layer at most, and so needs few registers."""

    implicit: Launch
    decode: Launch
    compact: Launch

    def of(self, kernel: str, decoder: Layers) -> Launch:
        if not decoder.last:
            return self.compact
        return self.implicit if kernel == "implicit_kernel" else self.decode


# A program of 64 pixels holds the 256-wide layer's 64 x 256 sums in registers, 128 a thread with 4 warps, and hands its
# rows from product to product without leaving a warp. What is measured is the assembler's report (kernel_report).
PLAIN = Launch(4, 4, 16, 8, 1)  # products by FMA keep both operands in registers: 16 pixels are what fits
AMPERE = Launch(8, 8, 32, 4, 2)  # 2 blocks of 4 warps; the next block's weights arrive while this one is worked on
# Fewer than 64 pixels, so that Triton does not take Hopper's and Blackwell's own matrix instructions but Ampere's: on
# an H200, with Triton 3.6, pictures were wrong with the former (errors of 0.1 to 1) and right with the latter. There
# two warps are faster than four: a 720p frame of stif-s 1.46 ms against 1.81, of the paper's network 2.07 against 2.47,
# although the paper's decoder spills 24 to 80 bytes a thread.
SMALL = Launch(4, 8, 32, 2, 2)
EIGHT_WARPS = Launch(8, 8, 32, 8, 2)  # where the assembler spills the decoder's registers with 4 warps

LAUNCHES: Mapping[tuple[int, bool], Launches] = MappingProxyType(
    {
        (75, True): Launches(PLAIN, PLAIN, PLAIN),  # Triton does not use Turing's tensor cores
        (80, True): Launches(AMPERE, AMPERE, AMPERE),
        (86, True): Launches(AMPERE, EIGHT_WARPS, AMPERE),
        (90, True): Launches(SMALL, SMALL, SMALL),
        (120, True): Launches(AMPERE, EIGHT_WARPS, AMPERE),  # Ampere's matrix instructions
        (75, False): Launches(PLAIN, PLAIN, PLAIN),
    }
)
"""By the first compute capability that a line is meant for, and whether operands have 16 bits."""
INTERPRETED = Launches(*[Launch(32, 64, 64, 4, 1)] * 3)
"""For Triton's interpreter, whose cost is per program."""


def launches(capability: tuple[int, int], dtype: torch.dtype) -> Launches:
    """The configurations for a GPU."""
    number, half = 10 * capability[0] + capability[1], dtype != torch.float32
    return LAUNCHES[max((first, is_half) for first, is_half in LAUNCHES if is_half == half and first <= number)]


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, slowly, to test them."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable_reason(config: Config, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot run, or None: see ``BACKENDS``."""
    if device.type != "cuda" and not interpreted():
        return f"Triton's kernels need an NVIDIA GPU, and this device is {device.type!r}"
    if torch.version.hip is not None:
        return "the kernels hold instructions of NVIDIA GPUs, and this PyTorch is built for AMD's"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; PyTorch's CUDA build brings it"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST:
            return f"the GPU has compute capability {capability[0]}.{capability[1]}; Triton needs 7.5 or later"
        if dtype == torch.bfloat16 and capability < (8, 0):
            return "the GPU is older than bfloat16 (compute capability 8.0); use float16 or float32"
    return unsupported_widths(config)


def build(functions: ImplicitFunctions, device: torch.device, dtype: torch.dtype) -> "TritonKernels":
    """The Triton kernels of a network, with the launch configurations of the GPU."""
    configurations = INTERPRETED
    if device.type == "cuda":
        configurations = launches(torch.cuda.get_device_capability(device), dtype)
    with torch.no_grad():
        return TritonKernels(fold(functions.to(device).float(), TURNS), dtype, configurations)


@dataclass(frozen=True)
class PackedSiren:
    """One network as the kernels read it: matrices in the dtype, vectors in float32 (see ``triton_kernels``)."""

    matrices: Tensor
    vectors: Tensor
    layers: Layers


def pack(network: FoldedSiren, dtype: torch.dtype) -> PackedSiren:
    """Lays a network out as ``triton_kernels`` says. Sines that pad a layer read nothing and are read by nothing."""
    layers = Layers.of((CHANNELS, *(len(bias) for _, bias in network.hidden)))
    assert layers is not None
    sees_offset = network.local is not None and network.local.shape[1] == 2
    matrices: list[Tensor] = []
    vectors = [network.time, network.scale, network.bias]
    if network.local is not None:
        columns = network.local.T  # [inputs, 64]
        (vectors if sees_offset else matrices).append(columns)
    inputs = CHANNELS
    for weight, bias in network.hidden:
        outputs = padded_width(len(bias))
        matrices.append(F.pad(weight, (0, inputs - weight.shape[1], 0, outputs - len(bias))).T)
        vectors.append(F.pad(bias, (0, outputs - len(bias))))
        inputs = outputs
    weight, bias = network.output
    weight, empty = F.pad(weight, (0, inputs - weight.shape[1])), -len(weight) % OUT_PADDED
    vectors.append(F.pad(bias, (0, empty)))
    if layers.last:
        vectors.append(weight)
    else:
        matrices.append(F.pad(weight, (0, 0, 0, empty)).T)
    return PackedSiren(
        torch.cat([matrix.reshape(-1) for matrix in matrices]).to(dtype),
        torch.cat([vector.reshape(-1) for vector in vectors]),
        layers,
    )


class TritonKernels(GpuKernels):
    """See the module's docstring, and ``Kernels`` for the shapes."""

    name = "triton"

    def __init__(self, weights: FoldedWeights, dtype: torch.dtype, launches: Launches) -> None:
        super().__init__(weights, dtype)
        self.launches = launches
        self.sif, self.tif = (None if n is None else pack(n, dtype) for n in (weights.sif, weights.tif))
        self.decoder = pack(weights.decoder, dtype)

    def launch_implicit(
        self,
        projections: Projections,
        view: View,
        feature: Tensor | None,
        flow: Tensor | None,
        computed: bool,
    ) -> None:
        entry_net = self.tif if self.sif is None else self.sif
        assert entry_net is not None
        (nearest_map,) = projections.tif if self.sif is None else projections.sif
        tif, bilinear_map = (entry_net, nearest_map) if self.tif is None else (self.tif, projections.tif[0])
        geometry = view.geometry
        vertical, horizontal = geometry.vertical, geometry.horizontal
        h, w = (cell_count(axis.inputs, axis.stride) for axis in (vertical, horizontal))
        launch(
            "implicit_kernel",
            self.launches.of("implicit_kernel", self.decoder.layers),
            view.box,
            view.times,
            nearest_map_ptr=nearest_map,
            bilinear_map_ptr=bilinear_map,
            velocity_ptr=projections.velocity,
            entry_weights_ptr=entry_net.matrices,
            entry_vectors_ptr=entry_net.vectors,
            tif_weights_ptr=tif.matrices,
            tif_vectors_ptr=tif.vectors,
            **{f"{name}_y_ptr": getattr(vertical, name) for name in ("nearest_index", "cell_offset", "source_coords")},
            **{
                f"{name}_x_ptr": getattr(horizontal, name) for name in ("nearest_index", "cell_offset", "source_coords")
            },
            feature_ptr=feature,
            flow_ptr=flow,
            h=h,
            w=w,
            pixel_size=geometry.pixel_size,
            unit_y=vertical.flow_unit,
            unit_x=horizontal.flow_unit,
            stride=float(vertical.stride),
            scale_y=vertical.scale,
            scale_x=horizontal.scale,
            sif_wide=entry_net.layers.wide,
            tif_wide=tif.layers.wide,
            SIF=computed and feature is not None,
            GIVEN=not computed and feature is not None,
            TIF=flow is not None,
            VELOCITY=projections.velocity is not None,
            SIF_PLAIN=entry_net.layers.plain,
            SIF_WIDE=entry_net.layers.wide,
            TIF_PLAIN=tif.layers.plain,
            TIF_WIDE=tif.layers.wide,
        )

    def launch_decode(
        self,
        projections: Projections,
        view: View,
        feature: Tensor | None,
        flow: Tensor | None,
        feature_box: Box,
        out: Tensor,
    ) -> None:
        maps = projections.decoder or (None, None)
        geometry = view.geometry
        vertical, horizontal = geometry.vertical, geometry.horizontal
        h, w = (cell_count(axis.inputs, axis.stride) for axis in (vertical, horizontal))
        plain, wide, last = self.decoder.layers
        launch(
            "decode_kernel",
            self.launches.of("decode_kernel", self.decoder.layers),
            view.box,
            view.times,
            feature_ptr=feature,
            decoder_map0_ptr=maps[0],
            decoder_map1_ptr=maps[1],
            frames_ptr=projections.frames,
            flow_ptr=flow,
            weights_ptr=self.decoder.matrices,
            vectors_ptr=self.decoder.vectors,
            out_ptr=out,
            features_per_pair=1 if feature is None else feature.shape[1],
            h=h,
            w=w,
            extent_y=vertical.extent,
            extent_x=horizontal.extent,
            frame_h=geometry.inputs[0],
            frame_w=geometry.inputs[1],
            H=geometry.outputs[0],
            W=geometry.outputs[1],
            box_top=feature_box.top,
            box_left=feature_box.left,
            box_height=feature_box.height,
            box_width=feature_box.width,
            origin_y=vertical.origin,
            step_y=vertical.step,
            origin_x=horizontal.origin,
            step_x=horizontal.step,
            pixel_size=geometry.pixel_size,
            wide=wide,
            FEATURE=feature is not None,
            FLOW=flow is not None,
            AGGREGATION=self.config.aggregation,
            RESIDUAL=self.config.residual,
            BICUBIC=self.config.bicubic,
            BLEND=self.config.blend,
            PLAIN=plain,
            WIDE=wide,
            LAST=last,
        )


def launch(name: str, configuration: Launch, box: Box, times: Tensor, **arguments: object) -> None:
    """Runs a kernel over the pixels of ``box`` at all times."""
    from stif_rt.ops.implicit import triton_kernels

    tiles = -(-box.height // configuration.rows) * -(-box.width // configuration.columns)
    with torch.cuda.device_of(times):
        getattr(triton_kernels, name)[(tiles, times.numel())](
            **arguments,
            times_ptr=times,
            times_per_pair=times.shape[1],
            top=box.top,
            left=box.left,
            height=box.height,
            width=box.width,
            **configuration.constants,
            **configuration.options,
        )
