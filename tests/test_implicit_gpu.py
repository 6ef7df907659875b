"""The implicit functions' kernels on an NVIDIA GPU, Triton's and those in CUDA C++, against the model.

``pytest -m gpu`` runs them.
"""

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.implicit import decode_unusable_flows, expected, plain_error, prepare, rms_error, run
from helpers.models import functions

from stif_rt.geometry import Box
from stif_rt.model.config import Config
from stif_rt.ops.implicit import BACKENDS, make_kernels

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
KERNELS = [*(("triton", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)), ("cuda", torch.float16)]
"""The backends that run on a GPU, and what they compute in."""

kernels_of_all = pytest.mark.parametrize(
    ("backend", "dtype"), KERNELS, ids=[f"{backend}-{str(dtype)[6:]}" for backend, dtype in KERNELS]
)


def make(backend, config, dtype):
    if reason := BACKENDS[backend].unavailable_reason(config, CUDA, dtype):
        pytest.skip(reason)
    return make_kernels(backend, functions(config), CUDA, dtype)


def picture(backend, config, case, dtype, output=torch.float32):
    return run(make(backend, config, dtype), config, case, output=output, device=CUDA)[2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("grid", ["corners", "centres"])
def test_float32_matches_the_model(poisoned, case, grid):
    config = Config(grid=grid, residual=grid == "centres")
    actual = run(make("triton", config, torch.float32), config, case, device=CUDA)
    for a, b in zip(actual, expected(functions(config), case), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-3, rtol=0)  # the hardware sine is exact to 5e-7


@pytest.mark.parametrize("variant", VARIANTS)
@kernels_of_all
def test_every_variant_is_as_good_as_pytorch(poisoned, variant, backend, dtype):
    """Error against float64 at most twice that of the model's own form under the dtype."""
    config = VARIANTS[variant]
    case = Case("gpu", (21, 34), (77, 101), (0.5,) if config.fixed_time else (0.2, 0.9))
    exact = expected(functions(config), case, torch.float64)[2]
    actual = picture(backend, config, case, dtype)
    assert rms_error(actual, exact) <= 2 * plain_error(config, case, dtype, exact) + 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["paper", "residual", "compact", "compact at stride 2"])
def test_cuda_kernels_are_as_good_as_pytorch_in_every_case(poisoned, case, variant):
    config = VARIANTS[variant]
    exact = expected(functions(config), case, torch.float64)[2]
    actual = picture("cuda", config, case, torch.float16)
    allowed = 2 * plain_error(config, case, torch.float16, exact)
    assert rms_error(actual, exact) <= allowed + 1e-4  # some cases are a pixel or a few


@pytest.mark.parametrize("variant", ["residual", "compact"])
@pytest.mark.parametrize("backend", ["cuda"])
def test_uint8_is_the_rounded_picture(poisoned, backend, variant):
    config, case = VARIANTS[variant], Case("bytes", (12, 17), (49, 71), (0.2, 0.7))
    rgb = picture(backend, config, case, torch.float16)
    actual = picture(backend, config, case, torch.float16, output=torch.uint8)
    expected_bytes = (rgb.clamp(0, 1) * 255).round().movedim(2, -1)
    difference = (actual.float() - expected_bytes).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3  # one rounding or two, by whether the product is fused with the sum


@pytest.mark.parametrize("variant", ["paper", "compact"])
@pytest.mark.parametrize("backend", ["cuda"])
def test_a_region_is_that_part_of_the_whole(poisoned, backend, variant):
    """F over a part of the picture, the flow over a smaller one; and F handed in again where it knows no time."""
    config, case = VARIANTS[variant], Case("region", (12, 16), (37, 50), (0.2, 0.7))
    kernels = make(backend, config, torch.float16)
    projections, view = prepare(kernels, config, case, CUDA)
    region, box = Box(5, 11, 13, 17), Box(2, 3, 30, 40)
    with torch.inference_mode():
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
    kernels = make(backend, config, dtype)
    first = run(kernels, config, case, device=CUDA)
    for _ in range(10):
        for a, b in zip(run(kernels, config, case, device=CUDA), first, strict=True):
            assert torch.equal(a, b)


@kernels_of_all
def test_unusable_flows_do_no_harm(backend, dtype):
    before, after = decode_unusable_flows(make(backend, Config(grid="centres", residual=True), dtype), CUDA)
    assert torch.isfinite(after).all()
    torch.testing.assert_close(after[..., 4:, :], before[..., 4:, :])
