"""The implicit functions in every instruction set of the native library, against the model."""

import threading

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.implicit import expected, inputs, plain_error, prepare, rms_error, run
from helpers.models import functions
from helpers.native import NATIVE_CASES

from stif_rt.geometry import Box, make_geometry
from stif_rt.model.config import Config
from stif_rt.ops.implicit.cpu import CpuKernels
from stif_rt.ops.implicit.interface import View
from stif_rt.ops.implicit.weights import TURNS, fold


def kernels(config, library, isa) -> CpuKernels:
    with torch.no_grad():
        return CpuKernels(fold(functions(config), TURNS), library, isa)


def compare(actual, config, case, dtype) -> None:
    """float32: to 1e-4. bfloat16: error against float64 at most twice that of the model's own form in bfloat16."""
    if dtype == torch.float32:
        for a, b in zip(actual, expected(functions(config), case), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        return
    exact = expected(functions(config), case, torch.float64)[2]
    assert rms_error(actual[2], exact) <= 2 * plain_error(config, case, dtype, exact)


@pytest.mark.parametrize("case", NATIVE_CASES)
@pytest.mark.parametrize("grid", ["corners", "centres"])
def test_matches_the_model(library, isa, case, grid):
    config = Config(grid=grid, residual=grid == "centres")
    compare(run(kernels(config, library, isa), config, case), config, case, isa.dtype)


@pytest.mark.emulated
@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_every_variant(library, isa, variant):
    config, case = VARIANTS[variant], Case("variant", (7, 10), (15, 34), (0.5,), batch=1)
    if not config.fixed_time:
        case = case._replace(times=(0.2, 1.0), batch=2)
    compare(run(kernels(config, library, isa), config, case), config, case, isa.dtype)


@pytest.mark.parametrize("case", NATIVE_CASES)
@pytest.mark.parametrize("variant", ["compact", "compact at stride 2"])
def test_motion_matches_the_model(library, isa, variant, case):
    config = VARIANTS[variant]
    compare(run(kernels(config, library, isa), config, case), config, case, isa.dtype)


@pytest.mark.parametrize("constant", [("encode_imnet",), ("flow_imnet",), ("encode_imnet", "flow_imnet")])
@pytest.mark.parametrize(
    "variant",
    [
        *("stif-s", "-s", "-f", "untimed", "residual", "compact"),
        pytest.param("compact at stride 2", marks=[pytest.mark.emulated, pytest.mark.sanitized]),
    ],
)
def test_constant_networks_are_their_bias(library, isa, variant, constant):
    """Output layers with weights of 0, as training begins with them, and other biases: nothing else is computed, and
    all is as the model has it. F given again, and all times at once, as the runtime does."""
    config, case = VARIANTS[variant], Case("constant", (7, 10), (15, 34), (0.2, 0.7), batch=2)
    networks = functions(config)
    for name in constant:
        if hasattr(networks, name):
            output = getattr(networks, name).linears[-1]
            output.weight.data.zero_()
            output.bias.data.copy_(torch.linspace(-0.3, 0.4, len(output.bias)))
    with torch.no_grad():
        made = CpuKernels(fold(networks, TURNS), library, isa)
    projections, view = prepare(made, config, case)
    with torch.inference_mode():
        feature, flow = made.implicit(projections, view)
        rgb = made.decode(projections, view, feature, flow)
        again, flow_again = made.implicit(projections, view, feature)
        assert torch.equal(rgb, made.decode(projections, view, again, flow_again))
    _, exact_flow, exact_rgb = expected(networks, case)
    tolerance = 1e-4 if isa.dtype == torch.float32 else 0.02
    torch.testing.assert_close(rgb, exact_rgb, atol=tolerance, rtol=0)
    if exact_flow is not None:
        torch.testing.assert_close(flow, exact_flow, atol=tolerance * float(exact_flow.abs().max()), rtol=0)
    if len(constant) == 2:
        assert feature is None
        assert (projections.sif, projections.tif, projections.decoder) == ((), (), ())


@pytest.mark.emulated
@pytest.mark.sanitized
@pytest.mark.parametrize("variant", ["residual", "compact", "compact at stride 2"])
def test_bytes_are_the_rounded_picture_of_one_call(library, isa, variant):
    """Beyond [0, 1] on both sides, and with ties as PyTorch rounds them."""
    config, case = VARIANTS[variant], Case("bytes", (6, 8), (13, 19), (0.3, 0.8))
    features, frames, times = inputs(case, config)
    made = kernels(config, library, isa)
    view = View.whole(times, make_geometry(config, case.inputs, case.outputs))
    with torch.inference_mode():
        projections = made.project(features, 3 * frames - 1)
        feature, flow = made.implicit(projections, view)
        rgb = made.decode(projections, view, feature, flow)
        actual = made.decode(projections, view, feature, flow, output=torch.uint8)
    assert torch.equal(actual, (rgb.clamp(0, 1) * 255).round().byte().movedim(2, -1))
    assert {0, 255} <= set(actual.flatten().tolist())


@pytest.mark.emulated
@pytest.mark.sanitized
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9, 1e9])
@pytest.mark.parametrize("variant", ["stif-s", "compact at stride 2"])
def test_unusable_flows_stay_inside(library, isa, variant, value):
    config, case = VARIANTS[variant], Case("flows", (6, 8), (12, 16))
    made = kernels(config, library, isa)
    projections, view = prepare(made, config, case)
    with torch.inference_mode():
        feature, flow = made.implicit(projections, view)
        good = made.decode(projections, view, feature, flow)
        flow[:, :, 3] = value
        actual = made.decode(projections, view, feature, flow)
    assert torch.isfinite(actual).all()
    assert torch.equal(actual[..., 4:, :], good[..., 4:, :])


@pytest.mark.emulated
@pytest.mark.sanitized
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


@pytest.mark.emulated
@pytest.mark.sanitized
def test_several_python_threads_at_once(library, isa):
    config, case = Config(grid="centres"), CASES[5]
    made = kernels(config, library, isa)
    features, frames, times = inputs(case)
    view = View.whole(times, make_geometry(config, case.inputs, case.outputs))
    actual = []

    def work():
        projections = made.project(features, frames)
        feature, flow = made.implicit(projections, view)
        actual.append(made.decode(projections, view, feature, flow))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(actual) == 4
    assert all(torch.equal(rgb, actual[0]) for rgb in actual)
    assert torch.equal(run(made, config, case)[2], actual[0])


@pytest.mark.parametrize("change", [("dtype", torch.float64), ("dtype", torch.bfloat16), ("device", "meta")])
def test_defaults_of_pytorch_do_not_matter(library, isa, change):
    config, case = Config(grid="centres", residual=True), CASES[5]
    made = kernels(config, library, isa)
    features, frames, times = inputs(case)
    view = View.whole(times, make_geometry(config, case.inputs, case.outputs))
    projections = made.project(features, frames)

    def both():
        feature, flow = made.implicit(projections, view)
        packed = library.pack(isa, torch.ones(3, 4, device="cpu"), None)
        return flow, made.decode(projections, view, feature, flow), packed

    expected = both()
    setter = getattr(torch, f"set_default_{change[0]}")
    before = getattr(torch, f"get_default_{change[0]}")()
    setter(change[1])
    try:
        actual = both()
    finally:
        setter(before)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
