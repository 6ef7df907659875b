"""The velocity head and the encoder around it, untrained: Gauss-Newton alone already follows motion."""

import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.cases import LEARNED, MOTION
from helpers.models import fill_model

from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.model.velocity import CELLS, FARTHER, REACH, VelocityHead, search
from stif_rt.ops.implicit import BACKENDS
from stif_rt.ops.matching import normalise, warp
from stif_rt.runtime import Runtime, bundled_weights

STRIDES = {1: Config(**MOTION, **LEARNED), 2: Config(**(MOTION | {"front_blocks": 0}), **LEARNED, feature_stride=2)}


def textured(height: int, width: int, scales: tuple[int, ...] = (2, 4, 8, 16)) -> torch.Tensor:
    """[3, height, width], detail at every scale, in pixels."""
    torch.manual_seed(0)
    parts = (F.interpolate(torch.randn(1, 3, height // n, width // n), (height, width), mode="bicubic") for n in scales)
    return (0.5 + 0.12 * sum(parts))[0].clamp(0, 1)


def moved(shift: tuple[int, int], side: int = 128, scales: tuple[int, ...] = (2, 4, 8, 16)) -> torch.Tensor:
    """A pair [1, 2, 3, side, side] whose content moves by shift (x, y)."""
    x, y = shift
    border = max(32, abs(x), abs(y))
    picture = textured(side + 2 * border, side + 2 * border, scales)
    first, second = (
        picture[:, border - dy : border - dy + side, border - dx : border - dx + side] for dx, dy in ((0, 0), (x, y))
    )
    return torch.stack((first, second))[None]


def velocity_of(head: VelocityHead, frames: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return head(*(head.extract(frames[:, k])[1] for k in (0, 1))).velocity


@pytest.mark.parametrize("shift", [(2, 0), (0, -4), (6, 5), (-16, 8), (24, 0)])
def test_untrained_head_finds_a_shift(shift):
    torch.manual_seed(1)
    v = velocity_of(VelocityHead(), moved(shift))[0, :, 16:-16, 16:-16]
    length = sum(n * n for n in shift) ** 0.5
    assert float((v.flatten(1).mean(1) - torch.tensor(shift, dtype=torch.float32)).norm()) < 0.2 * length


@pytest.mark.slow
@pytest.mark.parametrize("shift", [(64, 0), (-48, 56), (90, -30), (0, -80), (84, -84)])
def test_untrained_head_finds_what_is_fast(shift):
    """Two and three cells of the coarsest level, where Gauss-Newton alone is lost."""
    torch.manual_seed(1)
    frames = moved(shift, 384, (2, 8, 32, 64))
    v = velocity_of(VelocityHead(), frames)[0, :, 48:-48, 48:-48]
    length = sum(n * n for n in shift) ** 0.5
    assert float((v.flatten(1).median(1).values - torch.tensor(shift, dtype=torch.float32)).norm()) < 0.1 * length


@pytest.mark.parametrize("shift", [(48, 0), (-32, 32), (0, -32)])
def test_what_is_small_and_fast_is_found_on_what_rests(shift):
    """Two cells of the coarsest level are lost on what surrounds them; finer levels see them."""
    torch.manual_seed(1)
    size, side = 256, 80
    ground = moved((0, 0), size, (2, 8, 32))[:, 0]
    object_ = moved((0, 0), side, (2, 8))[0, 0]
    frames = torch.stack((ground, ground), 1).clone()
    for k, sign in enumerate((-1, 1)):
        x, y = (size // 2 + sign * n // 2 for n in shift)
        frames[0, k, :, y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = object_
    v = velocity_of(VelocityHead(), frames)[0]
    middle, edge = size // 4, size // 16
    inside = v[:, middle - 4 : middle + 4, middle - 4 : middle + 4].flatten(1).median(1).values
    assert float((inside - torch.tensor(shift, dtype=torch.float32)).norm()) < 1
    border = v.clone()
    border[:, edge:-edge, edge:-edge] = 0
    assert torch.equal(border, torch.zeros_like(v))


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (17, 16), (33, 64)])
def test_match_maps_are_normalised_over_the_cells_around_that_there_are(size):
    torch.manual_seed(4)
    pair = torch.rand(2, 2, 3, *size, dtype=torch.float64)
    around = functools.partial(F.avg_pool2d, kernel_size=17, stride=1, padding=8, count_include_pad=False)
    mean, power = around(pair.mean(0)), around(pair.square().mean(0))
    expected = (pair - mean) / (power - mean.square() + 1e-4).clamp(min=1e-4).sqrt()
    torch.testing.assert_close(normalise(*pair), expected)


@pytest.mark.parametrize("start", [(0, 0), (2, -4)])
def test_search_is_the_best_of_all_velocities(start):
    """Against a loop over cells; batches do not see each other."""
    torch.manual_seed(2)
    pair = torch.randn(2, 3, 5, 20, 23)
    pair[1, 1] = pair[0, 1].roll((1 + start[1], -2 + start[0]), (-2, -1))
    begin = torch.tensor(start, dtype=torch.float32).view(1, 2, 1, 1).expand(3, 2, 20, 23)
    cost, best = torch.full((3, 1, 20, 23), math.inf), torch.zeros(3, 2, 20, 23)
    for x, y in itertools.product(range(-REACH, REACH + 1), repeat=2):
        v = begin + torch.tensor((x, y)).view(1, 2, 1, 1)
        first, second = warp(pair[0], -v / 2), warp(pair[1], v / 2)
        difference = F.pad((first - second).abs().mean(1, keepdim=True).clamp(max=3), (6,) * 4, mode="replicate")
        kernel = torch.tensor((1.0, 4.0, 6.0, 4.0, 1.0)) / 16
        kernel = (kernel[:, None] * kernel).view(1, 1, 5, 5)
        for _ in range(3):  # its border is replicated anew each time, so only the inside is equal
            difference = F.conv2d(difference, kernel)
        total = difference + FARTHER * math.hypot(x, y)
        best, cost = torch.where(total < cost, v, best), torch.minimum(total, cost)
    result = search(pair, begin, torch.tensor(CELLS, dtype=torch.float32))
    assert result.shape == best.shape
    torch.testing.assert_close(result[..., 6:-6, 6:-6], best[..., 6:-6, 6:-6])
    expected = torch.tensor((-2.0 + start[0], 1.0 + start[1])).view(2, 1, 1)
    assert (result[1, :, 6:-6, 6:-6] == expected).float().mean() > 0.9


@pytest.mark.parametrize("weights", [None, "stif-s", "stif-i"])
def test_a_still_pair_stays_still(weights):
    torch.manual_seed(1)
    head = VelocityHead() if weights is None else load_model(bundled_weights(weights)).encoder.velocity_head
    frames = moved((0, 0))
    assert torch.equal(velocity_of(head, frames), torch.zeros(1, 2, 64, 64))
    flat = torch.full_like(frames, 0.3)
    assert velocity_of(head, flat).abs().max() < 1e-4


@pytest.mark.parametrize("stride", STRIDES)
def test_extract_and_merge_are_the_encoder(stride):
    model = fill_model(STIF(STRIDES[stride]))
    frames = moved((3, 1), 32)
    with torch.no_grad():
        whole = model.encode(frames)
        parts = model.encoder.merge([model.encoder.extract(frames[:, k]) for k in (0, 1)])
    assert whole.maps.shape == (1, 3, 64, 32 // stride, 32 // stride)
    assert whole.velocity.shape == (1, 2, 32 // stride, 32 // stride)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stride", STRIDES)
def test_a_given_velocity_replaces_the_found_one(stride):
    model, frames = fill_model(STIF(STRIDES[stride])), moved((3, 1), 32)
    velocity = torch.tensor((3.0, 1.0)).view(1, 2, 1, 1).expand(1, 2, 32, 32).contiguous()
    with torch.no_grad():
        given, own = model.encode(frames, velocity), model.encode(frames)
    torch.testing.assert_close(given.velocity, velocity[..., ::stride, ::stride])
    assert (given.maps[:, 1] - own.maps[:, 1]).abs().max() > 1e-3


def test_the_paper_s_encoder_takes_no_velocity(tiny_model):
    with pytest.raises(ValueError, match="takes no velocity"):
        tiny_model.encode(torch.rand(1, 2, 3, 8, 8), torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize("shape", [(1, 2, 3, 32, 48), (1, 3, 3, 32, 32), (2, 3, 32, 32), (1, 2, 4, 32, 32)])
def test_compact_encoder_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"must be|multiples of 32|two frames"):
        STIF(STRIDES[1]).encode(torch.rand(shape))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", STRIDES)
def test_engine_keeps_the_shared_frame_of_a_video(stride, dtype):
    """Velocities are float32 whatever the dtype of the convolutions."""
    model = fill_model(STIF(STRIDES[stride]))
    frames = torch.cat((moved((3, 1), 32), moved((1, 2), 32)), 1)
    engine = TorchEngine(model.encoder, torch.device("cpu"), dtype)
    first, second = engine(frames[:, :2]), engine(frames[:, 1:3])
    fresh = TorchEngine(model.encoder, torch.device("cpu"), dtype)(frames[:, 1:3])
    assert second.maps.dtype == dtype
    assert second.velocity.dtype == torch.float32
    assert not torch.equal(first.velocity, second.velocity)
    for a, b in zip(second, fresh, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", [(33, 45), (7, 9), (1, 1)])
def test_untrained_runtime_gives_the_input_back_and_follows_motion(stride, size):
    """At the input's size, odd sizes: t = 0 and 1 are the frames, and nothing depends on the padding."""
    torch.manual_seed(0)
    height, width = size
    frames = moved((2, 1), 64)[0, :, :, :height, :width]
    runtime = Runtime.from_model(STIF(STRIDES[stride]), device="cpu", dtype="float32", kernels="reference")
    runtime.encode(*frames)
    for k in (0, 1):
        torch.testing.assert_close(runtime.render(float(k)), frames[k], atol=1e-3, rtol=0)
    assert runtime.render(0.5, scale=2.7).shape == (3, max(1, round(2.7 * height)), max(1, round(2.7 * width)))


def test_warp_reads_where_the_flow_points():
    maps = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0] = 1
    assert warp(maps, flow)[0, 0, 0].tolist() == [1, 2, 3, 4, 4]
    flow[:, 0], flow[:, 1] = 0, -9
    assert warp(maps, flow)[0, 0, 3].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_pair_has_the_velocity_that_was_found():
    """It is the head's, at the frames' size, without the padding."""
    model, frames = fill_model(STIF(STRIDES[1])), moved((3, 1), 32)[0, :, :, :29, :31]
    pair = Runtime.from_model(model, device="cpu", dtype="float32", kernels="reference").encode(*frames)
    with torch.no_grad():
        whole = model.encode(F.pad(frames, (0, 1, 0, 3), mode="replicate")[None]).velocity
    torch.testing.assert_close(pair.velocity, whole[0, :, :29, :31])
    assert pair.velocity.dtype == torch.float32


def test_networks_without_motion_have_no_velocity(tiny_model):
    frames = torch.rand(2, 3, 8, 8)
    runtime = Runtime.from_model(tiny_model, device="cpu", dtype="float32")
    assert runtime.encode(*frames).velocity is None
    with pytest.raises(ValueError, match="takes no velocity"):
        runtime.encode(*frames, velocity=torch.zeros(2, 8, 8))


def backends(config: Config) -> list[str]:
    cpu = torch.device("cpu")
    return [
        name for name, backend in BACKENDS.items() if backend.unavailable_reason(config, cpu, torch.float32) is None
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stride", STRIDES)
def test_given_velocity_on_every_backend(stride):
    """The flow is what it implies, pictures follow it, odd sizes and arrays of any kind are taken; once a batch."""
    model, (height, width) = fill_model(STIF(STRIDES[stride])), (27, 33)
    for parameter in model.implicit_functions.flow_imnet.linears[-1].parameters():
        parameter.data.zero_()  # TIF adds nothing
    frames = moved((4, -2), 64)[0, :, :, :height, :width]
    velocity = torch.tensor((4.0, -2.0)).view(2, 1, 1).expand(2, height, width)
    rendered = []
    for backend in backends(STRIDES[stride]):
        runtime = Runtime.from_model(copy.deepcopy(model), device="cpu", dtype="float32", kernels=backend)
        pair = runtime.encode(*frames, velocity=velocity.numpy().astype(np.float64))
        torch.testing.assert_close(pair.velocity, velocity)
        flow = pair.flow(0.25, scale=2)
        expected = torch.tensor((-2.0, 1.0, 6.0, -3.0)).view(4, 1, 1).expand_as(flow)
        torch.testing.assert_close(flow, expected, atol=1e-4, rtol=0)
        rendered.append(pair.render(0.25, scale=2))
        batch = runtime.encode(
            *(frame.expand(2, -1, -1, -1) for frame in frames), velocity=velocity.expand(2, -1, -1, -1)
        )
        torch.testing.assert_close(batch.render(0.25, scale=2)[1], rendered[-1], atol=1e-5, rtol=0)
    for other in rendered[1:]:
        torch.testing.assert_close(other, rendered[0], atol=1e-4, rtol=0)


def test_frames_of_a_video_with_and_without_velocities():
    """What is kept of the shared frame does for the next pair, whether or not that has a velocity."""
    model, frames = fill_model(STIF(STRIDES[1])), moved((2, 1), 32)[0]
    velocity = torch.ones(2, 32, 32)
    kept = Runtime.from_model(model, device="cpu", dtype="float32", kernels="reference")
    for given in (velocity, None, velocity):
        pair = kept.encode(*frames, velocity=given)
        fresh = copy.copy(kept).encode(*frames, velocity=given)
        assert torch.equal(pair.render(0.5), fresh.render(0.5))
        frames = frames.flip(0)


@pytest.mark.parametrize(
    ("velocity", "error", "message"),
    [
        (torch.zeros(2, 8, 9), ValueError, r"shape \[2, 8, 9\].* \[2, 8, 8\]"),
        (torch.zeros(1, 2, 8, 8), ValueError, r"\[2, 8, 8\]"),
        (np.zeros((8, 8, 2), np.float32), ValueError, r"moveaxis\(velocity, -1, -3\)"),
        (torch.zeros(2, 8, 8, dtype=torch.int64), TypeError, "velocity is int64"),
        ([[0.0]], TypeError, "velocity is list"),
        (torch.full((2, 8, 8), float("nan")), ValueError, "not finite"),
        (np.full((2, 8, 8), 1e300), ValueError, "not finite"),
        (torch.zeros(2, 8, 8, device="meta"), TypeError, "without plain values"),
        (torch.zeros(2, 8, 8).to_sparse(), TypeError, "without plain values"),
    ],
)
def test_wrong_velocities_are_explained(velocity, error, message):
    runtime = Runtime.from_model(STIF(STRIDES[1]), device="cpu", dtype="float32", kernels="reference")
    with pytest.raises(error, match=message):
        runtime.encode(*torch.rand(2, 3, 8, 8), velocity=velocity)
