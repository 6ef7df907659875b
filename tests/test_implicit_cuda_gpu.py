"""The implicit functions' CUDA C++ kernels on an NVIDIA GPU, against the model. ``pytest -m gpu`` runs them."""

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.implicit import expected, inputs
from helpers.models import functions

from stif_rt.geometry import Box, make_geometry
from stif_rt.model.config import Config
from stif_rt.ops.implicit import BACKENDS, make_kernels
from stif_rt.ops.implicit.interface import View

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
KERNELS = [("cuda", torch.float16)]
"""The backends that run on a GPU, and what they compute in."""

kernels_of_all = pytest.mark.parametrize(
    ("backend", "dtype"), KERNELS, ids=[f"{backend}-{str(dtype)[6:]}" for backend, dtype in KERNELS]
)


def skip_unavailable(backend, config, dtype):
    if reason := BACKENDS[backend].unavailable_reason(config, CUDA, dtype):
        pytest.skip(reason)


def run(backend, config, case, dtype, output=torch.float32):
    skip_unavailable(backend, config, dtype)
    kernels = make_kernels(backend, functions(config), CUDA, dtype)
    features, frames, times = (x.to(CUDA) for x in inputs(case, config))
    view = View.whole(times, make_geometry(config, case.inputs, case.outputs).to(CUDA))
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, view)
        return feature, flow, kernels.decode(projections, view, feature, flow, output=output)


def plain_error(config, case, dtype, exact):
    """Error of the picture of the model's own form under the dtype."""
    features, frames, times = inputs(case, config)
    model = functions(config).to(dtype)
    with torch.no_grad():
        pictures = [
            model(features.to(dtype), frames.to(dtype), times[:, n].to(dtype), case.outputs).rgb
            for n in range(times.shape[1])
        ]
    return (torch.stack(pictures, 1).double() - exact).square().mean().sqrt()


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that kernels are to write holds NaN first, so that what they leave out shows."""
    new_empty = torch.Tensor.new_empty

    def poison(self, *arguments, **options):
        made = new_empty(self, *arguments, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(77)

    monkeypatch.setattr(torch.Tensor, "new_empty", poison)


@pytest.mark.parametrize("variant", VARIANTS)
@kernels_of_all
def test_every_variant_is_as_good_as_pytorch(poisoned, variant, backend, dtype):
    """Error against float64 at most twice that of the model's own form under the dtype."""
    config = VARIANTS[variant]
    case = Case("gpu", (21, 34), (77, 101), (0.5,) if config.fixed_time else (0.2, 0.9))
    exact = expected(functions(config), case, torch.float64)[2]
    actual = run(backend, config, case, dtype)[2].cpu()
    allowed = 2 * plain_error(config, case, dtype, exact)
    assert (actual.double() - exact).square().mean().sqrt() <= allowed + 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["paper", "residual", "compact", "compact at stride 2"])
def test_cuda_kernels_are_as_good_as_pytorch_in_every_case(poisoned, case, variant):
    config = VARIANTS[variant]
    exact = expected(functions(config), case, torch.float64)[2]
    actual = run("cuda", config, case, torch.float16)[2].cpu()
    allowed = 2 * plain_error(config, case, torch.float16, exact)
    assert (actual.double() - exact).square().mean().sqrt() <= allowed + 1e-4  # some cases are a pixel or a few


@pytest.mark.parametrize("variant", ["residual", "compact"])
@pytest.mark.parametrize("backend", ["cuda"])
def test_uint8_is_the_rounded_picture(poisoned, backend, variant):
    config, case = VARIANTS[variant], Case("bytes", (12, 17), (49, 71), (0.2, 0.7))
    rgb = run(backend, config, case, torch.float16)[2]
    actual = run(backend, config, case, torch.float16, output=torch.uint8)[2]
    expected_bytes = (rgb.clamp(0, 1) * 255).round().movedim(2, -1)
    difference = (actual.float() - expected_bytes).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3  # one rounding or two, by whether the product is fused with the sum


@pytest.mark.parametrize("variant", ["paper", "compact"])
@pytest.mark.parametrize("backend", ["cuda"])
def test_a_region_is_that_part_of_the_whole(poisoned, backend, variant):
    """F over a part of the picture, the flow over a smaller one; and F handed in again where it knows no time."""
    config, case = VARIANTS[variant], Case("region", (12, 16), (37, 50), (0.2, 0.7))
    skip_unavailable(backend, config, torch.float16)
    kernels = make_kernels(backend, functions(config), CUDA, torch.float16)
    features, frames, times = (x.to(CUDA) for x in inputs(case, config))
    view = View.whole(times, make_geometry(config, case.inputs, case.outputs).to(CUDA))
    region, box = Box(5, 11, 13, 17), Box(2, 3, 30, 40)
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, view)
        part, _ = kernels.implicit(projections, view.within(box))
        _, part_flow = kernels.implicit(projections, view.within(region))
        torch.testing.assert_close(part, feature[:, :, 2:32, 3:43], atol=2e-3, rtol=0)
        torch.testing.assert_close(part_flow, flow[:, :, 5:18, 11:28], atol=2e-2, rtol=0)
        if not config.sif_time:
            same, again = kernels.implicit(projections, view, feature)
            assert same is feature
            torch.testing.assert_close(again, flow, atol=2e-2, rtol=0)
        zero = torch.zeros_like(flow)
        all_of_it = kernels.decode(projections, view, feature, zero)
        zero = torch.zeros_like(part_flow)
        some = kernels.decode(projections, view.within(region), part, zero, box)
    torch.testing.assert_close(some, all_of_it[..., 5:18, 11:28], atol=2e-3, rtol=0)


@kernels_of_all
def test_kernels_do_not_race(poisoned, backend, dtype):
    config, case = Config(grid="centres", residual=True), Case("race", (45, 80), (180, 320), (0.2, 0.7))
    first = run(backend, config, case, dtype)
    for _ in range(10):
        for a, b in zip(run(backend, config, case, dtype), first, strict=True):
            assert torch.equal(a, b)


@kernels_of_all
def test_unusable_flows_do_no_harm(backend, dtype):
    config, case = Config(grid="centres", residual=True), Case("flows", (6, 8), (12, 16))
    skip_unavailable(backend, config, dtype)
    kernels = make_kernels(backend, functions(config), CUDA, dtype)
    features, frames, times = (x.to(CUDA) for x in inputs(case))
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
