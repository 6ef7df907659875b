"""Every kernel backend against the model's own form."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import CASES, LEARNED, MOTION, VARIANTS, Case
from helpers.implicit import decode_unusable_flows, expected, inputs, plain_error, rms_error, run
from helpers.models import functions

from stif_rt.geometry import Box, cell_count, make_geometry
from stif_rt.model.config import Config
from stif_rt.model.encoder import Features
from stif_rt.model.implicit_functions import ImplicitFunctions, first_frame_weight
from stif_rt.ops.implicit import BACKENDS, make_kernels, reference
from stif_rt.ops.implicit.interface import View

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
    actual = run(make_kernels(backend, functions(config), CPU, torch.float32), config, case)
    for name, a, b in zip(("feature", "flow", "rgb"), actual, expected(functions(config), case), strict=True):
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
    actual = run(make_kernels(backend, functions(config), CPU, torch.float32), config, case)
    for a, b in zip(actual, expected(functions(config), case), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_pytorch(backend, dtype):
    """Error against float64 at most twice that of the model's own form under the dtype."""
    if reason := BACKENDS[backend].unavailable_reason(Config(), CPU, dtype):
        pytest.skip(reason)
    case = Case("half", (16, 20), (40, 56), (0.3,))
    for config in (Config(), Config(grid="centres", residual=True), VARIANTS["compact"]):
        if BACKENDS[backend].unavailable_reason(config, CPU, dtype):
            continue
        exact = expected(functions(config), case, torch.float64)[2]
        actual = run(make_kernels(backend, functions(config), CPU, dtype), config, case)[2]
        assert actual.dtype == torch.float32
        assert rms_error(actual, exact) <= 2 * plain_error(config, case, dtype, exact)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["compact", "compact at stride 2"])
@pytest.mark.parametrize("backend", RUNNABLE)
def test_motion_matches_the_model(backend, variant, case):
    config = VARIANTS[variant]
    if reason := BACKENDS[backend].unavailable_reason(config, CPU, torch.float32):
        pytest.skip(reason)
    actual = run(make_kernels(backend, functions(config), CPU, torch.float32), config, case)
    for name, a, b in zip(("feature", "flow", "rgb"), actual, expected(functions(config), case), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", RUNNABLE)
def test_a_feature_without_time_is_computed_once(backend):
    """What is handed in is used, and makes the same picture."""
    config, case = VARIANTS["compact"], Case("again", (8, 10), (21, 24), (0.2, 0.9))
    if reason := BACKENDS[backend].unavailable_reason(config, CPU, torch.float32):
        pytest.skip(reason)
    kernels = make_kernels(backend, functions(config), CPU, torch.float32)
    features, frames, times = inputs(case, config)
    view = View.whole(times, make_geometry(config, case.inputs, case.outputs))
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        feature, flow = kernels.implicit(projections, replace(view, times=times[:, :1].contiguous()))
        assert feature.shape == (1, 1, 21, 24, 64)
        same, later = kernels.implicit(projections, view, feature)
        assert same is feature
        torch.testing.assert_close(later[:, :1], flow, atol=1e-5, rtol=0)
        _, moved = kernels.implicit(projections, view, feature + 1)
        assert (moved - later).abs().max() > 1e-3


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("backend", RUNNABLE)
def test_untrained_motion_follows_a_given_velocity(backend, stride):
    """A picture that moves by (5, -3) pixels, at three times and in the input's size: the same picture, moved."""
    config = Config(**(MOTION | {"front_blocks": 0}), **LEARNED, feature_stride=stride)
    if reason := BACKENDS[backend].unavailable_reason(config, CPU, torch.float32):
        pytest.skip(reason)
    torch.manual_seed(0)
    model = ImplicitFunctions(config)
    picture = torch.rand(3, 41, 47)
    frames = torch.stack((picture, picture.roll((-3, 5), (1, 2))))[None]
    cells = [cell_count(n, stride) for n in (41, 47)]
    velocity = torch.tensor((5.0, -3.0)).view(1, 2, 1, 1).expand(1, 2, *cells).contiguous()
    kernels = make_kernels(backend, model, CPU, torch.float32)
    view = View.whole(torch.tensor([[0.0, 0.2, 1.0]]), make_geometry(config, (41, 47), (41, 47)))
    with torch.inference_mode():
        projections = kernels.project(Features(torch.rand(1, 3, 64, *cells), velocity), frames)
        feature, flow = kernels.implicit(projections, view)
        rgb = kernels.decode(projections, view, feature, flow)[0]
    torch.testing.assert_close(rgb[[0, 2]], frames[0], atol=2e-4, rtol=0)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    shifts = ((1.0, -0.6), (-4.0, 2.4))  # from t = 0.2 to the first frame and to the second
    grids = [torch.eye(2, 3)[None].clone() for _ in shifts]
    for grid, (x, y) in zip(grids, shifts, strict=True):
        grid[0, :, 2] = torch.tensor((-2 * x / 47, -2 * y / 41))
    reads = [
        F.grid_sample(frame[None], F.affine_grid(grid, (1, 3, 41, 47), align_corners=False), "bicubic", "border",
                      align_corners=False)[0]
        for frame, grid in zip(frames[0], grids, strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(rgb[1][inner], (0.8 * reads[0] + 0.2 * reads[1])[inner], atol=2e-4, rtol=0)


@pytest.mark.parametrize("value", [-1e9, -9.0, 9.0, 1e9])
def test_blend_never_divides_by_zero(value):
    time = torch.tensor([0.0, 0.5, 1.0])
    weight = first_frame_weight(torch.full((3,), value), time)
    assert weight[[0, 2]].tolist() == [1, 0]
    assert (weight[1] > 0.5) == (value > 0)


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


@pytest.mark.parametrize("variant", ["paper", "compact", "compact at stride 2"])
def test_reference_does_not_depend_on_its_chunks(monkeypatch, variant):
    config, case = VARIANTS[variant], Case("chunks", (9, 12), (31, 45), (0.2, 0.7))
    kernels = reference.build(functions(config), CPU, torch.float32)
    _, _, whole = run(kernels, config, case)
    monkeypatch.setattr(reference, "CHUNK_PIXELS", 1)
    torch.testing.assert_close(run(kernels, config, case)[2], whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["residual", "compact", "compact at stride 2"])
def test_reference_gradients_match_the_model(variant):
    config = VARIANTS[variant]
    case = Case("gradient", (6, 8), (15, 20), (0.3,))
    features, frames, times = inputs(case, config)
    gradients = []
    for fast in (False, True):
        model = functions(config)
        leaves = [x.clone().requires_grad_() for x in features if x is not None]
        if fast:
            kernels = reference.ReferenceKernels(reference.fold(model, reference.RADIANS))
            projections = kernels.project(Features(*leaves), frames)
            view = View.whole(times, make_geometry(config, case.inputs, case.outputs))
            feature, flow = kernels.implicit(projections, view)
            rgb = kernels.decode(projections, view, feature, flow)[:, 0]
        else:
            rgb = model(Features(*leaves), frames, times[:, 0], case.outputs).rgb
        rgb.square().mean().backward()
        gradients.append([*(leaf.grad for leaf in leaves), *(p.grad for p in model.parameters())])
    for plain, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


@pytest.mark.parametrize("backend", RUNNABLE)
def test_unusable_flows_do_no_harm(backend):
    kernels = make_kernels(backend, functions(Config(grid="centres", residual=True)), CPU, torch.float32)
    before, after = decode_unusable_flows(kernels)
    assert torch.isfinite(after).all()
    torch.testing.assert_close(after[..., 4:, :], before[..., 4:, :])


def test_large_maps_are_indexed_exactly():
    """Beyond 2^24 pixels, float32 no longer counts single ones."""
    maps = torch.zeros(1, 4400, 4001, 1)
    maps[0, 4300, :5, 0] = torch.arange(301.0, 306.0)
    x = torch.arange(5.0)[None]
    assert reference.bilinear(maps, torch.full_like(x, 4300), x)[0, :, 0].tolist() == [301, 302, 303, 304, 305]


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"'metal'.*reference"):
        make_kernels("metal", functions(Config()), CPU, torch.float32)


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(reference, "unavailable_reason", lambda config, device, dtype: "no such unit")
    with pytest.raises(RuntimeError, match="'reference' cannot run: no such unit"):
        make_kernels("reference", functions(Config()), CPU, torch.float32)
