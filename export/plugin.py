"""TensorRT plugin ``stif::ModulatedDeformConv2d``: this project's CUDA kernel inside TensorRT engines.

A quickly deployable plugin with an ahead-of-time kernel: the PTX of ``csrc/cuda/deform_conv.cu`` is embedded when an
engine is built, which then needs neither Python nor this library. Importing this module, which needs ``tensorrt`` 10.9
or later, makes the plugin known to TensorRT.

TensorRT has a stock plugin, ``ModulatedDeformConv2d``, that writes a matrix of all samples to memory and multiplies by
cuBLAS, and in half precision computes positions in half: beyond column 512 they move in steps of half a pixel. Here
samples stay in shared memory, and positions and sums are float32 whatever the dtype of the maps.
"""

import tensorrt as trt
import tensorrt.plugin as trtp
import torch

from stif_rt.ops.deform_conv import TAPS
from stif_rt.ops.deform_conv.cuda import KERNEL_SYMBOLS, THREADS, compile_kernel, launch_sizes

from .deform_conv import NAMESPACE, NODE

IDENTIFIER = f"{NAMESPACE}::{NODE}"
DTYPES = {trt.float32: torch.float32, trt.float16: torch.float16}
COMBINATIONS = [", ".join([dtype] * 6) for dtype in ("FP32", "FP16")]
"""Types of the five inputs and the output, all of linear layout: dense [B, C, h, w]."""


@trtp.register(IDENTIFIER)
def describe(
    x: trtp.TensorDesc, offset: trtp.TensorDesc, mask: trtp.TensorDesc, weight: trtp.TensorDesc, bias: trtp.TensorDesc
) -> trtp.TensorDesc:
    """x: [B, C, h, w]. weight: [O, C, 3, 3]. The output: [B, O, h, w]. The rest as in ``stif_rt.ops.deform_conv``."""
    B, _, h, w = x.shape_expr
    return trtp.from_shape_expr((B, weight.shape_expr[0], h, w), dtype=x.dtype)


@trtp.autotune(IDENTIFIER)
def formats(
    x: trtp.TensorDesc,
    offset: trtp.TensorDesc,
    mask: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    bias: trtp.TensorDesc,
    outputs: tuple[trtp.TensorDesc],
) -> list[trtp.AutoTuneCombination]:
    """The combinations of dtype and layout that TensorRT may choose from."""
    return [trtp.AutoTuneCombination(types, "LINEAR") for types in COMBINATIONS]


@trtp.aot_impl(IDENTIFIER)
def launch(
    x: trtp.TensorDesc,
    offset: trtp.TensorDesc,
    mask: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    bias: trtp.TensorDesc,
    outputs: tuple[trtp.TensorDesc],
    tactic: int,
) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
    """Name and PTX of the kernel, its launch, and the int32 arguments between its inputs and its output."""
    B, C, h, w = x.shape_expr
    grid, integers = launch_sizes(B, C, weight.shape_expr[0], mask.shape_expr[1] // TAPS, h, w)
    parameters = trtp.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y, parameters.grid_z = grid
    parameters.block_x = THREADS
    arguments = trtp.SymIntExprs.from_tuple([trtp.SymInt32(value) for value in integers])
    return KERNEL_SYMBOLS[DTYPES[x.dtype]], compile_kernel(architecture()), parameters, arguments


def architecture() -> str:
    """The target of the PTX: the current GPU, else compute_80, the oldest that the kernel supports."""
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (8, 0)
    return f"compute_{major}{minor}"
