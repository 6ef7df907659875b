"""Every kernel backend against the model's own form."""

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.implicit import expected, inputs, run
from helpers.models import functions

from stif_rt.geometry import Box, make_geometry
from stif_rt.model.config import Config
from stif_rt.ops.implicit import BACKENDS, make_kernels, reference

CPU = torch.device("cpu")
RUNNABLE = [
    name for name, module in BACKENDS.items() if module.unavailable_reason(Config(), CPU, torch.float32) is None
]
"""Triton's kernels among them where its interpreter is on; ``test_implicit_triton.py`` runs this file so."""


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("grid", ["corners", "centres"])
def test_matches_the_model(backend, case, grid):
    config = Config(grid=grid, residual=grid == "centres")
    found = run(make_kernels(backend, functions(config), CPU, torch.float32), config, case)
    for name, a, b in zip(("feature", "flow", "rgb"), found, expected(functions(config), case), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_every_variant(backend, variant):
    config, case = VARIANTS[variant], Case("variant", (7, 10), (15, 34), (0.5,), batch=2)
    if not config.fixed_time:
        case = case._replace(times=(0.2, 1.0))
    else:
        case = case._replace(batch=1)
    if reason := BACKENDS[backend].unavailable_reason(config, CPU, torch.float32):
        pytest.skip(reason)
    found = run(make_kernels(backend, functions(config), CPU, torch.float32), config, case)
    for a, b in zip(found, expected(functions(config), case), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_pytorch(backend, dtype):
    """Error against float64 at most twice that of the model's own form under the dtype."""
    if reason := BACKENDS[backend].unavailable_reason(Config(), CPU, dtype):
        pytest.skip(reason)
    case = Case("half", (16, 20), (40, 56), (0.3,))
    features, frames, times = inputs(case)
    for config in (Config(), Config(grid="centres", residual=True)):
        exact = expected(functions(config), case, torch.float64)[2]
        with torch.no_grad():
            plain = functions(config).to(dtype)(
                features.to(dtype), frames.to(dtype), times[:, 0].to(dtype), case.outputs
            )
        allowed = 2 * (plain.rgb[:, None].double() - exact).square().mean().sqrt()
        found = run(make_kernels(backend, functions(config), CPU, dtype), config, case)[2]
        assert found.dtype == torch.float32
        assert (found.double() - exact).square().mean().sqrt() <= allowed


@pytest.mark.parametrize("backend", RUNNABLE)
def test_a_region_equals_that_part_of_the_whole(backend):
    config, case = Config(), Case("region", (12, 16), (37, 50), (0.2, 0.7))
    kernels = make_kernels(backend, functions(config), CPU, torch.float32)
    _, _, whole = run(kernels, config, case)
    region = Box(5, 11, 13, 17)
    _, _, part = run(kernels, config, case, region)
    torch.testing.assert_close(part, whole[..., 5:18, 11:28], atol=1e-5, rtol=0)
    feature, _, _ = run(kernels, config, case, region, Box(2, 3, 30, 40))
    whole_feature, _, _ = run(kernels, config, case)
    torch.testing.assert_close(feature, whole_feature[:, :, 2:32, 3:43], atol=1e-5, rtol=0)


def test_reference_does_not_depend_on_its_chunks(monkeypatch):
    config, case = Config(), Case("chunks", (9, 12), (31, 45), (0.2, 0.7))
    kernels = reference.build(functions(config), CPU, torch.float32)
    _, _, whole = run(kernels, config, case)
    monkeypatch.setattr(reference, "CHUNK_PIXELS", 1)
    torch.testing.assert_close(run(kernels, config, case)[2], whole, atol=1e-5, rtol=0)


def test_reference_gradients_match_the_model():
    config = Config(grid="centres", residual=True)
    case = Case("gradient", (6, 8), (15, 20), (0.3,))
    features, frames, times = inputs(case)
    gradients = []
    for fast in (False, True):
        model = functions(config)
        leaf = features.clone().requires_grad_()
        if fast:
            kernels = reference.ReferenceKernels(reference.fold(model, reference.RADIANS))
            projections = kernels.project(leaf, frames)
            geometry, whole = make_geometry(config, case.inputs, case.outputs), Box(0, 0, *case.outputs)
            feature, flow = kernels.implicit(projections, times, geometry, whole)
            rgb = kernels.decode(projections, feature, flow, times, geometry, whole, whole)[:, 0]
        else:
            rgb = model(leaf, frames, times[:, 0], case.outputs).rgb
        rgb.square().mean().backward()
        gradients.append([leaf.grad, *(p.grad for p in model.parameters())])
    for plain, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


@pytest.mark.parametrize("backend", RUNNABLE)
def test_unusable_flows_do_no_harm(backend):
    config, case = Config(grid="centres", residual=True), Case("flows", (6, 8), (12, 16))
    features, frames, times = inputs(case)
    kernels = make_kernels(backend, functions(config), CPU, torch.float32)
    whole = Box(0, 0, *case.outputs)
    geometry = make_geometry(config, case.inputs, case.outputs)
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, times, geometry, whole)
        good = kernels.decode(projections, feature, flow, times, geometry, whole, whole)
        for column, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30)):
            flow[..., 3, column, :] = value
        found = kernels.decode(projections, feature, flow, times, geometry, whole, whole)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[..., 4:, :], good[..., 4:, :])


def test_large_maps_are_indexed_exactly():
    """Beyond 2^24 pixels, float32 no longer counts single ones."""
    maps = torch.zeros(1, 4400, 4001, 1)
    maps[0, 4300, :5, 0] = torch.arange(301.0, 306.0)
    x = torch.arange(5.0)[None]
    assert reference.bilinear(maps, torch.full_like(x, 4300), x)[0, :, 0].tolist() == [301, 302, 303, 304, 305]


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"'cuda'.*reference"):
        make_kernels("cuda", functions(Config()), CPU, torch.float32)


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(reference, "unavailable_reason", lambda config, device, dtype: "no such unit")
    with pytest.raises(RuntimeError, match="'reference' cannot run: no such unit"):
        make_kernels("reference", functions(Config()), CPU, torch.float32)
