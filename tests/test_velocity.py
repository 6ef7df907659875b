"""The velocity head and the encoder around it, untrained: Gauss-Newton alone already follows motion."""

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import LEARNED, MOTION
from helpers.models import fill_model

from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.model.velocity import VelocityHead, warp
from stif_rt.runtime import Runtime

STRIDES = {1: Config(**MOTION, **LEARNED), 2: Config(**(MOTION | {"front_blocks": 0}), **LEARNED, feature_stride=2)}


def textured(height: int, width: int) -> torch.Tensor:
    """[3, height, width], detail at every scale from 2 to 16 pixels."""
    torch.manual_seed(0)
    scales = (
        F.interpolate(torch.randn(1, 3, height // n, width // n), (height, width), mode="bicubic")
        for n in (2, 4, 8, 16)
    )
    return (0.5 + 0.12 * sum(scales))[0].clamp(0, 1)


def moved(shift: tuple[int, int], side: int = 128) -> torch.Tensor:
    """A pair [1, 2, 3, side, side] whose content moves by shift (x, y)."""
    picture = textured(side + 64, side + 64)
    x, y = shift
    first, second = (picture[:, 32 - dy : 32 - dy + side, 32 - dx : 32 - dx + side] for dx, dy in ((0, 0), (x, y)))
    return torch.stack((first, second))[None]


def found(head: VelocityHead, frames: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return head(*(head.extract(frames[:, k])[1] for k in (0, 1))).velocity


@pytest.mark.parametrize("shift", [(2, 0), (0, -4), (6, 5), (-16, 8), (24, 0)])
def test_untrained_head_finds_a_shift(shift):
    torch.manual_seed(1)
    v = found(VelocityHead(), moved(shift))[0, :, 16:-16, 16:-16]
    length = sum(n * n for n in shift) ** 0.5
    assert float((v.flatten(1).mean(1) - torch.tensor(shift, dtype=torch.float32)).norm()) < 0.2 * length


def test_untrained_head_leaves_a_still_pair_still():
    torch.manual_seed(1)
    frames = moved((0, 0))
    assert found(VelocityHead(), frames).abs().max() < 1e-4
    flat = torch.full_like(frames, 0.3)
    assert found(VelocityHead(), flat).abs().max() < 1e-4


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
