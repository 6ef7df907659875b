"""CUDA graphs without a GPU: to replay one is to call again what was recorded, into the memory it was recorded in."""

import contextlib
import copy
import threading

import pytest
import torch

from stif_rt import Runtime
from stif_rt.runtime import cuda_graphs
from stif_rt.runtime.cuda_graphs import FrameGraphs
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


class Graph:
    """Replayed, it runs the frame anew from the static tensors, and writes where the recording has written."""

    def __init__(self, record):
        self.record = record

    def replay(self):
        frame, arguments, pictures = self.record["call"]
        pictures.copy_(frame(*arguments))


@pytest.fixture
def pools(monkeypatch):
    """The memory pools of the graphs that were recorded."""
    record, pools = {}, []
    frame = FrameGraphs._frame

    def spy(self, *arguments):
        pictures = frame(self, *arguments)
        if record:
            record["call"] = (lambda *a: frame(self, *a)), arguments, pictures
        return pictures

    @contextlib.contextmanager
    def recording(graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        pools.append(pool)
        record["call"] = None
        yield
        graph.record = dict(record)
        record.clear()

    monkeypatch.setattr(FrameGraphs, "_frame", spy)
    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": lambda: Graph(None),
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
