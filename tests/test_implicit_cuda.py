"""csrc/cuda/implicit.cu without a GPU: its source run on the CPU (tests/emulation), compiled for every generation of
GPUs, launched on fake tensors, and chosen where it should be."""

import contextlib
import ctypes
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.emulation import compile_emulation
from helpers.implicit import expected, inputs, run
from helpers.models import functions
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import kernel_report
from stif_rt.errors import CannotRunError
from stif_rt.geometry import Box, Geometry, cell_count, make_geometry
from stif_rt.model.config import Config
from stif_rt.ops import nvrtc
from stif_rt.ops.implicit import choose_backend, cuda_backend, make_kernels, reference
from stif_rt.ops.implicit.interface import View
from stif_rt.ops.implicit.weights import RADIANS, fold

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


# Emulated


MARGIN = 4096
"""Numbers on both sides of each array that a kernel is given: NaN, or 77 for bytes."""


def guarded(x):
    """A copy of a tensor, with and without the margin around it: what is read outside shows in the result."""
    filler = torch.nan if x.is_floating_point() else 77
    storage = torch.full((x.numel() + 2 * MARGIN,), filler, dtype=x.dtype)
    inside = storage[MARGIN : MARGIN + x.numel()].view(x.shape)
    return storage, inside.copy_(x)


class Emulator:
    """Takes the place of ``cuda_backend.launch``. seed: of the order in which threads run."""

    def __init__(self, folder):
        self.folder, self.libraries, self.seed = folder, {}, 0

    def launch(self, name, defined, box, times, **arguments):
        if defined not in self.libraries:
            (folder := self.folder / str(len(self.libraries))).mkdir()
            self.libraries[defined] = compile_emulation("implicit", folder, defined)
        library = self.libraries[defined]
        tensors = {key: x for key, x in {**arguments, "times": times}.items() if isinstance(x, torch.Tensor)}
        assert all(x.is_contiguous() for x in tensors.values())
        copies = {key: guarded(x) for key, x in tensors.items()}
        inner = {key: inside for key, (_, inside) in copies.items()}
        given = cuda_backend.arguments_of(name, box, inner.pop("times"), {**arguments, **inner})
        assert ctypes.sizeof(given) == getattr(library, f"size_of_{name}")()
        blocks = (ctypes.c_int * 3)(*cuda_backend.grid(box, times))
        ended = getattr(library, f"run_{name}")(blocks, cuda_backend.THREADS, self.seed, ctypes.byref(given))
        assert ended, "threads wait for ever"
        for key, (storage, inside) in copies.items():
            margins = torch.cat((storage[:MARGIN], storage[MARGIN + inside.numel() :]))
            assert (margins.isnan() if margins.is_floating_point() else margins == 77).all(), f"{key} has grown"
            if key in ("feature", "flow", "rgb", "bytes"):
                tensors[key].copy_(inside)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return Emulator(tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def emulated(emulator, poisoned, monkeypatch):
    """The backend on the CPU."""
    monkeypatch.setattr(cuda_backend, "launch", emulator.launch)
    monkeypatch.setattr(emulator, "seed", 0)
    return emulator


def build(config: Config):
    return cuda_backend.build(functions(config), CPU, torch.float16)


def assert_as_good_as_pytorch(config, case):
    """Error against float64 at most twice that of the reference in the same dtype, of each thing that passes return."""
    actual = run(build(config), config, case)
    plain = run(reference.build(functions(config), CPU, torch.float16), config, case)
    for name, a, p, exact in zip(
        ("feature", "flow", "rgb"), actual, plain, expected(functions(config), case, torch.float64), strict=True
    ):
        assert (a is None) == (exact is None)
        if a is not None:
            error, allowed = ((x.double() - exact).square().mean().sqrt() for x in (a, p))
            assert error <= 2 * allowed + 1e-4, f"{name}: {error:.2e}, the reference's {allowed:.2e}"


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_as_good_as_pytorch(emulated, variant):
    config = VARIANTS[variant]
    times = (0.5,) if config.fixed_time else (0.2, 1.0)
    assert_as_good_as_pytorch(config, Case("variant", (7, 10), (15, 34), times, batch=1 if config.fixed_time else 2))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["residual", "compact", "compact at stride 2"])
def test_every_case_is_as_good_as_pytorch(emulated, variant, case):
    assert_as_good_as_pytorch(VARIANTS[variant], case)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["residual", "compact"])
def test_kernels_do_not_race(emulated, variant):
    config, case = VARIANTS[variant], Case("race", (6, 9), (13, 21), (0.2, 0.7))
    first = run(build(config), config, case)
    for emulated.seed in (1, 2):
        for a, b in zip(run(build(config), config, case), first, strict=True):
            assert torch.equal(a, b)


def passes(config, case, output=torch.float32, region=None, box=None):
    """What ``decode`` makes of frames beyond [0, 1] on both sides."""
    kernels, whole, (features, frames, view) = build(config), Box(0, 0, *case.outputs), viewed(config, case)
    view, feature_view = view.within(region or whole), view.within(box or whole)
    with torch.inference_mode():
        projections = kernels.project(features, 3 * frames - 1)
        feature, _ = kernels.implicit(projections, feature_view)
        _, flow = kernels.implicit(projections, view)
        return kernels.decode(projections, view, feature, flow, feature_view.box, output)


def viewed(config, case):
    """A case's features and frames, and the view of its whole pictures."""
    features, frames, times = inputs(case, config)
    return features, frames, View.whole(times, make_geometry(config, case.inputs, case.outputs))


@pytest.mark.parametrize("variant", ["residual", "compact at stride 2"])
def test_uint8_is_the_rounded_picture(emulated, variant):
    config, case = VARIANTS[variant], Case("bytes", (6, 8), (13, 19), (0.3, 0.8))
    rounded = (passes(config, case).clamp(0, 1) * 255).round().byte().movedim(2, -1)
    assert {0, 255} <= set(rounded.flatten().tolist())
    assert torch.equal(passes(config, case, torch.uint8), rounded)


@pytest.mark.parametrize(("variant", "box"), [("paper", Box(0, 1, 19, 22)), ("compact", Box(0, 0, 19, 23))])
def test_a_region_is_that_part_of_the_whole(emulated, variant, box):
    """The box holds all that the flow points to."""
    config, case = VARIANTS[variant], Case("region", (8, 9), (19, 23), (0.2, 0.7))
    part = passes(config, case, region=Box(5, 3, 9, 17), box=box)
    torch.testing.assert_close(part, passes(config, case)[..., 5:14, 3:20], atol=1e-6, rtol=0)


def test_a_feature_without_time_is_computed_once(emulated):
    config, case = VARIANTS["compact"], Case("again", (6, 7), (13, 18), (0.2, 0.9))
    kernels, (features, frames, view) = build(config), viewed(config, case)
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, replace(view, times=view.times[:, :1]))
        assert feature.shape == (1, 1, 13, 18, 64)
        same, later = kernels.implicit(projections, view, feature)
        assert same is feature
        assert torch.equal(later[:, :1], flow)
        _, moved = kernels.implicit(projections, view, feature + 1)
        assert (moved - later).abs().max() > 1e-3


def test_unusable_flows_do_no_harm(emulated):
    config, case = Config(grid="centres", residual=True), Case("flows", (6, 8), (12, 16))
    kernels, (features, frames, view) = build(config), viewed(config, case)
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, view)
        good = kernels.decode(projections, view, feature, flow)
        for column, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30)):
            flow[..., 3, column, :] = value
        actual = kernels.decode(projections, view, feature, flow)
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual[..., 4:, :], good[..., 4:, :])


# Compiled, for every generation

needs_nvrtc = pytest.mark.skipif(nvrtc.unavailable_reason() is not None, reason="needs NVRTC, of PyTorch's CUDA build")
JOBS = pytest.mark.parametrize("job", kernel_report.cuda_jobs(), ids=lambda job: "-".join(map(str, job)))


@pytest.fixture(scope="module")
def reports():
    pytest.importorskip("triton", reason="needs the disassembler that comes with Triton")
    return kernel_report.build_all(kernel_report.cuda_jobs())


@needs_nvrtc
@JOBS
def test_compiled_kernels_keep_to_registers_and_shared_memory(reports, job):
    report = reports[job]
    spilled = report.count("LDL", "STL")
    if job[1] == 75:
        assert (report.stack, spilled) == (0, 0), "spilled registers or local memory"
    else:  # a few registers, for more blocks at once: see IMPLICIT_BLOCKS in the source
        assert report.stack <= 256
        assert spilled <= 0.04 * report.instructions
    assert report.shared <= 16 * 1024  # of 64 KiB on Turing
    assert report.resident_warps >= 8
    assert report.code <= 128 * 1024


@needs_nvrtc
@JOBS
def test_compiled_kernels_use_matrix_instructions(reports, job):
    """As many as the network has multiply-adds; few outputs are padded to eight, not to sixteen."""
    report, capability = reports[job], job[1]
    assert report.opcodes & {"HMMA", "HGMMA", "UTCHMMA"} == {"HMMA"}
    depth_8 = sum(count for name, count in report.counts.items() if name.startswith("HMMA.1688.F32"))
    depth_16 = sum(count for name, count in report.counts.items() if name.startswith("HMMA.16816.F32"))
    assert depth_8 + depth_16 == report.count("HMMA")
    assert depth_16 == 0 if capability in (75, 100) else depth_8 < 0.05 * depth_16
    assert 0.95 <= report.multiply_adds / kernel_report.work(job[0], kernel_report.NETWORKS[job[3]])[0] <= 1.05


@needs_nvrtc
@JOBS
def test_compiled_sine_is_the_hardware_sine(reports, job):
    """As many as the network has; and none of its range reduction takes the unit that it needs itself."""
    report = reports[job]
    assert report.counts["MUFU.SIN"] == kernel_report.work(job[0], kernel_report.NETWORKS[job[3]])[1]
    assert report.counts["FRND"] == 0


@needs_nvrtc
@pytest.mark.parametrize(
    ("name", "network", "bar"),
    [
        ("T4", "stif", 6), ("T4", "stif-s", 4), ("T4", "stif-i", 2.5),
        ("H100", "stif", 1.2), ("H100", "stif-s", 0.5), ("H100", "stif-i", 0.4),
    ],
)  # fmt: skip
def test_one_frame_meets_its_bar_by_the_roofline(reports, name, network, bar):
    gpu = next(gpu for gpu in kernel_report.GPUS if gpu.name == name)
    jobs = kernel_report.passes_of(gpu, "float16", network)
    assert [job[0] for job in jobs] == list(kernel_report.CUDA_KERNELS)
    assert sum(max(kernel_report.roofline(reports[job], gpu).values()) for job in jobs) <= bar


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["narrow", "compact", "compact at stride 2", "wide then narrow"])
def test_other_widths_compile(variant):
    config = VARIANTS.get(variant) or Config(tif_widths=(64,), decoder_widths=(64, 128, 64))
    assert b"implicit_float16" in cuda_backend.compile_kernel(config, "sm_75")


# Launched on fake tensors


@pytest.mark.parametrize("variant", ["paper", "-f", "-s", "-f -s", "untimed", "compact at stride 2"])
def test_a_frame_on_cuda_is_two_launches(monkeypatch, variant):
    config, (h, w), (H, W) = VARIANTS[variant], (6, 8), (13, 19)
    launched = []

    def launch(name, defined, box, times, **arguments):
        for value in arguments.values():
            assert not isinstance(value, torch.Tensor) or (value.device.type == "cuda" and value.is_contiguous())
        plain = {key: 1 if isinstance(x, torch.Tensor) else x for key, x in arguments.items()}
        structure = cuda_backend.ARGUMENTS[name]
        assert set(plain) | {"times", "times_per_pair", "top", "left", "height", "width"} == {
            field for field, _ in structure._fields_
        }
        structure(**plain)  # refuses what is not of a field's type
        launched.append((name, cuda_backend.grid(box, times)))

    monkeypatch.setattr(cuda_backend, "launch", launch)
    features, frames, t = inputs(Case("fake", (h, w), (H, W), (0.2, 0.5, 0.8)), config)
    geometry = make_geometry(config, (h, w), (H, W))
    kernels = cuda_backend.CudaKernels(fold(functions(config), RADIANS))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():

        def cuda(x):
            return mode.from_tensor(x).to("cuda")

        def on_cuda(axis):
            return replace(
                axis, **{name: cuda(getattr(axis, name)) for name in ("nearest_index", "cell_offset", "source_coords")}
            )

        for name in ("sif", "tif", "decoder"):
            if (packed := getattr(kernels, name)) is not None:
                parts = {part: cuda(getattr(packed, part)) for part in ("slices", "output", "vectors")}
                setattr(kernels, name, replace(packed, **parts))
        for name in ("implicit_slices", "decoder_slices", "projections"):
            setattr(kernels, name, cuda(getattr(kernels, name)))
        geometry = Geometry(on_cuda(geometry.vertical), on_cuda(geometry.horizontal))
        projections = kernels.project(features.map(cuda), cuda(frames))
        for maps in (*projections.sif, *projections.tif, *projections.decoder):
            cells = [cell_count(pixels, config.feature_stride) for pixels in (h, w)]
            assert (maps.shape, maps.dtype, maps.device.type) == ((1, *cells, 64), torch.float16, "cuda")
        view = View.whole(cuda(t), geometry)
        feature, flow = kernels.implicit(projections, view)
        rgb = kernels.decode(projections, view, feature, flow)
        level = kernels.decode(projections, view, feature, flow, output=torch.uint8)
    assert (rgb.shape, rgb.dtype, rgb.device.type) == ((1, 3, 3, H, W), torch.float32, "cuda")
    assert (level.shape, level.dtype, level.device.type) == ((1, 3, H, W, 3), torch.uint8, "cuda")
    implicit = 0 if config.single_function and not config.flow else 1 if config.sif_time else 2
    assert [name for name, _ in launched] == ["implicit_float16"] * implicit + ["decode_float16"] * 2
    assert launched[-1][1] == (2 * 2, 3, 1)


# Chosen


@pytest.fixture
def gpu(monkeypatch):
    """As far as the backends ask, there is a GPU of the compute capability that the function is given."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cuda_backend.nvrtc, "unavailable_reason", lambda: None)
    monkeypatch.setattr(cuda_backend, "_load", lambda *_: object())
    monkeypatch.setattr(cuda_backend, "wrong_pictures", lambda *_: None)

    def install(*capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return install


@pytest.mark.parametrize(
    ("capability", "dtype", "chosen"),
    [
        ((7, 5), torch.float16, "cuda"),
        ((7, 5), torch.float32, "triton"),
        ((8, 0), torch.float16, "cuda"),
        ((8, 9), torch.float16, "cuda"),
        ((8, 9), torch.bfloat16, "triton"),
        ((9, 0), torch.float16, "cuda"),
        ((9, 0), torch.bfloat16, "triton"),
        ((10, 0), torch.float16, "cuda"),
        ((12, 0), torch.float16, "cuda"),
        ((7, 0), torch.float16, "reference"),
    ],
)
def test_auto_takes_cuda_for_float16_and_triton_for_the_rest(gpu, monkeypatch, capability, dtype, chosen):
    gpu(*capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # Triton is there
    assert choose_backend(Config(), CUDA, dtype) == chosen


def test_a_gpu_on_which_cuda_cannot_run_has_triton(gpu, monkeypatch):
    gpu(8, 6)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(cuda_backend, "wrong_pictures", lambda *_: "the CUDA C++ kernels give wrong pictures")
    assert choose_backend(Config(), CUDA, torch.float16) == "triton"


@pytest.mark.parametrize(
    ("capability", "dtype", "config", "reason"),
    [
        ((7, 0), torch.float16, Config(), "compute capability 7.0"),
        ((7, 5), torch.bfloat16, Config(), "float16 only"),
        ((9, 0), torch.float32, Config(), "float16 only"),
        ((7, 5), torch.float16, Config(sif_widths=(64, 128, 128)), "sif_widths"),
        ((7, 5), torch.float16, Config(), None),
    ],
)
def test_what_cannot_run_is_said(gpu, capability, dtype, config, reason):
    gpu(*capability)
    said = cuda_backend.unavailable_reason(config, CUDA, dtype)
    assert said is None if reason is None else reason in (said or "")


def test_a_kernel_that_cannot_be_loaded_is_said(gpu, monkeypatch):
    gpu(7, 5)
    monkeypatch.setattr(cuda_backend, "_load", lambda *_: "the driver cannot load the kernel for sm_75")
    assert "driver" in (cuda_backend.unavailable_reason(Config(), CUDA, torch.float16) or "")


@pytest.mark.parametrize("variant", ["paper", "-f -s", "compact", "compact at stride 2"])
def test_a_gpu_that_makes_wrong_pictures_is_not_used(emulated, monkeypatch, variant):
    """What ``unavailable_reason`` asks before a GPU's first use."""
    cuda_backend.wrong_pictures.cache_clear()
    assert cuda_backend.wrong_pictures(VARIANTS[variant], CPU) is None
    right = cuda_backend.launch
    for factor in (1.05, torch.nan):

        def launch(name, defined, box, times, factor=factor, **arguments):
            right(name, defined, box, times, **arguments)
            if name == "decode_float16":
                arguments["rgb"].mul_(factor)

        monkeypatch.setattr(cuda_backend, "launch", launch)
        cuda_backend.wrong_pictures.cache_clear()
        assert "wrong pictures on this GPU" in (cuda_backend.wrong_pictures(VARIANTS[variant], CPU) or "")
    cuda_backend.wrong_pictures.cache_clear()


def test_it_needs_a_gpu():
    with pytest.raises(CannotRunError, match=r"'cuda' cannot run: .* NVIDIA GPU, and this device is 'cpu'"):
        make_kernels("cuda", functions(Config()), CPU, torch.float16)
