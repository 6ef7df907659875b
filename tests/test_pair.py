"""Pairs as values: held together, rendered from several threads, unaffected by the modes that callers are in."""

import copy
import itertools
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import fill_model

from stif_rt import Pair, Runtime, flow_to_image
from stif_rt.model.config import CONFIGS
from stif_rt.model.stif import STIF
from stif_rt.ops.implicit import triton_backend

BACKENDS = ["reference", "cpu"]
REQUESTS = [
    {"t": 0.3, "scale": 2},
    {"t": [0.0, 0.5, 1.0], "scale": 1.5, "output": "uint8"},
    {"t": 0.7, "scale": 3, "region": (5, 8, 20, 22)},
    {"t": [0.2, 0.9], "size": (40, 11)},
]


def make(tiny_model, **options):
    return Runtime.from_model(copy.deepcopy(tiny_model), device="cpu", dtype="float32", **options)


@pytest.fixture
def default_dtype():
    """Sets PyTorch's default dtype, until the test ends."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def videos(count, length, size=(18, 21)):
    rng = np.random.default_rng(count)
    return [[rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(length)] for _ in range(count)]


def run_together(functions):
    """Calls each in a thread of its own, all at once; raises what one of them raises."""
    barrier, errors = threading.Barrier(len(functions)), []

    def call(function):
        try:
            barrier.wait()
            function()
        except BaseException as error:  # handed to the test below
            errors.append(error)

    threads = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_memory", [1 << 30, 600 * 272], ids=["whole", "tiles"])
def test_threads_share_pairs_bit_for_bit(tiny_model, backend, max_memory):
    runtime = make(tiny_model, kernels=backend, max_memory=max_memory)
    pairs = [runtime.encode(*frames) for frames in videos(3, 2)]
    expected = [[pair.render(**request) for request in REQUESTS] + [pair.flow(0.4, 2)] for pair in pairs]
    again = [make(tiny_model, kernels=backend).encode(*frames).flow(0.4, 2) for frames in videos(3, 2)]
    assert all(torch.equal(flow, pictures[-1]) for flow, pictures in zip(again, expected, strict=True))

    def work(start):
        for step in range(len(pairs)):
            n = (start + step) % len(pairs)
            for request, picture in zip(REQUESTS, expected[n], strict=False):
                assert torch.equal(pairs[n].render(**request), picture)
            assert torch.equal(pairs[n].flow(0.4, 2), expected[n][-1])

    run_together([lambda start=start: work(start) for start in range(4)])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_share_a_runtime_bit_for_bit(tiny_model, backend):
    """Each thread encodes and renders a video of its own: what it encoded last is its own, and so is what it keeps."""
    clips = videos(4, 4)

    def pictures(runtime, clip):
        result = []
        for before, after in itertools.pairwise(clip):
            runtime.encode(before, after)
            result += [runtime.render(0.3, scale=2), runtime.render([0.2, 0.8], output="uint8"), runtime.flow(0.5)]
        return result

    expected = [pictures(make(tiny_model, kernels=backend), clip) for clip in clips]
    runtime = make(tiny_model, kernels=backend)

    def work(n):
        for _ in range(3):
            assert all(map(torch.equal, pictures(runtime, clips[n]), expected[n]))

    run_together([lambda n=n: work(n) for n in range(len(clips))])


def test_a_pair_outlives_those_that_follow(tiny_model):
    runtime = make(tiny_model)
    (clip,) = videos(1, 5)
    pairs, pictures = [], []
    for frames in itertools.pairwise(clip):
        pairs.append(runtime.encode(*frames))
        pictures.append(runtime.render(0.4, scale=2))
    assert len({picture.sum().item() for picture in pictures}) == len(pictures)
    for pair, picture in zip(pairs, pictures, strict=True):
        assert isinstance(pair, Pair)
        assert torch.equal(pair.render(0.4, scale=2), picture)


def test_which_pair_is_the_last(tiny_model):
    runtime = make(tiny_model)
    (a, b), (c, d) = videos(2, 2)
    first = runtime.encode(a, b).render(0.5)
    seen = {}

    def elsewhere():
        seen["before"] = runtime.render(0.5)  # it has encoded nothing itself
        seen["second"] = runtime.encode(c, d).render(0.5)
        seen["after"] = runtime.render(0.5)
        with pytest.raises(ValueError, match="one size"):
            runtime.encode(c, d[:4])
        with pytest.raises(RuntimeError, match="encode"):
            runtime.render(0.5)

    run_together([elsewhere])
    assert torch.equal(seen["before"], first)
    assert torch.equal(seen["after"], seen["second"])
    assert not torch.equal(seen["second"], first)
    assert torch.equal(runtime.render(0.5), first)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_modes_of_the_caller_have_no_effect(tiny_model, frames, backend):
    expected = make(tiny_model, kernels=backend).encode(*frames).render([0.3, 0.6], scale=2)
    modes = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode,
        "no gradients": torch.no_grad,
        "default device": lambda: torch.device("meta"),
    }
    for name, mode in modes.items():
        runtime = make(tiny_model, kernels=backend)
        with mode():
            pair = runtime.encode(*frames)
            inside = pair.render([0.3, 0.6], scale=2)
        assert torch.equal(inside, expected), name
        assert torch.equal(pair.render([0.3, 0.6], scale=2), expected), name
        assert torch.equal(runtime.encode(frames[1], frames[0]).render(0.7, 2), runtime.render(0.7, 2)), name
        assert not inside.is_inference(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stif-i", "stif-s-dcn"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_dtype_has_no_effect(frames, name, backend, default_dtype):
    model = fill_model(STIF(replace(CONFIGS[name], front_blocks=0, back_blocks=0)))

    def results():
        pair = make(model, kernels=backend, max_memory=1 << 16).encode(*frames)
        flow = pair.flow(0.4)
        results = [pair.render([0.3, 0.6], scale=2), flow, flow_to_image(flow)]
        return results if pair.velocity is None else [*results, pair.velocity]

    expected = results()
    for dtype in (torch.float64, torch.bfloat16):
        default_dtype(dtype)
        for actual, wanted in zip(results(), expected, strict=True):
            assert actual.dtype == wanted.dtype
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_memory", [1 << 30, 600 * 272], ids=["whole", "tiles"])
def test_results_are_ordinary_tensors(tiny_model, frames, backend, max_memory):
    pair = make(tiny_model, kernels=backend, max_memory=max_memory).encode(*frames)
    results = [
        pair.render(0.5, scale=2),
        pair.render([0.5, 0.6], output="uint8"),
        pair.render(0.5, region=(1, 2, 3, 4)),
        pair.flow(0.5, scale=2),
    ]
    for result in results:
        before = result.clone()
        assert result.is_contiguous()
        result.add_(1)
        result[0].zero_()
        assert not torch.equal(result, before)
    picture = pair.render(0.5)
    layer = torch.nn.Conv2d(3, 1, 3)
    layer(picture[None]).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    assert torch.equal(pair.render(0.5), picture)


def test_several_times_and_a_region_of_the_flow(tiny_model, frames):
    pair = make(tiny_model).encode(*frames)
    several = pair.flow([0.2, 0.7], scale=2)
    assert several.shape == (2, 4, 36, 42)
    for t, flow in zip((0.2, 0.7), several, strict=True):
        torch.testing.assert_close(pair.flow(t, scale=2), flow, atol=1e-4, rtol=0)
    part = pair.flow([0.2, 0.7], scale=2, region=(3, 5, 11, 13))
    torch.testing.assert_close(part, several[..., 3:14, 5:18], atol=1e-4, rtol=0)


def test_what_was_chosen_can_be_asked(tiny_model, frames):
    runtime = make(tiny_model, kernels="reference", max_memory="1.5 MiB")
    actual = (runtime.backend, runtime.engine, runtime.dtype, runtime.device, runtime.max_memory)
    assert actual == ("reference", "torch", torch.float32, torch.device("cpu"), 3 << 19)
    expected = (
        "Runtime(weights='a network in memory', engine='torch', backend='reference', dtype='float32', device='cpu')"
    )
    assert repr(runtime) == expected
    assert "weights='stif-s'" in repr(Runtime.load())
    assert repr(runtime.encode(*frames)) == "Pair(21x18)"
    assert repr(runtime.encode(np.stack(frames), np.stack(frames))) == "Pair(21x18, batch of 2)"


def test_pytorch_objects_are_taken(tiny_model):
    for dtype in ("bfloat16", torch.bfloat16):
        for device in ("cpu", torch.device("cpu"), torch.device("cpu", 0)):
            runtime = Runtime.from_model(copy.deepcopy(tiny_model), device=device, dtype=dtype)
            assert (runtime.device.type, runtime.dtype) == ("cpu", torch.bfloat16)


@pytest.mark.parametrize(("words", "count"), [("1GB", 10**9), ("512M", 512 * 10**6), ("2 kib", 2048), (7, 7), ("9", 9)])
def test_memory_in_words(tiny_model, words, count):
    assert make(tiny_model, max_memory=words).max_memory == count


@pytest.mark.parametrize("memory", [0, -1, "0", "lots", "1XB", "", float("nan"), 10**400, True], ids=str)
def test_memory_that_cannot_be(tiny_model, memory):
    with pytest.raises(ValueError, match="max_memory must be a positive number of bytes") as caught:
        make(tiny_model, max_memory=memory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_share_the_network_and_processes_get_a_clear_no(tiny_model, frames, backend):
    runtime = make(tiny_model, kernels=backend)
    pair = runtime.encode(*frames)
    for twin in (copy.copy(runtime), copy.deepcopy(runtime)):
        with pytest.raises(RuntimeError, match="encode"):
            twin.render(0.5)
        assert torch.equal(twin.encode(*frames).render(0.5), pair.render(0.5))
    assert copy.deepcopy(pair) is pair
    for value in (runtime, pair):
        with pytest.raises(TypeError, match=type(value).__name__):
            pickle.dumps(value)


def test_interpreted_triton_is_not_what_runs_here():
    """The tests above name their backends; under the interpreter ``auto`` would take Triton's."""
    assert triton_backend.interpreted() or Runtime.load(device="cpu", dtype="float32").backend in ("cpu", "reference")
