"""Builds the native CPU library (csrc/cpu): a plain shared library, loaded with ctypes, so that one wheel serves every
version of Python. Without a working compiler the package installs without it and runs on the PyTorch reference.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

LIBRARY = "stif_rt.ops.libstif_rt_cpu"
# -ffp-contract stays at the compilers' default; errno and traps would keep loops from being vectorised
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
]
AVX512 = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
INSTRUCTION_SETS = {
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
    "avx512": AVX512,
    "avx2": ["-mavx2", "-mfma"],
}


class BuildLibrary(build_ext):
    """One object per instruction set, each with its own flags; a set that the compiler does not know is left out."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type != "unix":
            raise CompileError("the native library needs GCC or Clang")
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)  # an old one must not pass for this one
        definitions, wide = [], []
        for name, flags in INSTRUCTION_SETS.items() if platform.machine() in ("x86_64", "AMD64") else ():
            try:
                wide += self.compile(f"csrc/cpu/{name}.cpp", flags)
                definitions.append((f"STIF_RT_WITH_{name.upper()}", "1"))
            except CompileError:
                print(f"stif-rt: this compiler cannot build for {name}; it is left out", file=sys.stderr)
        objects = []
        for name in ("portable", "cpuid", "dispatch"):
            objects += self.compile(f"csrc/cpu/{name}.cpp", [], definitions)
        # those for any CPU first: of inline functions that several sources have, the linker keeps the first copy
        objects += wide
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=["-pthread"], target_lang="c++"
        )

    def compile(self, source: str, flags: list[str], definitions: list[tuple[str, str]] = ()) -> list[str]:
        return self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            include_dirs=["csrc/include"],
            macros=list(definitions),
            extra_postargs=[*FLAGS, *flags],
            depends=sorted(map(str, Path("csrc").rglob("*.h"))),
        )


class CopyCudaSources(build_py):
    """The CUDA C++ sources are compiled at run time, so a wheel holds them; a checkout reads those of csrc."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in Path("csrc/cuda").glob("*.cu"):
                self.copy_file(str(source), str(Path(self.build_lib, "stif_rt", "ops", source.name)))


class Wheel(bdist_wheel):
    """Any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(LIBRARY, sources=[], optional=True)],
    cmdclass={"build_ext": BuildLibrary, "build_py": CopyCudaSources, "bdist_wheel": Wheel},
)
