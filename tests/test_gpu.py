"""What needs an NVIDIA GPU: every kernel on the device, against the reference. ``pytest -m gpu`` runs it."""

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.deform_conv import inputs as deform_conv_inputs
from helpers.implicit import expected, inputs
from helpers.models import TINY, fill_model, functions

from stif_rt.engines import make_engine
from stif_rt.geometry import Box, make_geometry
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.ops import deform_conv, nvrtc
from stif_rt.ops.deform_conv import deform_conv2d_reference
from stif_rt.ops.implicit import make_kernels, triton_backend
from stif_rt.runtime import Runtime
from stif_rt.video.render import to_host

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def skip_unavailable(config, dtype):
    if reason := triton_backend.unavailable_reason(config, CUDA, dtype):
        pytest.skip(reason)


def run(config, case, dtype):
    kernels = make_kernels("triton", functions(config), CUDA, dtype)
    features, frames, times = (x.to(CUDA) for x in inputs(case))
    geometry, whole = make_geometry(config, case.inputs, case.outputs).to(CUDA), Box(0, 0, *case.outputs)
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, times, geometry, whole)
        return feature, flow, kernels.decode(projections, feature, flow, times, geometry, whole, whole)


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that kernels are to write holds NaN first, so that what they leave out shows."""
    new_empty = torch.Tensor.new_empty

    def poison(self, *arguments, **options):
        made = new_empty(self, *arguments, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(77)

    monkeypatch.setattr(torch.Tensor, "new_empty", poison)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("grid", ["corners", "centres"])
def test_float32_matches_the_model(poisoned, case, grid):
    config = Config(grid=grid, residual=grid == "centres")
    found = run(config, case, torch.float32)
    for a, b in zip(found, expected(functions(config), case), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-3, rtol=0)  # the hardware sine is exact to 5e-7


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant_is_as_good_as_pytorch(poisoned, variant, dtype):
    """Error against float64 at most twice that of the model's own form under the dtype."""
    config, case = VARIANTS[variant], Case("gpu", (21, 34), (77, 101), (0.5,))
    skip_unavailable(config, dtype)
    exact = expected(functions(config), case, torch.float64)[2]
    features, frames, times = inputs(case)
    with torch.no_grad():
        model = functions(config).to(dtype)
        plain = model(features.to(dtype), frames.to(dtype), times[:, 0].to(dtype), case.outputs).rgb[:, None]
    allowed = 2 * (plain.double() - exact).square().mean().sqrt()
    found = run(config, case, dtype)[2].cpu()
    assert (found.double() - exact).square().mean().sqrt() <= allowed + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_do_not_race(poisoned, dtype):
    config, case = Config(grid="centres", residual=True), Case("race", (45, 80), (180, 320), (0.2, 0.7))
    skip_unavailable(config, dtype)
    first = run(config, case, dtype)
    for _ in range(10):
        for a, b in zip(run(config, case, dtype), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unusable_flows_do_no_harm(dtype):
    config, case = Config(grid="centres", residual=True), Case("flows", (6, 8), (12, 16))
    skip_unavailable(config, dtype)
    kernels = make_kernels("triton", functions(config), CUDA, dtype)
    features, frames, times = (x.to(CUDA) for x in inputs(case))
    geometry, whole = make_geometry(config, case.inputs, case.outputs).to(CUDA), Box(0, 0, *case.outputs)
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, times, geometry, whole)
        good = kernels.decode(projections, feature, flow, times, geometry, whole, whole)
        for column, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30)):
            flow[..., 3, column, :] = value
        found = kernels.decode(projections, feature, flow, times, geometry, whole, whole)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[..., 4:, :], good[..., 4:, :])


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 8, 23, 37, 64), (1, 36, 3, 5, 7, 5), (1, 8, 8, 1, 1, 3)])
def test_deform_conv_is_as_good_as_pytorch(shape, dtype, channels_last):
    assert nvrtc.unavailable_reason() is None
    given = [x.to(CUDA, dtype) for x in deform_conv_inputs(*shape)]
    if channels_last:
        given[:4] = [x.to(memory_format=torch.channels_last) for x in given[:4]]
    exact = deform_conv2d_reference(*(x.double() for x in given))
    plain = deform_conv2d_reference(*given)
    with torch.inference_mode():
        found = deform_conv.deform_conv2d_op(*given)
        assert all(torch.equal(deform_conv.deform_conv2d_op(*given), found) for _ in range(10))
    allowed = 2 * (plain.double() - exact).square().mean().sqrt()
    assert (found.double() - exact).square().mean().sqrt() <= allowed + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_deform_conv_is_registered_soundly(dtype):
    given = tuple(x.to(CUDA, dtype) for x in deform_conv_inputs(1, 16, 2, 5, 6, 8))
    torch.library.opcheck(deform_conv.deform_conv2d_op, given)


def test_a_replayed_graph_gives_the_same_frames(frames):
    plain, graphed = (
        Runtime.from_model(fill_model(STIF(Config(**TINY, grid="centres", residual=True))), device="cuda", use_graph=g)
        for g in (False, True)
    )
    first, second = frames
    for pair in ((first, second), (second, first)):
        plain.encode(*pair)
        graphed.encode(*pair)
        for t in (0.25, 0.5, 0.75):
            for size in ((40, 50), (36, 42)):
                assert torch.equal(graphed.render(t, size=size), plain.render(t, size=size))


def test_pictures_come_back_in_order():
    images = [torch.full((64, 64, 3), n, dtype=torch.uint8, device=CUDA) for n in range(7)]
    assert [int(image[0, 0, 0]) for image in to_host(iter(images))] == list(range(7))


def test_compiled_encoder_matches_the_eager_one():
    config = Config(**TINY)
    frames = torch.rand(1, 2, 3, 32, 40, device=CUDA)
    eager, compiled = (
        make_engine(name, fill_model(STIF(config)).encoder, CUDA, torch.float32) for name in ("torch", "compiled")
    )
    torch.testing.assert_close(compiled(frames), eager(frames), atol=1e-3, rtol=1e-3)
    assert compiled.failures == 0
