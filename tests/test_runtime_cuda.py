"""What a frame costs the host and the bus on a GPU, counted on fake CUDA tensors: launches, waits, bytes copied."""

import importlib.util
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from helpers.models import TINY
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.model.config import MOTION, Config
from stif_rt.model.stif import STIF
from stif_rt.ops.implicit import triton_backend
from stif_rt.ops.implicit.weights import TURNS, fold
from stif_rt.runtime import Runtime, frames, requests, runtime

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
CUDA = torch.device("cuda:0")
WAITS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero")
H, W = 12, 16


@dataclass
class Costs(TorchDispatchMode):
    """Counts what is dispatched within. PyTorch's copies wait for the GPU unless they are non_blocking."""

    kernels: list[str] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)
    waits: list[str] = field(default_factory=list)
    uploaded: int = 0
    downloaded: int = 0

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        source = next((x for x in args[::-1] if isinstance(x, torch.Tensor)), None)
        if name in WAITS:
            self.waits.append(name)
        elif isinstance(result, torch.Tensor) and name in ("to", "_to_copy", "copy_"):
            if source.device.type != result.device.type:
                self.uploaded += result.nbytes if result.is_cuda else 0
                self.downloaded += 0 if result.is_cuda else result.nbytes
                blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
                self.waits += [name] if blocking else []
            elif result.is_cuda:
                self.launches[name] += 1
        elif not function.is_view and "empty" not in name and name != "_unsafe_view":
            first = result[0] if isinstance(result, (tuple, list)) and result else result
            self.launches[name] += isinstance(first, torch.Tensor) and first.is_cuda
        return result


def on_cuda(config):
    """A network on the fake GPU."""
    with CUDA, torch.no_grad():
        model = STIF(config)
        for module in model.modules():
            module._buffers.update({key: x.to(CUDA) for key, x in module._buffers.items()})
    return model


@pytest.fixture(params=["deformable", pytest.param("motion", marks=pytest.mark.slow)])
def costs(monkeypatch, request):
    """A runtime on fake CUDA tensors, and what is dispatched while the costs that it comes with are entered.

    It replays no CUDA graphs: only a driver can record them.
    """
    costs = Costs()
    monkeypatch.setattr(triton_backend, "launch", lambda kernel, *_, **__: costs.kernels.append(kernel))
    monkeypatch.setattr(frames, "pinned", torch.clone)  # memory is pinned by the driver
    monkeypatch.setattr(runtime, "is_same", lambda a, b: (a.device.type == "cpu" and b.device.type == "cpu") or 1 / 0)
    requests._geometry.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        deformable = Config(**TINY, grid="centres", residual=True)
        config = (
            deformable
            if request.param == "deformable"
            else Config(**MOTION, front_blocks=0, back_blocks=0, feature_stride=2)
        )
        model = on_cuda(config)
        with torch.no_grad():
            weights = fold(model.implicit_functions, TURNS)
            kernels = triton_backend.TritonKernels(
                weights, torch.float16, triton_backend.launches((8, 6), torch.float16)
            )
        engine = TorchEngine.__new__(TorchEngine)  # fake parameters cannot be converted in place
        engine.encoder, engine.dtype = model.encoder, torch.float32
        yield Runtime(config, engine, kernels, CUDA, torch.float16, 1 << 30, use_graph=False), costs
    requests._geometry.cache_clear()


def passes(runtime, times):
    """The launches of both passes. A spatial feature that is the same at all times is computed once, by one more."""
    return ["implicit_kernel"] * (1 + (times > 1 and not runtime.config.sif_time)) + ["decode_kernel"]


def frame():
    return np.zeros((H, W, 3), np.uint8)


def test_a_pair_copies_each_frame_once_as_bytes(costs):
    runtime, counted = costs
    with counted:
        runtime._last.second = None
        runtime.encode(frame(), frame())
        first = counted.uploaded
        runtime.encode(frame(), frame())  # begins with the frame that the pair before ended with
    assert first == 2 * 3 * H * W
    assert counted.uploaded - first == 3 * H * W
    assert counted.waits == []
    assert counted.downloaded == 0


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_an_encoder_with_motion_can_be_recorded(costs, stride):
    """Nothing that it does waits for the host or copies from it, as a CUDA graph must not."""
    _, counted = costs
    config = Config(**MOTION, front_blocks=2 - stride, back_blocks=1, feature_stride=stride)
    encoder = on_cuda(config).encoder
    with CUDA, torch.no_grad():
        frames = torch.zeros(1, 3, 32, 64)
        with counted:
            encoder.merge([encoder.extract(frames), encoder.extract(frames)])
    assert counted.waits == []
    assert (counted.uploaded, counted.downloaded) == (0, 0)
    assert counted.launches["convolution"] > 20


@pytest.mark.parametrize("times", [0.5, [0.25, 0.5, 0.75]], ids=["one time", "three times"])
@pytest.mark.parametrize("output", ["float32", "uint8"])
def test_pictures_are_two_launches_and_no_wait(costs, times, output):
    """Several times are one call. float32 is clamped by a launch more. Nothing goes up but four bytes for each time."""
    runtime, counted = costs
    pair = runtime.encode(frame(), frame())
    pair.render(0.1, scale=4)  # the tables of a new size go up once
    with counted:
        rgb = pair.render(times, scale=4, output=output)
    assert counted.kernels == passes(runtime, 1) + passes(runtime, np.size(times))
    assert +counted.launches == Counter({} if output == "uint8" else {"clamp_": 1})
    assert counted.waits == []
    assert (counted.uploaded, counted.downloaded) == (4 * np.size(times), 0)
    assert rgb.shape[-3:] == ((4 * H, 4 * W, 3) if output == "uint8" else (3, 4 * H, 4 * W))


def test_flow_is_one_launch_and_one_copy_on_the_gpu(costs):
    runtime, counted = costs
    pair = runtime.encode(frame(), frame())
    pair.render(0.1, scale=4)
    with counted:
        pair.flow([0.2, 0.4], scale=4)
    assert counted.kernels == passes(runtime, 1) + passes(runtime, 2)[:-1]
    assert +counted.launches == Counter({"copy_": 1})
    assert counted.waits == []


def test_a_picture_beyond_the_budget_is_more_launches_of_the_same_pictures(costs):
    """Times are split before pictures are: a picture that fits alone is never cut, so nothing waits."""
    runtime, counted = costs
    pair = runtime.encode(frame(), frame())
    two_pictures = 2 * 16 * H * W * (64 * 2 + 16)
    kernels = pair._renderer.kernels
    small = Runtime(runtime.config, runtime._engine, kernels, CUDA, torch.float16, two_pictures, use_graph=False)
    pair = small.encode(frame(), frame())
    pair.render(0.1, scale=4)
    before = len(counted.kernels)
    with counted:
        pair.render([0.1, 0.2, 0.3, 0.4, 0.5], scale=4, output="uint8")
    assert counted.waits == []
    assert counted.kernels[before:] == passes(runtime, 2) * 2 + passes(runtime, 1)
