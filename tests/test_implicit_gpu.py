"""The implicit functions' kernels on an NVIDIA GPU, against the model. ``pytest -m gpu`` runs them."""

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.implicit import expected, inputs
from helpers.models import functions

from stif_rt.geometry import make_geometry
from stif_rt.model.config import Config
from stif_rt.ops.implicit import make_kernels, triton_backend
from stif_rt.ops.implicit.interface import View

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def skip_unavailable(config, dtype):
    if reason := triton_backend.unavailable_reason(config, CUDA, dtype):
        pytest.skip(reason)


def run(config, case, dtype):
    kernels = make_kernels("triton", functions(config), CUDA, dtype)
    features, frames, times = (x.to(CUDA) for x in inputs(case, config))
    view = View.whole(times, make_geometry(config, case.inputs, case.outputs).to(CUDA))
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, view)
        return feature, flow, kernels.decode(projections, view, feature, flow)


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
    actual = run(config, case, torch.float32)
    for a, b in zip(actual, expected(functions(config), case), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-3, rtol=0)  # the hardware sine is exact to 5e-7


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant_is_as_good_as_pytorch(poisoned, variant, dtype):
    """Error against float64 at most twice that of the model's own form under the dtype."""
    config, case = VARIANTS[variant], Case("gpu", (21, 34), (77, 101), (0.5,))
    skip_unavailable(config, dtype)
    exact = expected(functions(config), case, torch.float64)[2]
    features, frames, times = inputs(case, config)
    with torch.no_grad():
        model = functions(config).to(dtype)
        plain = model(features.to(dtype), frames.to(dtype), times[:, 0].to(dtype), case.outputs).rgb[:, None]
    allowed = 2 * (plain.double() - exact).square().mean().sqrt()
    actual = run(config, case, dtype)[2].cpu()
    assert (actual.double() - exact).square().mean().sqrt() <= allowed + 1e-6


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
    features, frames, times = (x.to(CUDA) for x in inputs(case, config))
    view = View.whole(times, make_geometry(config, case.inputs, case.outputs).to(CUDA))
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, view)
        good = kernels.decode(projections, view, feature, flow)
        for column, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30)):
            flow[..., 3, column, :] = value
        actual = kernels.decode(projections, view, feature, flow)
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual[..., 4:, :], good[..., 4:, :])
