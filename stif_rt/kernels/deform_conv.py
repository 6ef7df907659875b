"""Modulated deformable convolution as the PyTorch operation ``stif_rt::deform_conv2d``, for inference.

One operation for every device, so that ``torch.compile`` and export see one node. On CPUs it runs the native kernel of
``csrc/cpu``, on CUDA ``csrc/cuda/deform_conv.cu``, compiled by NVRTC for the GPU found; they say what they cost.
"""

import ctypes
import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stif_rt.kernels import cpu
from stif_rt.model.deform_conv import TAPS, deform_conv2d_by_pytorch, deform_conv2d_grid_sample

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cu")
KERNELS = {
    torch.float32: "deform_conv_float32",
    torch.float16: "deform_conv_float16",
    torch.bfloat16: "deform_conv_bfloat16",
}
THREADS = 128
PIXELS, OUTPUTS = 64, 64  # per block
LARGEST = 2**31 - 1

Layout = tuple[int, int, int]
"""Strides of a map [B, C, h, w] by batch element, channel and pixel, in elements."""


@torch.library.custom_op("stif_rt::deform_conv2d", mutates_args=(), device_types="cpu")
def deform_conv2d(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Modulated deformable 3x3 convolution; see ``stif_rt.model.deform_conv``.

    x: [B, C, h, w], float32, float16 or bfloat16, and so the others. offset: [B, groups * 9 * 2, h, w], pixels,
    vertical before horizontal for each tap. mask: [B, groups * 9, h, w]. weight: [O, C, 3, 3]. bias: [O].
    Returns [B, O, h, w], channels last where x is. Raises ValueError for shapes or dtypes that do not fit.
    """
    check(x, offset, mask, weight, bias)
    native = cpu.deform_conv_unavailable(x.dtype) is None
    found = (cpu.deform_conv2d if native else deform_conv2d_by_pytorch)(x, offset, mask, weight, bias)
    return found.contiguous(memory_format=_memory_format(x))


@deform_conv2d.register_fake
def _(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check(x, offset, mask, weight, bias)
    return _empty_output(x, weight)


@deform_conv2d.register_kernel("cuda")
def _(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check(x, offset, mask, weight, bias)
    if reason := unavailable_reason():
        log.warning("PyTorch's own deformable convolution is used, which is slower: %s", reason)
        found = deform_conv2d_grid_sample(x, offset, mask, weight, bias)
        return found.contiguous(memory_format=_memory_format(x))
    x, offset, mask = (as_map(a) for a in (x, offset, mask))
    weight = as_weight(weight)
    out = _empty_output(x, weight)
    grid, integers = launch_sizes(
        *(x.shape[0], x.shape[1], weight.shape[0], mask.shape[1] // TAPS, x.shape[2], x.shape[3]),
        layouts=(layout(x), layout(offset), layout(mask), layout(out)),
        weight_strides=(weight.stride(1), weight.stride(3)),
    )
    if out.numel():
        _launch(x.device, KERNELS[x.dtype], grid, (x, offset, mask, weight, bias, *integers, out))
    return out


def launch_sizes(
    batch: Any,
    channels: Any,
    outputs: Any,
    groups: Any,
    height: Any,
    width: Any,
    *,
    layouts: Sequence[tuple[Any, Any, Any]] | None = None,
    weight_strides: tuple[Any, Any] | None = None,
) -> tuple[tuple[Any, Any, Any], list[Any]]:
    """The grid (of blocks of THREADS threads), and the kernel's integers between its inputs and its output.

    layouts: of x, offset, mask and out; dense [B, C, h, w] if None. weight_strides: by input channel and by tap.
    Numbers may be symbolic: they are added, multiplied and divided (rounding down, positive) only.
    """
    pixels = height * width
    if layouts is None:
        counts = (channels, groups * (2 * TAPS), groups * TAPS, outputs)
        layouts = [(count * pixels, pixels, 1) for count in counts]
    x, offset, mask, out = layouts
    grid = ((pixels + (PIXELS - 1)) // PIXELS, (outputs + (OUTPUTS - 1)) // OUTPUTS, batch)
    sizes = [channels, outputs, groups, height, width]
    return grid, [*sizes, *x, *offset, *mask, *(weight_strides or (TAPS, 1)), *out]


def check(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ValueError where shapes or dtypes do not fit together."""
    B, C, h, w = x.shape
    groups = mask.shape[1] // TAPS
    shapes = {
        "offset": (offset, (B, groups * 2 * TAPS, h, w)),
        "mask": (mask, (B, groups * TAPS, h, w)),
        "weight": (weight, (weight.shape[0], C, 3, 3)),
    }
    if bias is not None:
        shapes["bias"] = (bias, (weight.shape[0],))
    for name, (tensor, shape) in shapes.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}; it must be {list(shape)} for x {list(x.shape)}")
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; it must be {x.dtype}, as x is")
    if x.dtype not in KERNELS:
        raise ValueError(f"x is {x.dtype}; it must be float32, float16 or bfloat16")
    if groups < 1 or C % groups:
        raise ValueError(f"{C} channels cannot be shared by {groups} deformable groups")


def layout(x: Tensor) -> Layout:
    """Strides of a map whose rows follow each other. Raises ValueError where they do not fit 32 bits."""
    strides = (x.stride(0) if len(x) > 1 else 0, x.stride(1), x.stride(3))
    if max(strides) > LARGEST or x.shape[2] * x.shape[3] > LARGEST:
        raise ValueError(f"a map of shape {list(x.shape)} is too large for the deformable convolution on CUDA")
    return strides


def as_map(x: Tensor) -> Tensor:
    """x, copied only if its rows do not follow each other in memory (so neither dense nor a slice of channels)."""
    return x if x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3) else x.contiguous()


def as_weight(weight: Tensor) -> Tensor:
    """weight, copied only if it is neither dense nor channels last."""
    channels = weight.shape[1]
    strides = ((9 * channels, 9, 3, 1), (9 * channels, 1, 3 * channels, channels))
    return weight if weight.stride() in strides else weight.clone(memory_format=torch.contiguous_format)


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.stride(1) == 1 and x.shape[1] > 1
    return torch.channels_last if last else torch.contiguous_format


def _empty_output(x: Tensor, weight: Tensor) -> Tensor:
    B, _, h, w = x.shape
    return x.new_empty((B, weight.shape[0], h, w)).contiguous(memory_format=_memory_format(x))


@functools.cache
def unavailable_reason() -> str | None:
    """Why the CUDA kernel cannot be compiled here, or None."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except ImportError as error:
        return f"cuda.bindings cannot be imported ({error}); it comes with PyTorch's CUDA build"
    try:
        _checked(nvrtc.nvrtcVersion())
    except RuntimeError as error:
        return f"NVRTC cannot be loaded: {error}"
    return None


def compile_kernel(architecture: str) -> bytes:
    """The kernels compiled by NVRTC: a cubin for an architecture like ``sm_86``, PTX for one like ``compute_80``.

    Needs no GPU. Kept on disk under the hash of source, architecture and compiler. Raises RuntimeError with the
    compiler's own words.
    """
    from cuda.bindings import nvrtc

    source = SOURCE.read_bytes()
    version = _checked(nvrtc.nvrtcVersion())
    key = hashlib.sha256(b"%s %s %s" % (source, architecture.encode(), str(version).encode())).hexdigest()[:32]
    cached = _cache_folder() / f"deform_conv-{architecture}-{key}"
    if cached.is_file():
        return cached.read_bytes()

    (program,) = _checked(nvrtc.nvrtcCreateProgram(source, b"deform_conv.cu", 0, [], []))
    options = [b"--gpu-architecture=" + architecture.encode(), b"--std=c++17"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        (size,) = _checked(nvrtc.nvrtcGetProgramLogSize(program))
        words = b" " * size
        _checked(nvrtc.nvrtcGetProgramLog(program, words))
        raise RuntimeError(f"NVRTC cannot compile {SOURCE.name} for {architecture}: {words.decode(errors='replace')}")
    get_size, get = (
        (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        if architecture.startswith("sm_")
        else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    (size,) = _checked(get_size(program))
    code = b" " * size
    _checked(get(program, code))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    _store(cached, code)
    return code


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "stif-rt"


def _store(path: Path, code: bytes) -> None:
    """Whole or not at all: several processes may store the same file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code)
        os.replace(file.name, path)
    except OSError as error:
        log.warning("the compiled kernel cannot be kept for the next time: %s", error)


@functools.cache
def _function(device: int, name: str) -> Any:
    """The loaded kernel. The caller has made ``device`` the current one."""
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(device)
    (module,) = _checked(driver.cuModuleLoadData(compile_kernel(f"sm_{major}{minor}")))
    (function,) = _checked(driver.cuModuleGetFunction(module, name.encode()))
    return function


def _launch(device: torch.device, name: str, grid: Sequence[int], arguments: Sequence[Tensor | int | None]) -> None:
    from cuda.bindings import driver

    with torch.cuda.device(device):
        function = _function(torch.cuda.current_device(), name)
        values = tuple(a.data_ptr() if isinstance(a, Tensor) else a or 0 for a in arguments)
        types = tuple(ctypes.c_int if isinstance(a, int) else ctypes.c_void_p for a in arguments)
        stream = torch.cuda.current_stream().cuda_stream
        _checked(driver.cuLaunchKernel(function, *grid, THREADS, 1, 1, 0, stream, (values, types), 0))


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call to CUDA returns after its status. Raises RuntimeError for a status that is not success."""
    status, *rest = result
    if status.value != 0:
        raise RuntimeError(f"CUDA: {status.name}")
    return tuple(rest)
