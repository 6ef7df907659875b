"""CUDA C++ sources of ``csrc/cuda`` compiled at run time by NVRTC, and kept on disk. Needs no GPU."""

import functools
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stif_rt.errors import CannotRunError, OutOfMemoryError
from stif_rt.files import cache_folder, read_cache, write_cache

_locks: dict[str, threading.Lock] = {}
"""One for each key of the cache: of threads that want the same kernel, the first compiles it."""


def find_source(name: str) -> Path:
    """The source ``csrc/cuda/NAME``: a wheel holds a copy beside this module, a checkout has the file itself."""
    packaged = Path(__file__).with_name(name)
    return packaged if packaged.is_file() else Path(__file__).resolve().parents[2] / "csrc" / "cuda" / name


@functools.cache
def unavailable_reason() -> str | None:
    """Why CUDA C++ cannot be compiled here, or None."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except ImportError as error:
        return f"cuda.bindings cannot be imported ({error}); it comes with PyTorch's CUDA build"
    try:
        checked(nvrtc.nvrtcVersion())
    except RuntimeError as error:
        return f"NVRTC cannot be loaded: {error}"
    return None


def compile_source(
    source_file: Path, architecture: str, reuse: bool = True, definitions: tuple[str, ...] = ()
) -> bytes:
    """CUDA C++ compiled by NVRTC, and kept on disk under the hash of source, architecture, definitions and compiler.

    Needs no GPU.

    Args:
        source_file: The source, without includes.
        architecture: One like ``sm_86`` for a cubin, one like ``compute_80`` for PTX.
        reuse: Take what is kept. False replaces it, where the driver has refused it.
        definitions: Macros, such as ``WIDTH=64``.

    Raises:
        CannotRunError: NVRTC cannot compile it; the message has its own words.
    """
    from cuda.bindings import nvrtc

    source = source_file.read_bytes()
    version = checked(nvrtc.nvrtcVersion())
    variant = " ".join((architecture, str(version), *definitions)).encode()
    key = hashlib.sha256(b"%s %s" % (source, variant)).hexdigest()[:32]
    folder = cache_folder()
    cached = folder and folder / f"{source_file.stem}-{architecture}-{key}"
    with _locks.setdefault(key, threading.Lock()):
        kept = read_cache(cached) if reuse else None
        if kept is None:
            kept = _compile(source, source_file.name, architecture, definitions)
            write_cache(cached, kept)
        return kept


def _compile(source: bytes, name: str, architecture: str, definitions: tuple[str, ...]) -> bytes:
    from cuda.bindings import nvrtc

    (program,) = checked(nvrtc.nvrtcCreateProgram(source, name.encode(), 0, [], []))
    macros = [f"--define-macro={definition}".encode() for definition in definitions]
    options = [b"--gpu-architecture=" + architecture.encode(), b"--std=c++17", *macros]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        (size,) = checked(nvrtc.nvrtcGetProgramLogSize(program))
        words = b" " * size
        checked(nvrtc.nvrtcGetProgramLog(program, words))
        reason = " ".join(words.rstrip(b"\0").decode(errors="replace").split())
        nvrtc.nvrtcDestroyProgram(program)
        raise CannotRunError(f"NVRTC cannot compile {name} for {architecture}: {reason}")
    get_size, get = (
        (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        if architecture.startswith("sm_")
        else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    (size,) = checked(get_size(program))
    code = b" " * size
    checked(get(program, code))
    checked(nvrtc.nvrtcDestroyProgram(program))
    return code


def load_kernel(compiler: Callable[..., bytes], name: str, device: int) -> Any:
    """A kernel loaded on a GPU, which is the current device; or as words why there is none.

    Args:
        compiler: Makes the cubin for an architecture; with ``reuse=False`` anew.
        name: The kernel's in it.
        device: The GPU's index.

    Raises:
        OutOfMemoryError: The GPU has no memory for it.
    """
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(device)
    architecture = f"sm_{major}{minor}"
    try:
        try:
            (module,) = checked(driver.cuModuleLoadData(compiler(architecture)))
        except OutOfMemoryError:
            raise
        except CannotRunError as error:
            return str(error)
        except RuntimeError:  # what was kept is not what this driver takes
            (module,) = checked(driver.cuModuleLoadData(compiler(architecture, reuse=False)))
        (function,) = checked(driver.cuModuleGetFunction(module, name.encode()))
    except OutOfMemoryError:
        raise
    except RuntimeError as error:
        return f"the driver cannot load the kernel for {architecture}: {error}"
    return function


def checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values that a call to CUDA returns after its status.

    Raises:
        OutOfMemoryError: The status says so.
        RuntimeError: Another status that is not success.
    """
    status, *rest = result
    if status.name.endswith("OUT_OF_MEMORY"):
        raise OutOfMemoryError(f"CUDA: {status.name}")
    if status.value != 0:
        raise RuntimeError(f"CUDA: {status.name}")
    return tuple(rest)
