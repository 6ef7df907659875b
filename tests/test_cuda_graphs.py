"""CUDA graphs without a GPU: to replay one is to call again what was recorded, into the memory it was recorded in."""

import contextlib
import copy
import itertools
import logging
import threading
import types

import pytest
import torch
from helpers.models import fill_model

from stif_rt import Runtime
from stif_rt.model.config import MOTION, Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import cuda_graphs
from stif_rt.runtime.cuda_graphs import EncoderGraphs, FrameGraphs, map_tensors, tensors_of
from stif_rt.runtime.pair import Renderer


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        assert event.recorded


class Event:
    recorded = False

    def record(self, stream):
        self.recorded = True


@pytest.fixture
def pools(monkeypatch):
    """The memory pools of the graphs that were recorded. Replayed, a graph runs its function anew, and writes where the
    recording has written."""
    pools, record = [], cuda_graphs.record

    def recorded(function, pool, device):
        graph, before, outputs = record(function, pool, device)

        def replay():
            for target, source in zip(tensors_of(outputs), tensors_of(function()), strict=True):
                target.copy_(source)

        graph.replay = replay
        return graph, before, outputs

    @contextlib.contextmanager
    def recording(graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        pools.append(pool)
        yield

    monkeypatch.setattr(cuda_graphs, "record", recorded)
    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": types.SimpleNamespace,
        "graph": recording,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "graph_pool_handle": lambda: object(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return pools


def make(tiny_model, max_memory=1 << 26, **options):
    runtime = Runtime.from_model(copy.deepcopy(tiny_model), device="cpu", dtype="float32", max_memory=max_memory)
    if options.get("graphs", True):
        old = runtime._renderer
        graphs = FrameGraphs(old.kernels, max_memory // 2)
        runtime._renderer = Renderer(old.config, old.kernels, old.device, old.dtype, max_memory, graphs)
    return runtime


REQUESTS = [{"t": 0.3, "scale": 2}, {"t": [0.2, 0.9], "size": (20, 31)}, {"t": 0.6, "output": "uint8"}]


@pytest.mark.slow
def test_pairs_take_turns_in_one_set_of_graphs(pools, tiny_model, frames):
    runtime, plain = make(tiny_model), make(tiny_model, graphs=False)
    both = [(frames[0], frames[1]), (frames[1], frames[0])]
    pairs, expected = ([r.encode(*pair) for pair in both] for r in (runtime, plain))
    results = []
    for _ in range(2):
        for pair, same in zip(pairs, expected, strict=True):
            for request in REQUESTS:
                results.append((pair.render(**request), same.render(**request)))
    for actual, wanted in results:  # all of them at the end: no later replay writes into an earlier result
        assert torch.equal(actual, wanted)
    assert len(pools) == len(REQUESTS)
    assert len(set(pools)) == 1


def test_regions_are_rendered_without_a_graph(pools, tiny_model, frames):
    runtime, plain = make(tiny_model), make(tiny_model, graphs=False)
    region = {"t": 0.5, "scale": 2, "region": (3, 4, 10, 11)}
    torch.testing.assert_close(runtime.encode(*frames).render(**region), plain.encode(*frames).render(**region))
    assert not pools


def test_what_graphs_hold_counts_in_the_memory_budget(pools, tiny_model, frames):
    """The projections once, each graph's pictures, and once the largest graph's working memory; never over half."""
    runtime = make(tiny_model, 1_200_000)
    graphs, pair = runtime._renderer.graphs, runtime.encode(*frames)
    projections = sum(x.nbytes for x in pair._projections.tensors)
    before = runtime._renderer.pixels
    pair.render(0.5, size=(10, 20))
    assert graphs.held_bytes == projections + 200 * 12 + 200 * (64 * 4 + 16)
    pair.render(0.5, size=(5, 20))
    assert graphs.held_bytes == projections + 300 * 12 + 200 * (64 * 4 + 16)
    assert runtime._renderer.pixels == (1_200_000 - graphs.held_bytes) // (64 * 4 + 16) < before
    for side in (20, 22, 24, 26, 60):
        pair.render(0.5, size=(side, side))
        assert graphs.held_bytes <= 600_000
    assert len(pools) == 6, "60x60 does not fit, and is rendered without a graph"
    for n in range(cuda_graphs.MAX_GRAPHS + 2):
        pair.render(0.5, size=(n + 1, 1))
    assert len(graphs._graphs) <= cuda_graphs.MAX_GRAPHS


def test_another_input_size_drops_the_graphs(pools, tiny_model, frames):
    runtime, plain = make(tiny_model), make(tiny_model, graphs=False)
    for some in (frames, [frame[:8] for frame in frames], frames):
        assert torch.equal(runtime.encode(*some).render(0.5, 2), plain.encode(*some).render(0.5, 2))
    assert len(pools) == 3


def test_threads_replay_one_at_a_time(pools, tiny_model, frames):
    runtime, plain = make(tiny_model), make(tiny_model, graphs=False)
    both = [(frames[0], frames[1]), (frames[1], frames[0])]
    pairs, expected = ([r.encode(*pair) for pair in both] for r in (runtime, plain))
    wanted = [[pair.render(t, scale=2) for t in (0.2, 0.4, 0.7)] for pair in expected]
    wrong = []

    def work(n):
        for k in range(6):
            if not torch.equal(pairs[n].render((0.2, 0.4, 0.7)[k % 3], scale=2), wanted[n][k % 3]):
                wrong.append((n, k))

    threads = [threading.Thread(target=work, args=(n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(pools) == 1


# The encoder

CONFIGS = {
    "paper": Config(front_blocks=1, back_blocks=1),
    "motion": Config(**MOTION, front_blocks=1, back_blocks=1),
    "motion at stride 2": Config(**MOTION, front_blocks=0, back_blocks=1, feature_stride=2),
}


def make_both(config, pixels=1 << 20):
    """A runtime that replays its encoder, and one that does not."""
    model = fill_model(STIF(config))
    graphed, plain = (Runtime.from_model(copy.deepcopy(model), device="cpu", dtype="float32") for _ in range(2))
    graphed._encoder_graphs = EncoderGraphs(graphed._engine, pixels)
    return graphed, plain


def video(count, size=(24, 40)):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *size, generator=generator) for _ in range(count)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first._projections.tensors, second._projections.tensors, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_pairs_of_a_video_are_two_graphs(pools, name):
    """Their encoded pairs are equal, and no later replay writes into an earlier one."""
    graphed, plain = make_both(CONFIGS[name])
    frames = video(5)
    pairs = [[runtime.encode(a, b) for a, b in itertools.pairwise(frames)] for runtime in (graphed, plain)]
    assert all(same(a, b) for a, b in zip(*pairs, strict=True))
    assert len(pools) == 2
    assert len(set(pools)) == 1


@pytest.mark.slow
def test_a_given_velocity_is_another_graph(pools):
    graphed, plain = make_both(CONFIGS["motion"])
    velocity = torch.full((2, 24, 40), 1.5)
    for a, b in itertools.pairwise(video(4)):
        assert same(graphed.encode(a, b), plain.encode(a, b))
        assert same(graphed.encode(a, b, velocity=velocity), plain.encode(a, b, velocity=velocity))


@pytest.mark.slow
def test_another_size_drops_the_encoder_s_graphs(pools):
    graphed, plain = make_both(CONFIGS["motion"])
    for size in ((24, 40), (33, 50), (24, 40)):
        for a, b in itertools.pairwise(video(4, size)):
            assert same(graphed.encode(a, b), plain.encode(a, b))
    assert len(pools) == 6
    assert len(set(pools)) == 3


def test_large_frames_are_encoded_without_a_graph(pools):
    graphed, plain = make_both(CONFIGS["motion"], 32 * 64 - 1)
    for a, b in itertools.pairwise(video(4)):
        assert same(graphed.encode(a, b), plain.encode(a, b))
    assert not pools


def test_one_pair_of_a_size_is_encoded_without_a_graph(pools):
    graphed, plain = make_both(CONFIGS["motion"])
    for size in ((24, 40), (33, 50), (24, 40)):
        a, b = video(2, size)
        assert same(graphed.encode(a, b), plain.encode(a, b))
    assert not pools


@pytest.mark.parametrize(
    ("device", "use_graph", "encoder", "pictures"),
    [
        ("cuda", None, True, False),
        ("cuda", True, True, True),
        ("cuda", False, False, False),
        ("cpu", None, False, False),
    ],
)
def test_on_a_gpu_the_encoder_is_replayed_by_default(tiny_model, device, use_graph, encoder, pictures):
    plain = Runtime.from_model(copy.deepcopy(tiny_model), device="cpu")
    parts = plain.config, plain._engine, plain._renderer.kernels, torch.device(device), torch.float32, 1 << 26
    runtime = Runtime(*parts, use_graph=use_graph)
    assert (runtime._encoder_graphs is not None) == encoder
    assert (runtime._renderer.graphs is not None) == pictures


@pytest.mark.parametrize("fault", ["wrong", "nan", "error"])
def test_an_encoder_that_cannot_be_recorded_runs_step_by_step(pools, monkeypatch, caplog, fault):
    graphed, plain = make_both(CONFIGS["motion"])
    record = cuda_graphs.record

    def faulty(*arguments):
        if fault == "error":
            raise RuntimeError("operation not permitted when stream is capturing")
        graph, before, outputs = record(*arguments)
        right = graph.replay

        def replay():
            right()
            map_tensors(outputs, lambda x: x.mul_(1.1 if fault == "wrong" else torch.nan))

        graph.replay = replay
        return graph, before, outputs

    monkeypatch.setattr(cuda_graphs, "record", faulty)
    with caplog.at_level(logging.WARNING):
        for a, b in itertools.pairwise(video(4)):
            assert same(graphed.encode(a, b), plain.encode(a, b))
    (said,) = caplog.messages
    assert "not replayed as a CUDA graph" in said
    assert ("not permitted" if fault == "error" else "differs by") in said


@pytest.mark.slow
def test_threads_share_the_encoder_s_graphs(pools):
    graphed, plain = make_both(CONFIGS["motion"])
    frames = video(6)
    wanted = [plain.encode(a, b) for a, b in itertools.pairwise(frames)]
    wrong = []

    def work(n):
        for k in range(n, 10):
            a, b = frames[k % 5], frames[k % 5 + 1]
            if not same(graphed.encode(a, b), wanted[k % 5]):
                wrong.append((n, k))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
