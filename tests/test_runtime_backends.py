"""Regions and memory budgets on every backend: what the runtime hands to kernels, not the kernels alone.

The native code runs in every instruction set of this machine, and of the emulated build through ``test_native.py``;
Triton's kernels under its interpreter, through ``test_implicit_triton.py``.
"""

from pathlib import Path

import pytest
import torch
from helpers.cases import LEARNED, MOTION
from helpers.models import TINY, fill_model
from helpers.native import ISAS

from stif_rt import Runtime
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.ops import native
from stif_rt.ops.implicit import triton_backend

BACKENDS = ["reference", "reference-bfloat16", *(f"cpu-{isa}" for isa in ISAS), "triton"]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def filled(config: Config, constant: tuple[str, ...] = ()) -> STIF:
    """A network in which those named give a constant."""
    model = fill_model(STIF(config))
    for name in constant:
        output = getattr(model.implicit_functions, name).linears[-1]
        torch.nn.init.zeros_(output.weight)
        torch.nn.init.constant_(output.bias, 0.1)
    return model


@pytest.fixture(params=BACKENDS)
def load(request, monkeypatch):
    """A function that makes runtimes of a backend."""
    backend, _, variant = request.param.partition("-")
    dtype = torch.float32 if backend == "cpu" or not variant else getattr(torch, variant)
    if backend == "triton" and not triton_backend.interpreted():
        pytest.skip("runs under Triton's interpreter, in its own process")
    if backend == "cpu":
        path = request.config.getoption("--native-library")
        library = native.Library(Path(path)) if path else native.load_library()
        if isinstance(library, str):
            pytest.skip(library)
        isa = {isa.name: isa for isa in library.isas}.get(variant)
        if isa is None or isa.unavailable:
            pytest.skip(f"{variant}: {'not in this build' if isa is None else isa.unavailable}")
        dtype = isa.dtype
        monkeypatch.setattr(native, "load_library", lambda: library)
        monkeypatch.setenv(native.ISA_ENV_VAR, variant)

    def make(
        config: Config = Config(**TINY, grid="centres", residual=True, flow_unit="input"),  # noqa: B008
        constant: tuple[str, ...] = (),
        **options,
    ):
        runtime = Runtime.from_model(
            filled(config, constant), device="cpu", dtype=dtype, kernels=backend, encoder="torch", **options
        )
        assert runtime.backend == backend
        return runtime

    return make


def compare(actual, expected, runtime):
    torch.testing.assert_close(actual, expected, atol=TOLERANCES[runtime.dtype], rtol=0)


@pytest.mark.parametrize("grid", [pytest.param("corners", marks=pytest.mark.emulated), "centres"])
def test_region_is_that_part_of_the_whole(load, frames, grid):
    runtime = load(Config(**TINY, grid=grid, residual=True))
    pair = runtime.encode(*frames)
    whole, flow = pair.render([0.3, 0.8], scale=3), pair.flow(0.3, scale=3)
    for y, x, height, width in ((10, 20, 30, 40), (53, 0, 1, 63), (0, 62, 54, 1), (5, 7, 1, 1)):
        part = (..., slice(y, y + height), slice(x, x + width))
        region = (y, x, height, width)
        compare(pair.render([0.3, 0.8], scale=3, region=region), whole[part], runtime)
        torch.testing.assert_close(pair.flow(0.3, scale=3, region=region), flow[part], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"flow": False}, {"single_function": True}, {"aggregation": False}], ids=str)
def test_region_of_a_variant_is_that_part_of_the_whole(load, frames, fields):
    runtime = load(Config(**TINY, **fields))
    pair = runtime.encode(*frames)
    whole = pair.render(0.3, scale=2)
    compare(pair.render(0.3, scale=2, region=(7, 11, 20, 30)), whole[:, 7:27, 11:41], runtime)


@pytest.mark.slow
@pytest.mark.parametrize("constant", [(), ("encode_imnet",), ("flow_imnet", "encode_imnet")], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_pictures_and_flow_with_constant_networks(load, frames, stride, constant):
    """Pairs, regions and several times with networks that are left out, as PyTorch renders them with all of them."""
    if triton_backend.interpreted() and len(constant) < 2:
        pytest.skip("the interpreter is slow, and these kernels leave nothing out")
    fields = (MOTION | {"front_blocks": 2 - stride}) | LEARNED
    config = Config(**fields, feature_stride=stride)
    runtime = load(config, constant)
    plain = Runtime.from_model(filled(config, constant), device="cpu", dtype=runtime.dtype, kernels="reference")
    pair, expected = runtime.encode(*frames), plain.encode(*frames)
    torch.testing.assert_close(pair.velocity, expected.velocity, atol=1e-4, rtol=0)
    times, region = [0.0, 0.4], (3, 5, 20, 25)
    whole = expected.render(times, scale=1.5)
    tolerance = 4 * TOLERANCES[runtime.dtype]  # bfloat16 rounds in other places
    torch.testing.assert_close(pair.render(times, scale=1.5), whole, atol=tolerance, rtol=0)
    part = pair.render(times, scale=1.5, region=region)
    torch.testing.assert_close(part, whole[..., 3:23, 5:30], atol=tolerance, rtol=0)
    torch.testing.assert_close(pair.flow(0.4, scale=2), expected.flow(0.4, scale=2), atol=20 * tolerance, rtol=0)


HALVES = pytest.param(1000, marks=pytest.mark.emulated)


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [2000, HALVES, 1])
def test_budget_does_not_change_the_picture(load, frames, pixels):
    """2000 pixels are one time of two, 1000 a picture in halves, 1 the smallest tiles."""
    times = [0.1, 0.6]
    if triton_backend.interpreted() and pixels != 1000:
        pytest.skip("the interpreter's cost is per tile")
    expected = load().encode(*frames)
    runtime = load()
    runtime = load(max_memory=pixels * (64 * runtime.dtype.itemsize + 16))
    pair = runtime.encode(*frames)
    compare(pair.render(times, scale=2), expected.render(times, scale=2), runtime)
    pictures, same = (p.render(times, scale=2, output="uint8").int() for p in (pair, expected))
    assert (pictures - same).abs().max() <= (1 if runtime.dtype == torch.float32 else 3)
    torch.testing.assert_close(pair.flow(times, scale=2), expected.flow(times, scale=2), atol=1e-4, rtol=0)
