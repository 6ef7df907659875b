"""The velocity head's operations in every instruction set of the native library, against the reference."""

import numpy as np
import pytest
import torch
from helpers.cases import LEARNED, MOTION
from helpers.models import fill_model

from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.ops import matching
from stif_rt.ops.matching import cpu, reference
from stif_rt.runtime import Runtime

SHAPES = [(1, 8, 40, 75), (2, 16, 17, 16), (1, 8, 1, 1), (1, 16, 3, 130), (2, 8, 70, 1), (1, 8, 1, 35)]
"""Batch, matched channels, height, width: of one unit of work and of several, in both directions."""
SANITIZED = SHAPES[1:3]
CASES = [
    pytest.param(
        shape, marks=[pytest.mark.emulated] + ([pytest.mark.sanitized] if shape in SANITIZED else []), id=str(shape)
    )
    for shape in SHAPES
]
LAYOUTS = ("planes", "channels last", "slices")
SEEN, CONTEXT = 16, 32


def laid_out(maps: torch.Tensor, layout: str) -> torch.Tensor:
    """[B, C, h, w] in memory as a layout says."""
    if layout == "planes":
        return maps.contiguous()
    if layout == "channels last":
        return maps.contiguous(memory_format=torch.channels_last)
    wider = torch.cat((torch.full_like(maps[:, :1], torch.nan), maps, torch.full_like(maps[:, :2], torch.nan)), 1)
    return wider.contiguous(memory_format=torch.channels_last)[:, 1:-2]


def matches(shape: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a level matches of both frames, as the head has it: colours, learned channels, and what is only seen."""
    torch.manual_seed(0)
    B, match, h, w = shape
    first, second = (torch.rand(B, 3 + match + SEEN, h, w) for _ in range(2))
    first[..., : w // 3] = 0.7  # flat, so that the smallest variance counts
    return first, second


def velocity(shape: tuple[int, int, int, int], spread: float = 2.0) -> torch.Tensor:
    B, _, h, w = shape
    v = spread * torch.randn(B, 2, h, w)
    v[:, 0, ::3] = v[:, 0, ::3].round()  # whole cells, and positions on the border
    return v


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, tolerance: float) -> None:
    """Within a tolerance of the largest value; a rounding of bfloat16 more where that is the dtype."""
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    scale = float(expected.abs().max())
    rounding = 0.0 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance * scale, rtol=rounding)


@pytest.mark.parametrize("channels", [2, 3, 32, 64, 61])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CASES)
def test_warp(library, isa, shape, layout, channels):
    B, _, h, w = shape
    torch.manual_seed(1)
    maps, flow = torch.randn(B, channels, h, w).to(isa.dtype), velocity(shape, 5)
    warped = cpu.warp((library, isa), laid_out(maps, layout), flow)
    close(warped, reference.warp(maps.float(), flow), isa.dtype, 2e-5)


@pytest.mark.emulated
@pytest.mark.sanitized
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9])
def test_unusable_flows_read_the_border(library, isa, value):
    maps = torch.rand(1, 5, 4, 6).to(isa.dtype)
    warped = cpu.warp((library, isa), maps, torch.full((1, 2, 4, 6), value))
    corner = maps[..., -1, -1] if value > 0 else maps[..., 0, 0]
    assert torch.equal(warped, corner[..., None, None].expand_as(warped))


@pytest.mark.parametrize("channels", [1, 32, 48, 61])
@pytest.mark.parametrize("shape", CASES)
def test_prelu(library, isa, shape, channels):
    B, _, h, w = shape
    torch.manual_seed(1)
    x, slopes = torch.randn(B, channels, h, w).to(isa.dtype), torch.randn(channels)
    x[..., 0, 0] = 0
    given = x.clone(memory_format=torch.channels_last)
    close(cpu.prelu((library, isa), given, slopes), reference.prelu(x.float(), slopes), isa.dtype, 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CASES)
def test_normalise(library, isa, shape, layout):
    first, second = matches(shape)
    pair = cpu.normalise((library, isa), laid_out(first, layout), laid_out(second, "channels last"))
    exact = reference.normalise(first.double(), second.double())
    torch.testing.assert_close(pair.double(), exact, atol=2e-3, rtol=1e-4)
    error = (pair.double() - exact).square().mean().sqrt()
    assert error < 2 * (reference.normalise(first, second).double() - exact).square().mean().sqrt() + 1e-7


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("made", ["normalised", "given"])
@pytest.mark.parametrize("shape", CASES)
def test_gauss_newton(library, isa, shape, made, iterations):
    channels = 3 + shape[1]
    pair = cpu.normalise((library, isa), *matches(shape))[:, :, :channels]
    if made == "given":  # of any layout, without room for whole vectors
        pair = pair.contiguous()
    numbers = (2 * torch.rand(channels, 1, 1), torch.tensor(0.03), torch.tensor(0.6), iterations)
    start = velocity(shape)
    kept = start.clone()
    actual = cpu.gauss_newton((library, isa), pair, start, *numbers)
    assert torch.equal(start, kept)
    for ours, theirs in zip(actual, reference.gauss_newton(pair, start, *numbers), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("shape", CASES)
def test_evidence(library, isa, shape):
    B, match, h, w = shape
    pair = cpu.normalise((library, isa), *matches(shape))[:, :, 3:]
    v, step, matrix = velocity(shape), torch.randn(B, 2, h, w), 5 * torch.randn(B, 3, h, w)
    context = torch.randn(B, CONTEXT, h, w)
    given = (pair, match, v, step, matrix, context)
    actual = cpu.evidence((library, isa), *given)
    close(actual, reference.evidence(*given, torch.float32), isa.dtype, 2e-5)
    assert actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CASES)
def test_choose(library, isa, shape, layout):
    B, _, h, w = shape
    v, start = velocity(shape), velocity(shape)
    scores = (20 * torch.randn(B, 2 + matching.OFFERED, h, w)).to(isa.dtype)
    preference = torch.randn(1, matching.OFFERED, 1, 1)
    actual = cpu.choose((library, isa), laid_out(scores, layout), preference, v, start)
    expected = reference.choose(scores, preference, v, start)
    torch.testing.assert_close(actual, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_runtime_finds_the_same_velocity(monkeypatch, stride, dtype):
    """With native code as with the reference, but where a search takes other whole cells by a rounding."""
    if isinstance(matching.native.select_isa(torch.float32), str):
        pytest.skip("the native library is missing")
    torch.manual_seed(3)
    changes = {} if stride == 1 else {"front_blocks": 0}
    model = fill_model(STIF(Config(**(MOTION | changes), **LEARNED, feature_stride=stride)))
    x, y = np.meshgrid(np.arange(101), np.arange(75))
    picture = [127 + 60 * np.sin((x - n) / 7) + 60 * np.cos((y + 2 * n) / 5 + x / 11) for n in (0, 3)]
    frames = [np.repeat(p.clip(0, 255).astype(np.uint8)[..., None], 3, 2) for p in picture]
    calls: list[str] = []
    run = matching.native.Library.run
    monkeypatch.setattr(
        matching.native.Library, "run", lambda self, name, *given: (calls.append(name), run(self, name, *given))[1]
    )
    native = Runtime.from_model(model, device="cpu", dtype=dtype).encode(*frames)
    assert {"normalise", "gauss_newton", "warp"} <= set(calls)
    monkeypatch.setattr(matching, "selected_isa", lambda *_: None)
    plain = Runtime.from_model(model, device="cpu", dtype=dtype).encode(*frames)
    difference = (native.velocity - plain.velocity).abs()
    assert difference.median() < (1e-4 if dtype == "float32" else 0.05)
    assert (difference < (0.01 if dtype == "float32" else 0.5)).float().mean() > 0.98


@pytest.mark.parametrize(("channels", "function"), [(257, cpu.warp), (33, cpu.gauss_newton)])
def test_more_channels_than_there_is_room_for_are_refused(library, isa, channels, function):
    pair = torch.zeros(2, 1, channels, 2, 3)
    rest = () if function is cpu.warp else (torch.zeros(channels, 1, 1), torch.tensor(0.1), torch.tensor(0.1), 1)
    with pytest.raises(ValueError, match=rf"not {channels}"):
        function((library, isa), pair[0] if function is cpu.warp else pair, torch.zeros(1, 2, 2, 3), *rest)


@pytest.mark.parametrize("name", ["avx512_bf16", "avx2"])
def test_a_forced_instruction_set_runs_what_is_float32_in_all(monkeypatch, name):
    library = matching.native.load_library()
    if isinstance(library, str) or next((isa.unavailable for isa in library.isas if isa.name == name), "missing"):
        pytest.skip(f"{name} cannot run here")
    monkeypatch.setenv(matching.native.ISA_ENV_VAR, name)
    first, second = matches(SHAPES[0])
    with torch.inference_mode():
        selected = matching.any_isa(first)
        torch.testing.assert_close(
            matching.normalise(first, second), reference.normalise(first, second), atol=2e-3, rtol=1e-3
        )
    assert selected is not None
    assert selected[1].name == name


def test_gradients_pass_through_the_reference():
    maps = torch.rand(1, 3, 5, 6, requires_grad=True)
    matching.warp(maps, torch.ones(1, 2, 5, 6)).sum().backward()
    assert maps.grad is not None
