"""The native library: its instruction sets, a build with the rare ones emulated, and what runs on it."""

import subprocess
from pathlib import Path

import pytest

from helpers.cases import CASES

ROOT = Path(__file__).parent.parent.parent
ISAS = ("amx", "avx512_bf16", "avx512", "avx2", "portable")
QUICK_ISAS = ("avx512_bf16", "avx2")
"""What the fast tier tests: the sets that most machines have, one for each dtype."""

SANITIZED = {"shrunk", "one row", "one column", "one pixel", "to one pixel"}
EMULATED = SANITIZED | {"odd", "same size"}
NATIVE_CASES = [
    pytest.param(
        case,
        id=case.name,
        marks=[pytest.mark.emulated] * (case.name in EMULATED) + [pytest.mark.sanitized] * (case.name in SANITIZED),
    )
    for case in CASES
]
"""CASES, marked with the builds that they run on besides the installed one: the others are slow there."""


def build_emulated(folder: Path, *flags: str) -> Path:
    """The library with every instruction set, those that few CPUs have emulated."""
    flags = (
        "-std=c++17",
        "-g",
        "-fPIC",
        "-w",
        "-fno-math-errno",
        f"-I{ROOT}/csrc/include",
        "-DSTIF_RT_EMULATED",
        *flags,
    )
    sources: dict[str, tuple[str, ...]] = dict.fromkeys(ISAS, ("-mavx2", "-mfma")) | {
        "portable": (),
        "cpuid": (),
        "dispatch": (),
    }
    for name in ("amx", "avx512_bf16", "avx512"):
        sources[name] += (f"-I{ROOT}/tests/emulation/x86",)
    sources["dispatch"] = tuple(f"-DSTIF_RT_WITH_{name.upper()}" for name in ISAS)
    compilers = [
        subprocess.Popen(["g++", *flags, *extra, "-c", f"{ROOT}/csrc/cpu/{name}.cpp", "-o", f"{folder}/{name}.o"])
        for name, extra in sources.items()
    ]
    assert [compiler.wait() for compiler in compilers] == [0] * len(compilers)
    target = folder / "libemulated.so"
    subprocess.run(["g++", *flags, "-shared", *(f"{folder}/{name}.o" for name in sources), "-o", target], check=True)
    return target


def sanitizer_environment() -> dict[str, str]:
    """Variables for a Python that loads a library built with AddressSanitizer.

    The C++ library is preloaded as well: AddressSanitizer looks for its __cxa_throw before anything has loaded it. The
    leaks that it would find are Python's own.
    """
    paths = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    return {"LD_PRELOAD": " ".join(paths), "ASAN_OPTIONS": "detect_leaks=0"}
