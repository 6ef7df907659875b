"""The Triton backend without a GPU: interpreted, compiled for every generation of GPUs, and launched on fake tensors.

Triton reads its interpreter's switch when it is imported, so the interpreter runs in a process of its own.
"""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.cases import VARIANTS
from helpers.models import TINY, functions
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import kernel_report
from stif_rt.geometry import Geometry, cell_count, make_geometry
from stif_rt.model.config import Config
from stif_rt.model.encoder import Features
from stif_rt.model.stif import STIF
from stif_rt.ops.implicit import triton_backend
from stif_rt.ops.implicit.interface import View
from stif_rt.ops.implicit.weights import TURNS, fold

CPU = torch.device("cpu")
MAPS = ("decoder_map0_ptr", "decoder_map1_ptr")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
interpreted = pytest.mark.skipif(
    not triton_backend.interpreted(), reason="runs under the interpreter, in its own process"
)
compiling = pytest.mark.skipif(triton_backend.interpreted(), reason="the interpreter does not compile")
HERE = Path(__file__).parent

if triton_backend.interpreted():
    import triton
    import triton.language as tl

    from stif_rt.ops.implicit.triton_kernels import sine

    @triton.jit
    def apply_sine(turns, out, SIZE: tl.constexpr):
        index = tl.arange(0, SIZE)
        tl.store(out + index, sine(tl.load(turns + index)))


@pytest.mark.slow
@needs_triton
@compiling
def test_interpreter_agrees_with_the_model():
    """``test_implicit.py`` and ``test_runtime_backends.py`` with Triton's kernels, and the tests below that are marked
    ``interpreted``."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    tests = [str(HERE / name) for name in ("test_implicit.py", "test_implicit_triton.py", "test_runtime_backends.py")]
    result = subprocess.run([*command, *tests], cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:]
    assert " passed" in result.stdout


def inputs(config: Config, size: tuple[int, int], outputs: tuple[int, int], times: int = 1):
    torch.manual_seed(0)
    cells = [cell_count(pixels, config.feature_stride) for pixels in size]
    velocity = 3 * torch.randn(1, 2, *cells) if config.motion else None
    features, frames = Features(torch.rand(1, 3, 64, *cells) - 0.5, velocity), torch.rand(1, 2, 3, *size)
    t = torch.linspace(0, 1, times + 2)[None, 1:-1]
    return features, frames, View.whole(t.contiguous(), make_geometry(config, size, outputs))


@interpreted
@pytest.mark.parametrize("capability", [(8, 6), (7, 5)], ids=["64 pixels", "16 pixels"])
@pytest.mark.parametrize("variant", ["residual", "compact"])
def test_launch_configurations_do_not_change_the_result(variant, capability):
    config = VARIANTS[variant]
    features, frames, view = inputs(config, (4, 6), (5, 9))
    pictures = []
    for configuration in (
        triton_backend.INTERPRETED,
        triton_backend.launches(capability, torch.float32 if capability < (8, 0) else torch.half),
    ):
        kernels = triton_backend.TritonKernels(fold(functions(config), TURNS), torch.float32, configuration)
        with torch.inference_mode():
            projections = kernels.project(features, frames)
            feature, flow = kernels.implicit(projections, view)
            pictures.append(kernels.decode(projections, view, feature, flow))
    torch.testing.assert_close(pictures[1], pictures[0], atol=1e-5, rtol=0)


@interpreted
@pytest.mark.parametrize("variant", ["residual", "compact at stride 2"])
def test_uint8_is_the_rounded_picture(variant):
    config = VARIANTS[variant]
    features, frames, view = inputs(config, (6, 8), (13, 19), times=2)
    kernels = triton_backend.build(functions(config), CPU, torch.float32)
    with torch.inference_mode():
        projections = kernels.project(features, 3 * frames - 1)  # beyond [0, 1] on both sides
        feature, flow = kernels.implicit(projections, view)
        rgb = kernels.decode(projections, view, feature, flow)
        actual = kernels.decode(projections, view, feature, flow, output=torch.uint8)
    expected = (rgb.clamp(0, 1) * 255).round().byte().movedim(2, -1)
    assert {0, 255} <= set(expected.flatten().tolist())
    assert torch.equal(actual, expected)


@interpreted
def test_sine_is_exact_for_large_arguments():
    turns = torch.linspace(-40, 40, 4096)
    actual = torch.empty_like(turns)
    apply_sine[(1,)](turns, actual, SIZE=4096)
    exact = torch.sin(2 * torch.pi * turns.double())
    torch.testing.assert_close(actual.double(), exact, atol=1e-6, rtol=0)


# Compiled, for every generation


@pytest.fixture(scope="module")
def reports():
    return kernel_report.build_all(kernel_report.jobs())


def name(job) -> str:
    return "-".join(map(str, job))


def work(job) -> tuple[int, int]:
    return kernel_report.work(job[0], kernel_report.NETWORKS[job[3]])


ALL = pytest.mark.parametrize("job", kernel_report.jobs(), ids=name)
PASSES = pytest.mark.parametrize("job", [j for j in kernel_report.jobs() if j[0] != "deform_conv"], ids=name)


@pytest.mark.slow
@needs_triton
@compiling
@ALL
def test_compiled_kernels_keep_to_registers_and_shared_memory(reports, job):
    report = reports[job]
    two_warps = report.capability in (90, 100) and report.dtype != "float32"
    if two_warps and report.kernel == "decode_kernel":
        assert report.stack <= 80, "more than what was measured to cost less than four warps do"
    else:
        assert report.stack == 0, "spilled registers or local memory"
        assert not {"LDL", "STL"} & report.opcodes
    assert report.shared <= kernel_report.SHARED[report.capability] * 1024
    assert report.resident_warps >= 8


@pytest.mark.slow
@needs_triton
@compiling
@ALL
def test_compiled_kernels_use_matrix_instructions(reports, job):
    report = reports[job]
    _, capability, dtype, _ = job
    expected = {"HMMA"} if dtype != "float32" and capability >= 80 else set()
    # Pictures were wrong with Hopper's own instructions: see the launches.
    assert report.opcodes & {"HMMA", "HGMMA", "UTCHMMA"} == expected


@needs_triton
@compiling
@PASSES
def test_compiled_sine_is_the_hardware_sine(reports, job):
    """As many as the network has, plus what two warps both make; no conversions in its range reduction."""
    report = reports[job]
    sines = report.counts["MUFU.SIN"] * report.threads / report.pixels
    assert 1 <= sines / work(job)[1] <= 1.75
    assert report.count("F2I", "FRND") <= 2  # dividing the tile's number
    assert report.code <= 128 * 1024  # the slow path of tl.sin alone is larger


@needs_triton
@compiling
@PASSES
def test_compiled_products_are_not_repeated(reports, job):
    report = reports[job]
    if "HMMA" in report.opcodes:  # tells its size; a part of the 256-wide layer is made once too often
        repeated = 1.4 if job[0] == "decode_kernel" and job[1] != 80 else 1.1  # two warps share some rows
        if job[3] != "stif":  # of fewer slices the one that is made once too often is a larger part
            repeated += 0.15
        assert 1 <= report.multiply_adds / work(job)[0] <= repeated


@pytest.mark.slow
@needs_triton
@compiling
@pytest.mark.parametrize(
    ("network", "kernel", "without"),
    [
        ("stif", "implicit_kernel", {"TIF": False, "flow_ptr": None}),
        ("stif", "implicit_kernel", {"SIF": False, "feature_ptr": None}),
        ("stif-s", "implicit_kernel", {"SIF": False, "GIVEN": True}),
        ("stif", "decode_kernel", {"FLOW": False, "flow_ptr": None, "AGGREGATION": False} | dict.fromkeys(MAPS)),
        ("stif", "decode_kernel", {"FEATURE": False, "feature_ptr": None, "RESIDUAL": False}),
    ],
)
def test_variants_compile(network, kernel, without):
    assert kernel_report.compile_triton(kernel, 86, "float16", network, **without).stack == 0


@needs_triton
@compiling
@pytest.mark.parametrize(
    ("network", "gpu", "bar"),
    [("stif", "H100", 1.7), ("stif", "RTX 4090", 2.5), ("stif-s", "H100", 0.85), ("stif-i", "H100", 0.6)],
)
def test_one_frame_meets_its_bar_by_the_roofline(reports, network, gpu, bar):
    (modelled,) = (candidate for candidate in kernel_report.GPUS if candidate.name == gpu)
    passes = [reports[kernel, modelled.capability, "float16", network] for kernel in kernel_report.KERNELS]
    assert sum(max(kernel_report.roofline(report, modelled).values()) for report in passes) <= bar


# Launched on fake tensors


@pytest.fixture
def launched(monkeypatch):
    """Records launches in place of Triton: names, and arguments bound to the kernel's own parameters."""
    pytest.importorskip("triton")
    from stif_rt.ops.implicit import triton_kernels

    calls = []

    def launch(kernel, configuration, box, times, **arguments):
        function = getattr(triton_kernels, kernel)
        added = ("times_ptr", "times_per_pair", "top", "left", "height", "width", *configuration.constants)
        inspect.signature(function.fn).bind(**arguments, **dict.fromkeys(added))
        for value in arguments.values():
            if isinstance(value, torch.Tensor):
                assert value.device.type == "cuda"
                assert value.is_contiguous()
        calls.append((kernel, arguments))

    monkeypatch.setattr(triton_backend, "launch", launch)
    return calls


@pytest.mark.slow
@compiling
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_frame_on_cuda_is_two_launches(launched, variant, dtype):
    config, times, (h, w), (H, W) = VARIANTS[variant], 1 if VARIANTS[variant].fixed_time else 3, (6, 8), (13, 19)
    features, frames, view = inputs(config, (h, w), (H, W), times)
    weights = fold(functions(config), TURNS)
    cells = [cell_count(pixels, config.feature_stride) for pixels in (h, w)]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():

        def cuda(x):
            return mode.from_tensor(x).to("cuda")

        def on_cuda(axis):
            tables = {name: cuda(getattr(axis, name)) for name in ("nearest_index", "cell_offset", "source_coords")}
            return replace(axis, **tables)

        kernels = triton_backend.TritonKernels(weights, dtype, triton_backend.launches((8, 6), dtype))
        for name in ("sif", "tif", "decoder"):
            packed = getattr(kernels, name)
            if packed is not None:
                on_gpu = {part: getattr(packed, part).to("cuda") for part in ("matrices", "vectors")}
                setattr(kernels, name, replace(packed, **on_gpu))
        kernels.projections = kernels.projections.to("cuda")
        geometry = Geometry(on_cuda(view.geometry.vertical), on_cuda(view.geometry.horizontal))
        view = View.whole(cuda(view.times), geometry)
        features = Features(*(None if part is None else cuda(part) for part in features))
        frames = cuda(frames)
        projections = kernels.project(features, frames)
        for maps in (*projections.sif, *projections.tif, *projections.decoder):
            assert (maps.shape, maps.dtype, maps.device.type) == ((1, *cells, 64), dtype, "cuda")
        feature, flow = kernels.implicit(projections, view)
        rgb = kernels.decode(projections, view, feature, flow)
        assert (rgb.shape, rgb.dtype, rgb.device.type) == ((1, times, 3, H, W), torch.float32, "cuda")
        assert (feature is None) == config.single_function
        if feature is not None:
            assert (feature.shape, feature.dtype) == ((1, times if config.sif_time else 1, H, W, 64), dtype)
        assert (flow is None) != config.flow
        if flow is not None:
            assert (flow.shape, flow.dtype) == ((1, times, H, W, 4), torch.float32)
    passes = ["implicit_kernel"] if config.flow or not config.single_function else []
    if not config.sif_time:  # F for all times, then the flow
        passes *= 2
    assert [kernel for kernel, _ in launched] == [*passes, "decode_kernel"]


@compiling
def test_encoder_on_cuda_gives_features_where_they_are_wanted():
    with FakeTensorMode(), torch.device("cuda"), torch.inference_mode():
        encoder = STIF(Config(**{**TINY, "recurrent": True})).encoder
        features = encoder(torch.zeros(1, 2, 3, 12, 16))
    assert (features.maps.shape, features.maps.device.type) == ((1, 3, 64, 12, 16), "cuda")


def test_what_cannot_run_is_said():
    reason = triton_backend.unavailable_reason(Config(), CPU, torch.float32)
    assert (reason is None) == triton_backend.interpreted()
    if reason:
        assert "NVIDIA GPU" in reason


@pytest.mark.parametrize(
    ("capability", "available", "expected"),
    [((7, 0), True, "7.0"), ((7, 5), False, "float16 or float32"), ((8, 0), True, None)],
)
def test_gpus_that_cannot_run_are_named(monkeypatch, capability, available, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    dtype = torch.float16 if available else torch.bfloat16
    reason = triton_backend.unavailable_reason(Config(), torch.device("cuda"), dtype)
    assert reason is None if expected is None else expected in (reason or "")


@pytest.mark.parametrize(
    ("widths", "reason"),
    [
        ({"sif_widths": (64, 128, 128)}, r"sif_widths \(64, 128, 128\) have more than 1 layers"),
        ({"tif_widths": (64, 64, 128, 64)}, "tif_widths"),
        ({"decoder_widths": (64, 128, 128, 128)}, "decoder_widths .* more than 2 layers"),
        ({"decoder_widths": (64, 256, 64)}, None),
    ],
)
def test_widths_without_kernels_are_named(monkeypatch, widths, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    message = triton_backend.unavailable_reason(Config(**widths), torch.device("cuda"), torch.float16)
    assert message is None if reason is None else re.search(reason, message)
