"""The native library: its sine, the choice of an instruction set, and its kernels in other builds.

The last test builds the library with the instructions that few CPUs have emulated, and once more under AddressSanitizer
and UndefinedBehaviorSanitizer, and runs the tests on it that are marked ``emulated`` or ``sanitized``.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import functions
from helpers.native import ISAS, ROOT, build_emulated, sanitizer_environment

from stif_rt.model.config import Config
from stif_rt.ops import native
from stif_rt.ops.implicit import cpu, make_kernels


@pytest.mark.emulated
@pytest.mark.sanitized
def test_sine_is_accurate_for_all_arguments(library, isa):
    """8e-7 at most, as the kernel states: around zero, at every size of argument, at every tail of a vector."""
    turns = torch.cat((torch.linspace(-2, 2, 400_001), torch.logspace(-8, 6, 100_000), -torch.logspace(-8, 6, 100_003)))
    exact = torch.sin(2 * torch.pi * (turns.double() - turns.double().round()))
    assert (library.sine(isa, turns).double() - exact).abs().max() < 8e-7
    for n in range(20):
        part = turns[1000 : 1000 + n]
        torch.testing.assert_close(library.sine(isa, part).double(), exact[1000 : 1000 + n], atol=8e-7, rtol=0)
    assert library.sine(isa, torch.tensor([2.0**23 + 1, -(2.0**30), 3e38])).abs().max() < 8e-7
    assert library.sine(isa, torch.tensor([float("nan"), float("inf")])).isnan().all()


def test_one_instruction_set_can_be_forced(monkeypatch):
    if isinstance(native.load_library(), str):
        pytest.skip(native.load_library())
    monkeypatch.setenv(native.ISA_ENV_VAR, "portable")
    _, isa = native.select_isa(torch.float32)
    assert isa.name == "portable"
    assert "portable, which STIF_RT_CPU_ISA asks for, computes in float32" in native.select_isa(torch.bfloat16)
    monkeypatch.setenv(native.ISA_ENV_VAR, "avx3")
    with pytest.raises(ValueError, match=r"'avx3'.*portable"):
        make_kernels("auto", functions(Config()), torch.device("cpu"), torch.float32)
    monkeypatch.delenv(native.ISA_ENV_VAR)
    assert "not in float16" in native.select_isa(torch.float16)


@pytest.mark.parametrize(("name", "reason"), [("none.so", "Install one of them"), ("text.so", "cannot be loaded")])
def test_a_missing_library_is_a_reason_and_a_warning_once(monkeypatch, tmp_path, caplog, name, reason):
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setattr(native, "LIBRARY", tmp_path / name)
    native.load_library.cache_clear()
    try:
        for dtype in (torch.float32, torch.bfloat16):
            assert reason in cpu.unavailable_reason(Config(), torch.device("cpu"), dtype)
        assert make_kernels("auto", functions(Config()), torch.device("cpu"), torch.float32).name == "reference"
    finally:
        native.load_library.cache_clear()
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert reason in warning.getMessage()


def test_a_forced_set_that_cannot_run_is_an_error(monkeypatch):
    library = native.load_library()
    missing = [] if isinstance(library, str) else [isa for isa in library.isas if isa.unavailable]
    if not missing:
        pytest.skip("this CPU runs every instruction set")
    monkeypatch.setenv(native.ISA_ENV_VAR, missing[0].name)
    with pytest.raises(RuntimeError, match="this CPU lacks"):
        make_kernels("auto", functions(Config()), torch.device("cpu"), missing[0].dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("marker", "flags"),
    [("emulated", ["-O3"]), ("sanitized", ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"])],
)
def test_in_another_build(request, tmp_path, marker, flags):
    if request.config.getoption("--native-library"):
        pytest.skip("this is that run")
    if shutil.which("g++") is None or platform.system() != "Linux" or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs Linux, g++ and AVX2")
    isas = ISAS
    if marker == "emulated":  # the sets that this CPU has were tested themselves
        installed = native.load_library()
        lacking = ISAS if isinstance(installed, str) else [isa.name for isa in installed.isas if isa.unavailable]
        isas = lacking or ("amx",)
    files = [
        str(ROOT / "tests" / f"test_{name}.py")
        for name in ("native", "implicit_cpu", "deform_conv_cpu", "matching", "runtime_backends")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-m", marker]
    command += ["--native-library", str(build_emulated(tmp_path, *flags)), "--native-isas", ",".join(isas)]
    environment = dict(os.environ) | (sanitizer_environment() if marker == "sanitized" else {})
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert "no amx" not in done.stdout
