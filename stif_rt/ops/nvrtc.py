"""CUDA C++ sources of ``csrc/cuda`` compiled at run time by NVRTC, and kept on disk. Needs no GPU."""

import functools
import hashlib
import threading
from pathlib import Path
from typing import Any

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


def compile_source(source_file: Path, architecture: str, reuse: bool = True) -> bytes:
    """CUDA C++ compiled by NVRTC, and kept on disk under the hash of source, architecture and compiler.

    Needs no GPU.

    Args:
        architecture: One like ``sm_86`` for a cubin, one like ``compute_80`` for PTX.
        reuse: Take what is kept. False replaces it, where the driver has refused it.

    Raises:
        CannotRunError: NVRTC cannot compile it; the message has its own words.
    """
    from cuda.bindings import nvrtc

    source = source_file.read_bytes()
    version = checked(nvrtc.nvrtcVersion())
    key = hashlib.sha256(b"%s %s %s" % (source, architecture.encode(), str(version).encode())).hexdigest()[:32]
    folder = cache_folder()
    cached = folder and folder / f"{source_file.stem}-{architecture}-{key}"
    with _locks.setdefault(key, threading.Lock()):
        kept = read_cache(cached) if reuse else None
        if kept is None:
            kept = _compile(source, source_file.name, architecture)
            write_cache(cached, kept)
        return kept


def _compile(source: bytes, name: str, architecture: str) -> bytes:
    from cuda.bindings import nvrtc

    (program,) = checked(nvrtc.nvrtcCreateProgram(source, name.encode(), 0, [], []))
    options = [b"--gpu-architecture=" + architecture.encode(), b"--std=c++17"]
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


def checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call to CUDA returns after its status.

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
