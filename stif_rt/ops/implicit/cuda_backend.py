"""The two passes in CUDA C++ (``csrc/cuda/implicit.cu``), in float16, for every NVIDIA GPU since Turing.

They use matrix instructions that all of these have, in half as many instructions a pixel as Triton's passes; on an H200
a 720p frame takes half as long (``benchmarks/results``). Triton runs the other dtypes. On a GPU that a process has not
used yet, a small picture is compared with the reference first.
"""

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.errors import CannotRunError
from stif_rt.geometry import Box, cell_count, make_geometry
from stif_rt.model.config import CHANNELS, WIDTHS, Config
from stif_rt.model.encoder import Features
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.model.siren import Siren
from stif_rt.ops import nvrtc
from stif_rt.ops.implicit import reference
from stif_rt.ops.implicit.gpu import OLDEST, GpuKernels, Layers, padded_width, unsupported_widths
from stif_rt.ops.implicit.interface import Kernels, Projections, View
from stif_rt.ops.implicit.weights import RADIANS, FoldedSiren, FoldedWeights, fold

SOURCE = nvrtc.find_source("implicit.cu")
KERNELS = ("implicit_float16", "decode_float16")
THREADS = 128
ROWS, COLUMNS = 8, 16
"""Output pixels of a block."""
FEW = 8
"""Width of an output layer with few channels, as in the kernels."""
LARGEST_ERROR = 0.01
"""Of a picture by the kernels against the reference in float32; half precision makes it about 0.001."""
SLICE = 2048
"""Weights that pass through shared memory at a time."""


def _fields(pointers: str, integers: str, floats: str) -> list[tuple[str, Any]]:
    kinds = ((pointers, ctypes.c_void_p), (integers, ctypes.c_int), (floats, ctypes.c_float))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class ImplicitArguments(ctypes.Structure):
    """``Implicit`` of the source."""

    _fields_ = _fields(
        "nearest_map entry_vectors bilinear_map tif_vectors tif_output velocity weights times "
        "nearest_index_y nearest_index_x cell_offset_y cell_offset_x source_coords_y source_coords_x feature flow",
        "given times_per_pair h w top left height width",
        "pixel_size unit_y unit_x stride scale_y scale_x",
    )


class DecodeArguments(ctypes.Structure):
    """``Decode`` of the source."""

    _fields_ = _fields(
        "feature map0 map1 frames flow weights vectors output times rgb bytes",
        "bicubic blend times_per_pair features_per_pair h w frame_h frame_w H W top left height width box_top box_left "
        "box_height box_width",
        "extent_y extent_x origin_y step_y origin_x step_x pixel_size",
    )


ARGUMENTS: Mapping[str, type[ctypes.Structure]] = dict(zip(KERNELS, (ImplicitArguments, DecodeArguments), strict=True))


def unavailable_reason(config: Config, device: torch.device, dtype: torch.dtype) -> str | None:
    """The first call for a GPU and a network's widths compiles the kernels, which takes seconds, and tries them."""
    if device.type != "cuda":
        return f"the CUDA C++ kernels need an NVIDIA GPU, and this device is {device.type!r}"
    if torch.version.hip is not None:
        return "the kernels hold instructions of NVIDIA GPUs, and this PyTorch is built for AMD's"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; the kernels need 7.5 or later"
    if dtype != torch.float16:
        return "the CUDA C++ kernels compute in float16 only"
    if reason := unsupported_widths(config) or nvrtc.unavailable_reason():
        return reason
    with torch.cuda.device(device):
        for name in KERNELS:
            loaded = _load(torch.cuda.current_device(), name, definitions(config))
            if isinstance(loaded, str):
                return loaded
        return wrong_pictures(config, device)


@functools.cache
def wrong_pictures(config: Config, device: torch.device) -> str | None:
    """Renders a small picture of a random network as the float32 reference does; says so where they differ."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        functions = ImplicitFunctions(config)
        draw_outputs(functions)
        (h, w), outputs, stride = (16, 24), (27, 50), config.feature_stride
        cells = cell_count(h, stride), cell_count(w, stride)
        velocity = (4 * torch.rand(1, 2, *cells) - 2).to(device) if config.motion else None
        features = Features((torch.rand(1, 3, CHANNELS, *cells) - 0.5).to(device), velocity)
        frames = torch.rand(1, 2, 3, h, w).to(device)
        view = View.whole(torch.full((1, 1), 0.5, device=device), make_geometry(config, (h, w), outputs).to(device))
        pictures = []
        both: tuple[Kernels, ...] = (
            build(functions, device, torch.float16),
            reference.build(functions, device, torch.float32),
        )
        for kernels in both:
            projections = kernels.project(features.to(kernels.dtype), frames)
            feature, flow = kernels.implicit(projections, view)
            pictures.append(kernels.decode(projections, view, feature, flow).float())
    picture, exact = pictures
    error = float((picture - exact).norm() / exact.norm())
    if error < LARGEST_ERROR:  # not so if it is NaN
        return None
    return f"the CUDA C++ kernels give wrong pictures on this GPU (error {error:.1e}); please report it"


@torch.no_grad()
def draw_outputs(functions: ImplicitFunctions) -> None:
    """Draws the last layers' weights of a network at random: some begin with zeros, and nothing before them counts."""
    for network in functions.children():
        cast(Siren, network).linears[-1].weight.uniform_(-0.05, 0.05)


def build(functions: ImplicitFunctions, device: torch.device, dtype: torch.dtype) -> "CudaKernels":
    """The CUDA C++ kernels of a network."""
    with torch.no_grad():
        return CudaKernels(fold(functions.to(device).float(), RADIANS))


def definitions(config: Config) -> tuple[str, ...]:
    """What the source is compiled with for a network."""
    found = []
    for name in WIDTHS:
        layers = Layers.of(getattr(config, name))
        assert layers is not None
        values = layers._asdict() if name == "decoder_widths" else {"plain": layers.plain, "wide": layers.wide}
        found += [f"{name.removesuffix('_widths')}_{part}".upper() + f"={value}" for part, value in values.items()]
    return tuple(found)


def compile_kernel(config: Config, architecture: str) -> bytes:
    """The kernels compiled for a network's widths; see ``nvrtc.compile_source``."""
    return nvrtc.compile_source(SOURCE, architecture, definitions=definitions(config))


@functools.cache
def _load(device: int, name: str, defined: tuple[str, ...]) -> Any:
    """The loaded kernel, or as words why there is none. The caller has made ``device`` the current one."""
    return nvrtc.load_kernel(functools.partial(nvrtc.compile_source, SOURCE, definitions=defined), name, device)


@dataclass(frozen=True)
class PackedSiren:
    """One network as the kernels read it (see ``implicit.cu``).

    slices: float16 [n, SLICE], its matrices but the one of few outputs. output: that one, float16. vectors: float32.
    """

    slices: Tensor
    output: Tensor
    vectors: Tensor


def channel_order(count: int) -> Tensor:
    """The channels in the order of a matrix instruction's columns: see ``first_channel`` in the source."""
    return torch.arange(count).view(-1, 4, 4, 2).transpose(1, 2).flatten()  # [block, lane, tile, 2]


def fragments(weight: Tensor) -> Tensor:
    """A matrix [outputs, inputs] as lanes read it: float16 [outputs / 8, inputs / 32, 32 lanes, 4 tiles, 2].

    Its inputs are a multiple of 32, its outputs one too, or FEW, which stay in their order.
    """
    outputs, inputs = weight.shape
    weight = weight[:, channel_order(inputs).to(weight.device)]
    if outputs != FEW:
        weight = weight[channel_order(outputs).to(weight.device)]
    tiles = weight.view(outputs // 8, 8, inputs // 32, 4, 4, 2)  # [.., column, .., tile, lane % 4, 2]
    return tiles.permute(0, 2, 1, 4, 3, 5).reshape(outputs // 8, inputs // 32, 32, 4, 2).half()


def pack(network: FoldedSiren) -> PackedSiren:
    """Lays a network out as the source says. Sines that pad a layer read nothing and are read by nothing."""
    sees_offset = network.local is not None and network.local.shape[1] == 2
    vectors = [network.time, network.scale, network.bias]
    matrices: list[Tensor] = []
    if network.local is not None and sees_offset:
        vectors.append(network.local.T)
    elif network.local is not None:
        matrices += network.local.split(CHANNELS, 1)
    inputs = CHANNELS
    for weight, bias in network.hidden:
        outputs = padded_width(len(bias))
        matrices.append(F.pad(weight, (0, inputs - weight.shape[1], 0, outputs - len(bias))))
        vectors.append(F.pad(bias, (0, outputs - len(bias))))
        inputs = outputs
    slices = [fragments(matrix).view(-1, SLICE) for matrix in matrices]
    weight, bias = network.output
    weight, empty = F.pad(weight, (0, inputs - weight.shape[1])), -len(weight) % FEW
    vectors.append(F.pad(bias, (0, empty)))
    output = fragments(F.pad(weight, (0, 0, 0, empty)))
    if len(weight) == CHANNELS:
        parts = output.transpose(0, 1).reshape(-1, SLICE)  # by inputs, 32 each
        if inputs > CHANNELS:  # each follows the slice of sines that it takes
            slices[-1] = torch.stack((slices[-1], parts), 1).flatten(0, 1)
        else:
            slices.append(output.view(-1, SLICE))
    flat = torch.cat([vector.reshape(-1) for vector in vectors]).contiguous()
    return PackedSiren(torch.cat(slices) if slices else weight.new_empty(0, SLICE).half(), output.contiguous(), flat)


class CudaKernels(GpuKernels):
    """See the module's docstring, and ``Kernels`` for the shapes."""

    name = "cuda"

    def __init__(self, weights: FoldedWeights) -> None:
        super().__init__(weights, torch.float16)
        self.sif, self.tif = (None if n is None else pack(n) for n in (weights.sif, weights.tif))
        self.decoder = pack(weights.decoder)
        self.implicit_slices = _stream(self.sif, self.tif)
        self.decoder_slices = _stream(self.decoder)
        self.defined = definitions(weights.config)

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
        given = feature is not None and not computed
        tif = self.tif or entry_net
        geometry = view.geometry
        vertical, horizontal = geometry.vertical, geometry.horizontal
        h, w = (cell_count(axis.inputs, axis.stride) for axis in (vertical, horizontal))
        launch(
            "implicit_float16",
            self.defined,
            view.box,
            view.times,
            nearest_map=nearest_map,
            entry_vectors=entry_net.vectors,
            bilinear_map=projections.tif[0] if projections.tif else nearest_map,
            tif_vectors=tif.vectors,
            tif_output=tif.output,
            velocity=projections.velocity,
            weights=self.implicit_slices[len(entry_net.slices) :] if given else self.implicit_slices,
            **{f"{name}_y": getattr(vertical, name) for name in ("nearest_index", "cell_offset", "source_coords")},
            **{f"{name}_x": getattr(horizontal, name) for name in ("nearest_index", "cell_offset", "source_coords")},
            feature=feature,
            flow=flow,
            given=given,
            h=h,
            w=w,
            pixel_size=geometry.pixel_size,
            unit_y=vertical.flow_unit,
            unit_x=horizontal.flow_unit,
            stride=vertical.stride,
            scale_y=vertical.scale,
            scale_x=horizontal.scale,
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
        launch(
            "decode_float16",
            self.defined,
            view.box,
            view.times,
            feature=feature,
            map0=maps[0],
            map1=maps[1],
            frames=projections.frames if self.config.residual else None,
            flow=flow,
            weights=self.decoder_slices,
            vectors=self.decoder.vectors,
            output=self.decoder.output,
            rgb=None if out.dtype == torch.uint8 else out,
            bytes=out if out.dtype == torch.uint8 else None,
            bicubic=self.config.bicubic,
            blend=self.config.blend,
            features_per_pair=1 if feature is None else feature.shape[1],
            h=h,
            w=w,
            frame_h=geometry.inputs[0],
            frame_w=geometry.inputs[1],
            H=geometry.outputs[0],
            W=geometry.outputs[1],
            box_top=feature_box.top,
            box_left=feature_box.left,
            box_height=feature_box.height,
            box_width=feature_box.width,
            extent_y=vertical.extent,
            extent_x=horizontal.extent,
            origin_y=vertical.origin,
            step_y=vertical.step,
            origin_x=horizontal.origin,
            step_x=horizontal.step,
            pixel_size=geometry.pixel_size,
        )


def _stream(*networks: PackedSiren | None) -> Tensor:
    """The slices in the order of their use, and one more, because one is read ahead."""
    slices = [network.slices for network in networks if network is not None]
    return torch.cat([*slices, slices[0].new_zeros(1, SLICE)]) if slices else torch.empty(0)


def arguments_of(name: str, box: Box, times: Tensor, arguments: Mapping[str, Any]) -> ctypes.Structure:
    """A kernel's parameter for the pixels of ``box`` at all times; tensors are given for pointers."""
    sizes = {"top": box.top, "left": box.left, "height": box.height, "width": box.width}
    values = {**arguments, **sizes, "times": times, "times_per_pair": times.shape[1]}
    return ARGUMENTS[name](**{key: x.data_ptr() if isinstance(x, Tensor) else x for key, x in values.items()})


def launch(name: str, defined: tuple[str, ...], box: Box, times: Tensor, **arguments: Any) -> None:
    """Runs a kernel over the pixels of ``box`` at all times."""
    from cuda.bindings import driver

    given = arguments_of(name, box, times, arguments)
    with torch.cuda.device_of(times):
        function = _load(torch.cuda.current_device(), name, defined)
        if isinstance(function, str):
            raise CannotRunError(f"the implicit functions cannot run: {function}")
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        stream = torch.cuda.current_stream().cuda_stream
        nvrtc.checked(
            driver.cuLaunchKernel(function, *grid(box, times), THREADS, 1, 1, 0, stream, ctypes.addressof(pointers), 0)
        )


def grid(box: Box, times: Tensor) -> tuple[int, int, int]:
    """Blocks of a launch: tiles of pixels, and times of all pairs."""
    return -(-box.height // ROWS) * -(-box.width // COLUMNS), times.numel(), 1
