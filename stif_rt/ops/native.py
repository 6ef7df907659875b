"""The native CPU library (``csrc/cpu``) through ctypes: which instruction sets it has, which of them run here.

The library is built at installation where there is a C++ compiler. It knows nothing of PyTorch or Python, so one build
serves every version of both.
"""

import ctypes
import functools
import logging
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stif_rt.dtypes import dtype_name
from stif_rt.errors import CannotRunError

log = logging.getLogger(__name__)

LIBRARY = Path(__file__).parent / "libstif_rt_cpu.so"
ISA_ENV_VAR = "STIF_RT_CPU_ISA"
"""Environment variable that forces one instruction set."""


class Linear(ctypes.Structure):
    """``stif_rt_linear`` of ``csrc/include/stif_rt/cpu.h``: a packed layer."""

    _fields_ = (("packed", c_void_p), ("inputs", c_int32), ("outputs", c_int32))


class Siren(ctypes.Structure):
    """``stif_rt_siren`` of ``csrc/include/stif_rt/cpu.h``: a network."""

    _fields_ = (("local", Linear), ("hidden", Linear * 5), ("hidden_count", c_int32), ("start", c_void_p))


class Axis(ctypes.Structure):
    """``stif_rt_axis`` of ``csrc/include/stif_rt/cpu.h``: the tables of one axis."""

    _fields_ = (
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("cell_count", c_int64),
        ("nearest_index", c_void_p),
        ("cell_offset", c_void_p),
        ("source_coords", c_void_p),
        ("origin", c_float),
        ("step", c_float),
        ("flow_unit", c_float),
        ("extent", c_float),
        ("stride", c_float),
        ("scale", c_float),
    )


class Box(ctypes.Structure):
    """``stif_rt_box`` of ``csrc/include/stif_rt/cpu.h``: a rectangle."""

    _fields_ = tuple((name, c_int64) for name in ("top", "left", "height", "width"))


class Implicit(ctypes.Structure):
    """``stif_rt_implicit`` of ``csrc/include/stif_rt/cpu.h``: a call of pass 1."""

    _fields_ = (
        ("vertical", Axis),
        ("horizontal", Axis),
        ("box", Box),
        ("nearest_map", c_void_p),
        ("bilinear_map", c_void_p),
        ("velocity", c_void_p),
        ("offset_weights", c_void_p),
        ("time", c_float),
        ("entry", Siren),
        ("tif", Siren),
        ("feature", c_void_p),
        ("flow", c_void_p),
    )


class Decode(ctypes.Structure):
    """``stif_rt_decode`` of ``csrc/include/stif_rt/cpu.h``: a call of pass 2."""

    _fields_ = (
        ("vertical", Axis),
        ("horizontal", Axis),
        ("region", Box),
        ("box", Box),
        ("feature", c_void_p),
        ("flow", c_void_p),
        ("maps", c_void_p * 2),
        ("frames", c_void_p),
        ("bicubic", c_int32),
        ("blend", c_int32),
        ("time", c_float),
        ("decoder", Siren),
        ("rgb", c_void_p),
        ("pixels", c_void_p),
    )


class DeformConv(ctypes.Structure):
    """``stif_rt_deform_conv`` of ``csrc/include/stif_rt/cpu.h``: a call of the convolution."""

    _fields_ = (
        ("height", c_int64),
        ("width", c_int64),
        ("groups", c_int32),
        ("x", c_void_p),
        ("offset", c_void_p),
        ("mask", c_void_p),
        ("x_stride", c_int64),
        ("offset_stride", c_int64),
        ("mask_stride", c_int64),
        ("out_stride", c_int64),
        ("convolution", Linear),
        ("out", c_void_p),
    )


class Warp(ctypes.Structure):
    """``stif_rt_warp`` of ``csrc/include/stif_rt/cpu.h``: a call of the warp."""

    _fields_ = (
        ("height", c_int64),
        ("width", c_int64),
        ("channels", c_int64),
        ("maps_stride", c_int64),
        ("maps", c_void_p),
        ("flow", c_void_p),
        ("out", c_void_p),
    )


class PReLU(ctypes.Structure):
    """``stif_rt_prelu`` of ``csrc/include/stif_rt/cpu.h``: a call of the activation."""

    _fields_ = (("cells", c_int64), ("channels", c_int64), ("x", c_void_p), ("slopes", c_void_p))


class Normalise(ctypes.Structure):
    """``stif_rt_normalise`` of ``csrc/include/stif_rt/cpu.h``: a call of the normalisation."""

    _fields_ = (
        ("height", c_int64),
        ("width", c_int64),
        ("channels", c_int64),
        ("maps_stride", c_int64),
        ("out_stride", c_int64),
        ("maps", c_void_p * 2),
        ("out", c_void_p * 2),
        ("smallest_variance", c_float),
    )


class GaussNewton(ctypes.Structure):
    """``stif_rt_gauss_newton`` of ``csrc/include/stif_rt/cpu.h``: a call of a step."""

    _fields_ = (
        ("height", c_int64),
        ("width", c_int64),
        ("channels", c_int64),
        ("maps_stride", c_int64),
        ("maps", c_void_p * 2),
        ("gain", c_void_p),
        ("damping", c_float),
        ("tolerance", c_float),
        ("largest_step", c_float),
        ("sums", c_void_p),
        ("velocity", c_void_p),
        ("step", c_void_p),
        ("matrix", c_void_p),
    )


class Evidence(ctypes.Structure):
    """``stif_rt_evidence`` of ``csrc/include/stif_rt/cpu.h``: a call that gathers what a level's network sees."""

    _fields_ = (
        ("height", c_int64),
        ("width", c_int64),
        ("match", c_int64),
        ("seen", c_int64),
        ("context", c_int64),
        ("maps_stride", c_int64),
        ("maps", c_void_p * 2),
        ("velocity", c_void_p),
        ("step", c_void_p),
        ("matrix", c_void_p),
        ("given", c_void_p),
        ("out", c_void_p),
    )


class Choose(ctypes.Structure):
    """``stif_rt_choose`` of ``csrc/include/stif_rt/cpu.h``: a call that mixes velocities."""

    _fields_ = (
        ("height", c_int64),
        ("width", c_int64),
        ("scores_stride", c_int64),
        ("scores", c_void_p),
        ("preference", c_void_p),
        ("velocity", c_void_p),
        ("start", c_void_p),
        ("out", c_void_p),
    )


CALLS: dict[str, type[ctypes.Structure]] = {
    "implicit": Implicit,
    "decode": Decode,
    "deform_conv": DeformConv,
    "warp": Warp,
    "prelu": PReLU,
    "normalise": Normalise,
    "gauss_newton": GaussNewton,
    "evidence": Evidence,
    "choose": Choose,
}
"""What ``Library.run`` runs, in the order of ``stif_rt_sizes``."""


@dataclass(frozen=True)
class Isa:
    """An instruction set. index: the library's number for it. dtype: what it computes products in."""

    index: int
    name: str
    dtype: torch.dtype
    unavailable: str | None


class Library:
    """The loaded library. Raises OSError where the file cannot be loaded or was built from other sources."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))  # releases the GIL during calls
        if not hasattr(library, "stif_rt_sizes"):
            raise OSError(f"{path} is not the native library of this version: install again")
        sizes = (c_int64 * len(CALLS))()
        library.stif_rt_sizes(sizes)
        if list(sizes) != [ctypes.sizeof(call) for call in CALLS.values()]:
            raise OSError(f"{path} was built from another version of the sources: install again")
        for name, result, *arguments in (
            ("isa_count", c_int32),
            ("isa_name", c_char_p, c_int32),
            ("isa_bfloat16", c_int32, c_int32),
            ("isa_unavailable", c_char_p, c_int32),
            ("packed_bytes", c_int64, c_int32, c_int32, c_int32),
            ("pack", None, c_int32, c_void_p, c_void_p, c_int32, c_int32, c_void_p),
            *((f"run_{name}", c_int32, c_int32, POINTER(call), c_int32) for name, call in CALLS.items()),
            ("run_sine", None, c_int32, c_void_p, c_void_p, c_int64),
        ):
            function = getattr(library, f"stif_rt_{name}")
            function.restype, function.argtypes = result, arguments
        self._library = library
        self.isas = [
            Isa(
                index,
                library.stif_rt_isa_name(index).decode(),
                torch.bfloat16 if library.stif_rt_isa_bfloat16(index) else torch.float32,
                None if (reason := library.stif_rt_isa_unavailable(index)) is None else reason.decode(),
            )
            for index in range(library.stif_rt_isa_count())
        ]

    def pack(self, isa: Isa, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weights [outputs, inputs] and bias [outputs], float32, in the order in which ``isa`` reads them."""
        outputs, inputs = weight.shape
        weight = weight.float().contiguous()
        bias = None if bias is None else bias.float().contiguous()
        size = self._library.stif_rt_packed_bytes(isa.index, inputs, outputs)
        packed = torch.empty(size, dtype=torch.uint8, device="cpu")  # PyTorch aligns to 64 bytes
        start = None if bias is None else bias.data_ptr()
        self._library.stif_rt_pack(isa.index, weight.data_ptr(), start, inputs, outputs, packed.data_ptr())
        return packed

    def run(self, name: str, isa: Isa, call: ctypes.Structure) -> None:
        """Runs one of CALLS on as many threads as PyTorch would use."""
        if getattr(self._library, f"stif_rt_run_{name}")(isa.index, call, torch.get_num_threads()):
            raise MemoryError(f"the native {name} could not get the memory it works with")

    def sine(self, isa: Isa, x: Tensor) -> Tensor:
        """sin(2 pi x) of a contiguous float32 tensor, as the kernels compute it."""
        y = torch.empty_like(x)
        self._library.stif_rt_run_sine(isa.index, x.data_ptr(), y.data_ptr(), x.numel())
        return y


@functools.cache
def load_library() -> Library | str:
    """The library that came with the package, or why there is none, which a warning says once."""
    if not LIBRARY.exists():
        reason = (
            "the native library was not built: it needs GCC or Clang. Install one of them, then stif-rt again "
            "(pip install -v says what went wrong)"
        )
    else:
        try:
            return Library(LIBRARY)
        except OSError as error:
            reason = f"the native library cannot be loaded: {error}"
    log.warning("PyTorch computes on the CPU, which is many times slower: %s", reason)
    return reason


def select_isa(dtype: torch.dtype) -> tuple[Library, Isa] | str:
    """The library and the best instruction set that computes in ``dtype`` here, or why there is none.

    The environment variable STIF_RT_CPU_ISA leaves only the one it names. Raises ValueError where the library has none
    of that name, and RuntimeError, with the reason, where it cannot run here.
    """
    library = load_library()
    if isinstance(library, str):
        return library
    forced = os.environ.get(ISA_ENV_VAR)
    names = [isa.name for isa in library.isas]
    if forced and forced not in names:
        raise ValueError(f"{ISA_ENV_VAR} is {forced!r}; the library has {', '.join(names)}")
    candidates = [isa for isa in library.isas if isa.name == forced or (not forced and isa.dtype == dtype)]
    reasons = []
    for isa in candidates:
        if isa.dtype != dtype:
            reasons.append(f"{isa.name}, which {ISA_ENV_VAR} asks for, computes in {dtype_name(isa.dtype)}")
        elif isa.unavailable and forced:
            raise CannotRunError(f"{ISA_ENV_VAR} asks for {forced}, but {isa.unavailable}")
        elif isa.unavailable:
            reasons.append(f"{isa.name}: {isa.unavailable}")
        else:
            return library, isa
    return "; ".join(reasons) or f"the native code computes in float32 or bfloat16, not in {dtype_name(dtype)}"


def has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 units that the library can use."""
    return not isinstance(select_isa(torch.bfloat16), str)


def pointer(tensor: Tensor | None, *index: int) -> int | None:
    """The address of ``tensor[index]``, or None for a tensor that is missing."""
    return None if tensor is None else tensor[index].data_ptr()


def as_pixels(maps: Tensor) -> Tensor:
    """[B, C, h, w] with a pixel's channels side by side and pixels evenly spaced; itself where it is so already."""
    _, C, _, w = maps.shape
    _, channel, row, column = maps.stride()
    if (C == 1 or channel == 1) and column >= C and row == w * column:
        return maps
    out = torch.empty(maps.shape, dtype=maps.dtype, memory_format=torch.channels_last, device="cpu")
    return out.copy_(maps)


def cpu_features() -> str:
    """The instruction sets that matter for matrix products and sines, as the operating system names them."""
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16")
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux: what PyTorch uses
        return torch.backends.cpu.get_cpu_capability()
    return ", ".join(name for name in wanted if name in words) or "none of note"
