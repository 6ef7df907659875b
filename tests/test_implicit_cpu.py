"""The native CPU kernels, each instruction set against the reference.

``--native-library`` names another build of the library. The last test makes one in which the instructions that few
CPUs have are emulated and everything runs under AddressSanitizer and UndefinedBehaviorSanitizer, and runs this file on
it.
"""

import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.deform_conv import SHAPES
from helpers.deform_conv import inputs as deform_conv_inputs
from helpers.implicit import expected, inputs, run
from helpers.models import functions

from stif_rt.geometry import Box, make_geometry
from stif_rt.model.config import Config
from stif_rt.ops import native
from stif_rt.ops.deform_conv import cpu as deform_conv_cpu
from stif_rt.ops.deform_conv import deform_conv2d_reference
from stif_rt.ops.implicit import cpu, make_kernels
from stif_rt.ops.implicit.cpu import CpuKernels
from stif_rt.ops.implicit.weights import TURNS, fold

ROOT = Path(__file__).parent.parent
ISAS = ("amx", "avx512_bf16", "avx512", "avx2", "portable")


@pytest.fixture(scope="session")
def library(request) -> native.Library:
    path = request.config.getoption("--native-library")
    found = native.Library(Path(path)) if path else native.load()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(params=ISAS)
def isa(request, library) -> native.Isa:
    found = {isa.name: isa for isa in library.isas}.get(request.param)
    if found is None:
        pytest.skip(f"this build has no {request.param}")
    if found.unavailable:
        pytest.skip(found.unavailable)
    return found


def kernels(config, library, isa) -> CpuKernels:
    with torch.no_grad():
        return CpuKernels(fold(functions(config), TURNS), library, isa)


def compare(found, config, case, dtype) -> None:
    """float32: to 1e-4. bfloat16: error against float64 at most twice that of the model's own form in bfloat16."""
    if dtype == torch.float32:
        for a, b in zip(found, expected(functions(config), case), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        return
    features, frames, times = (x.to(dtype) for x in inputs(case, config))
    model = functions(config).to(dtype)
    with torch.no_grad():
        plain = torch.stack([model(features, frames, times[:, n], case.outputs).rgb for n in range(times.shape[1])], 1)
    exact = expected(functions(config), case, torch.float64)[2]

    def error(rgb):
        return (rgb.double() - exact).square().mean().sqrt()

    assert error(found[2]) <= 2 * error(plain)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("grid", ["corners", "centres"])
def test_matches_the_model(library, isa, case, grid):
    config = Config(grid=grid, residual=grid == "centres")
    compare(run(kernels(config, library, isa), config, case), config, case, isa.dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_every_variant(library, isa, variant):
    config, case = VARIANTS[variant], Case("variant", (7, 10), (15, 34), (0.5,), batch=1)
    if not config.fixed_time:
        case = case._replace(times=(0.2, 1.0), batch=2)
    compare(run(kernels(config, library, isa), config, case), config, case, isa.dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["compact", "compact at stride 2"])
def test_motion_matches_the_model(library, isa, variant, case):
    config = VARIANTS[variant]
    compare(run(kernels(config, library, isa), config, case), config, case, isa.dtype)


@pytest.mark.parametrize("variant", ["residual", "compact", "compact at stride 2"])
def test_bytes_are_the_rounded_picture_of_one_call(library, isa, variant):
    """Beyond [0, 1] on both sides, and with ties as PyTorch rounds them."""
    config, case = VARIANTS[variant], Case("bytes", (6, 8), (13, 19), (0.3, 0.8))
    features, frames, times = inputs(case, config)
    made = kernels(config, library, isa)
    whole, geometry = Box(0, 0, *case.outputs), make_geometry(config, case.inputs, case.outputs)
    with torch.inference_mode():
        projections = made.project(features, 3 * frames - 1)
        feature, flow = made.implicit(projections, times, geometry, whole)
        rgb = made.decode(projections, feature, flow, times, geometry, whole, whole)
        found = made.decode(projections, feature, flow, times, geometry, whole, whole, output=torch.uint8)
    assert torch.equal(found, (rgb.clamp(0, 1) * 255).round().byte().movedim(2, -1))
    assert {0, 255} <= set(found.flatten().tolist())


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


@pytest.mark.parametrize("shape", [*SHAPES, (1, 64, 8, 9, 11, 64), (2, 40, 5, 6, 13, 20)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "slices"])
def test_deform_conv_matches_the_naive_form(library, isa, shape, layout):
    arguments = [argument.to(isa.dtype) for argument in deform_conv_inputs(*shape)]
    x, offset, mask, weight, bias = arguments
    exact = deform_conv2d_reference_float64(*arguments)
    if layout == "channels last":
        x, offset, mask = (a.to(memory_format=torch.channels_last) for a in (x, offset, mask))
    elif layout == "slices":  # as the encoder has them: offsets and masks made by one convolution
        whole = torch.cat((offset, mask), 1).to(memory_format=torch.channels_last)
        offset, mask = whole.split((offset.shape[1], mask.shape[1]), 1)
    found = deform_conv_cpu.run_deform_conv2d(library, isa, x, offset, mask, weight, bias)
    assert found.shape == exact.shape
    if isa.dtype == torch.float32:
        torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=0)
    else:
        plain = deform_conv2d_reference(*arguments)
        assert (found.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()


def deform_conv2d_reference_float64(x, offset, mask, weight, bias):
    """The torchvision operation in float64; its positions are exact then."""
    torchvision = pytest.importorskip("torchvision")
    return torchvision.ops.deform_conv2d(
        x.double(), offset.double(), weight.double(), bias.double(), padding=1, mask=mask.double()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9, 1e9])
def test_unusable_offsets_read_nothing(library, isa, value):
    """They leave the bias: every neighbour lies outside."""
    x, offset, mask, weight, bias = (a.to(isa.dtype) for a in deform_conv_inputs(1, 64, 8, 5, 6, 64))
    found = deform_conv_cpu.run_deform_conv2d(library, isa, x, torch.full_like(offset, value), mask, weight, bias)
    torch.testing.assert_close(found, bias.view(1, -1, 1, 1).expand_as(found))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9, 1e9])
@pytest.mark.parametrize("variant", ["stif-s", "compact at stride 2"])
def test_unusable_flows_stay_inside(library, isa, variant, value):
    config, case = VARIANTS[variant], Case("flows", (6, 8), (12, 16))
    features, frames, times = inputs(case, config)
    made = kernels(config, library, isa)
    whole, geometry = Box(0, 0, *case.outputs), make_geometry(config, case.inputs, case.outputs)
    with torch.inference_mode():
        projections = made.project(features, frames)
        feature, flow = made.implicit(projections, times, geometry, whole)
        good = made.decode(projections, feature, flow, times, geometry, whole, whole)
        flow[:, :, 3] = value
        found = made.decode(projections, feature, flow, times, geometry, whole, whole)
    assert torch.isfinite(found).all()
    assert torch.equal(found[..., 4:, :], good[..., 4:, :])


def test_regions_and_threads_change_nothing(library, isa):
    config, case = Config(), Case("region", (6, 8), (19, 25), (0.2, 0.7))
    made = kernels(config, library, isa)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        _, _, whole = run(made, config, case)
        torch.set_num_threads(7)
        assert torch.equal(run(made, config, case)[2], whole)
    finally:
        torch.set_num_threads(threads)
    _, _, part = run(made, config, case, Box(3, 5, 9, 11))
    torch.testing.assert_close(part, whole[..., 3:12, 5:16], atol=1e-5, rtol=0)


def test_several_python_threads_at_once(library, isa):
    config, case = Config(grid="centres"), CASES[5]
    made = kernels(config, library, isa)
    features, frames, times = inputs(case)
    whole, geometry = Box(0, 0, *case.outputs), make_geometry(config, case.inputs, case.outputs)
    found = []

    def work():
        projections = made.project(features, frames)
        feature, flow = made.implicit(projections, times, geometry, whole)
        found.append(made.decode(projections, feature, flow, times, geometry, whole, whole))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert all(torch.equal(rgb, found[0]) for rgb in found)
    assert torch.equal(run(made, config, case)[2], found[0])


def test_one_instruction_set_can_be_forced(monkeypatch):
    if isinstance(native.load(), str):
        pytest.skip(native.load())
    monkeypatch.setenv(native.FORCED, "portable")
    _, isa = native.choose(torch.float32)
    assert isa.name == "portable"
    assert "portable, which STIF_RT_CPU_ISA asks for, computes in float32" in native.choose(torch.bfloat16)
    monkeypatch.setenv(native.FORCED, "avx3")
    with pytest.raises(ValueError, match=r"'avx3'.*portable"):
        make_kernels("auto", functions(Config()), torch.device("cpu"), torch.float32)
    monkeypatch.delenv(native.FORCED)
    assert "not in float16" in native.choose(torch.float16)


def test_a_missing_library_is_a_reason(monkeypatch, tmp_path):
    for path, reason in ((tmp_path / "none.so", "not built"), (Path(__file__), "cannot be loaded")):
        monkeypatch.setattr(native, "LIBRARY", path)
        native.load.cache_clear()
        try:
            assert reason in cpu.unavailable_reason(Config(), torch.device("cpu"), torch.float32)
        finally:
            native.load.cache_clear()


def test_a_forced_set_that_cannot_run_is_an_error(monkeypatch):
    library = native.load()
    missing = [] if isinstance(library, str) else [isa for isa in library.isas if isa.unavailable]
    if not missing:
        pytest.skip("this CPU runs every instruction set")
    monkeypatch.setenv(native.FORCED, missing[0].name)
    with pytest.raises(RuntimeError, match="this CPU lacks"):
        make_kernels("auto", functions(Config()), torch.device("cpu"), missing[0].dtype)


@pytest.mark.parametrize("change", [("dtype", torch.float64), ("dtype", torch.bfloat16), ("device", "meta")])
def test_defaults_of_pytorch_do_not_matter(library, isa, change):
    config, case = Config(grid="centres", residual=True), CASES[5]
    made = kernels(config, library, isa)
    features, frames, times = inputs(case)
    whole, geometry = Box(0, 0, *case.outputs), make_geometry(config, case.inputs, case.outputs)
    projections = made.project(features, frames)

    def both():
        feature, flow = made.implicit(projections, times, geometry, whole)
        packed = library.pack(isa, torch.ones(3, 4, device="cpu"), None)
        return flow, made.decode(projections, feature, flow, times, geometry, whole, whole), packed

    expected = both()
    setter = getattr(torch, f"set_default_{change[0]}")
    before = getattr(torch, f"get_default_{change[0]}")()
    setter(change[1])
    try:
        found = both()
    finally:
        setter(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def build(folder: Path, *flags: str) -> Path:
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
    sources = dict.fromkeys(ISAS, ("-mavx2", "-mfma")) | {"portable": (), "cpuid": (), "dispatch": ()}
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


# What is run on other builds, which are slow
EMULATED = (
    "odd or one or shrunk or same or variant or flows or offsets or sine or threads or (deform and not 64) "
    "or (region_is and corners) or (budget and 1000)"
)
SANITIZED = (
    "one or shrunk or flows or offsets or sine or threads or (deform and slices and not 64) or (budget and 1000)"
)


@pytest.mark.parametrize(
    ("tests", "flags"),
    [(EMULATED, ["-O3"]), (SANITIZED, ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"])],
    ids=["emulated", "sanitizers"],
)
def test_in_another_build(request, tmp_path, tests, flags):
    if request.config.getoption("--native-library"):
        pytest.skip("this is that run")
    if shutil.which("g++") is None or platform.system() != "Linux" or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs Linux, g++ and AVX2")
    library = build(tmp_path, *flags)
    environment = dict(os.environ)
    if "-O1" in flags:
        # the C++ library as well: AddressSanitizer looks for its __cxa_throw before anything has loaded it
        preloaded = [
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libstdc++.so.6")
        ]
        # the leaks it would find are Python's own
        environment |= {"LD_PRELOAD": " ".join(preloaded), "ASAN_OPTIONS": "detect_leaks=0"}
    if "-O3" in flags:  # the sets that this CPU has were tested themselves
        installed = native.load()
        lacking = ISAS if isinstance(installed, str) else [isa.name for isa in installed.isas if isa.unavailable]
        tests = f"({tests}) and ({' or '.join(lacking or ['amx'])})"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", tests]
    command.append(str(ROOT / "tests" / "test_runtime_backends.py"))
    command += ["--native-library", str(library)]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-4000:]
    assert "no amx" not in found.stdout
