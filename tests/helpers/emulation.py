"""CUDA C++ kernels as functions on the CPU."""

import ctypes
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "emulation"
FLAGS = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing"]


def compile_emulation(name: str, folder: Path, definitions: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels of ``tests/emulation/NAME.cpp``, compiled into a folder."""
    library = folder / f"{name}.so"
    macros = [f"-D{definition}" for definition in definitions]
    subprocess.run(["g++", *FLAGS, *macros, "-o", library, SOURCES / f"{name}.cpp"], check=True)
    return ctypes.CDLL(str(library))
