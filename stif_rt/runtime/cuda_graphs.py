"""The encoder and whole frames as CUDA graphs: their launches, recorded once and replayed with other frames, pairs and
times. An encoder launches thousands of small operations, which takes the host longer than small frames take the GPU."""

import functools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from stif_rt.engines.torch_eager import Extracted, TorchEngine
from stif_rt.geometry import Geometry
from stif_rt.model.config import CHANNELS
from stif_rt.model.encoder import Features
from stif_rt.ops.implicit.interface import Kernels, Projections, View

log = logging.getLogger(__name__)

MAX_GRAPHS = 8
LARGEST_DIFFERENCE = 0.01
"""Of what a graph gives at its first replay from what was computed before it was recorded, relative to that."""

R = TypeVar("R")

Key = tuple[tuple[int, int], tuple[int, ...], torch.dtype]
"""What a graph is recorded for: the output's size, the shape of the times, the output's dtype."""


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    times: Tensor  # [B, T], read by the graph
    pictures: Tensor  # written by it
    geometry: Geometry  # kept alive: the graph reads its tables
    working_bytes: int  # of the spatial feature and flow, which lie in the pool that all graphs share


class FrameGraphs:
    """The graphs of one runtime.

    Graphs read and write fixed addresses, so a pair's projections are copied to where the graphs read them when
    another pair than the last one is rendered, and pictures are copied from where they were written. One thread at a
    time replays, on the GPU too, so all graphs share one memory pool: its size is what the largest of them works with.
    """

    def __init__(self, kernels: Kernels, max_bytes: int) -> None:
        """max_bytes: how much memory the graphs may hold together."""
        self._kernels = kernels
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._projections: Projections | None = None
        self._source: weakref.ref[Projections] | None = None  # whose projections those are
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._pool: Any = None  # PyTorch's handle of it
        self._last_replay: torch.cuda.Event | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes that the graphs hold while none of them runs."""
        return self._bytes(list(self._graphs.values()))

    def render(self, projections: Projections, times: Tensor, geometry: Geometry, output: torch.dtype) -> Tensor | None:
        """The whole pictures at ``times`` [B, T] as ``Kernels.decode`` returns them; None if no graph may hold them."""
        with self._lock:
            stream = torch.cuda.current_stream(times.device)
            if self._last_replay is not None:
                stream.wait_event(self._last_replay)  # another thread may have replayed on another stream
            key = (geometry.outputs, tuple(times.shape), output)
            self._keep_room(key, projections, times, geometry, output)
            if key not in self._graphs and self._needed(projections, times, geometry, output) > self._max_bytes:
                return None
            self._take(projections)
            if key not in self._graphs:
                self._graphs[key] = self._record(times, geometry, output)
            graph = self._graphs[key]
            self._graphs.move_to_end(key)
            graph.times.copy_(times)
            graph.graph.replay()
            pictures = graph.pictures.clone()
            self._last_replay = torch.cuda.Event()
            self._last_replay.record(stream)
            return pictures

    def _keep_room(
        self, key: Key, projections: Projections, times: Tensor, geometry: Geometry, output: torch.dtype
    ) -> None:
        """Drops graphs of another input size, and the ones used longest ago where a new one needs their room."""
        held = self._projections
        if held is not None and held.frames.shape != projections.frames.shape:
            self._graphs.clear()
            self._projections = self._source = None
        if key in self._graphs:
            return
        while self._graphs and (
            len(self._graphs) >= MAX_GRAPHS or self._needed(projections, times, geometry, output) > self._max_bytes
        ):
            self._graphs.popitem(last=False)

    def _needed(self, projections: Projections, times: Tensor, geometry: Geometry, output: torch.dtype) -> int:
        """Bytes held with a graph more."""
        working, pictures = self._sizes(times, geometry, output)
        others = list(self._graphs.values())
        largest = max([working, *(graph.working_bytes for graph in others)])
        return _bytes(projections) + pictures + sum(graph.pictures.nbytes for graph in others) + largest

    def _bytes(self, graphs: list[_Graph]) -> int:
        if self._projections is None or not graphs:
            return 0
        pictures = sum(graph.pictures.nbytes for graph in graphs)
        return _bytes(self._projections) + pictures + max(graph.working_bytes for graph in graphs)

    def _sizes(self, times: Tensor, geometry: Geometry, output: torch.dtype) -> tuple[int, int]:
        """Bytes of the spatial feature and flow, and of the pictures."""
        H, W = geometry.outputs
        pixels = times.numel() * H * W
        return pixels * (CHANNELS * self._kernels.dtype.itemsize + 16), pixels * 3 * output.itemsize

    def _take(self, projections: Projections) -> None:
        """Brings a pair's projections to where the graphs read them."""
        if self._source is not None and self._source() is projections:
            return
        if self._projections is None:
            self._projections = projections.map(torch.clone)
        else:
            for target, source in zip(self._projections.tensors, projections.tensors, strict=True):
                target.copy_(source)
        self._source = weakref.ref(projections)

    def _record(self, times: Tensor, geometry: Geometry, output: torch.dtype) -> _Graph:
        static_times = times.clone()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        frame = functools.partial(self._frame, static_times, geometry, output)
        graph, _, pictures = record(frame, self._pool, times.device)
        return _Graph(graph, static_times, pictures, geometry, self._sizes(times, geometry, output)[0])

    def _frame(self, times: Tensor, geometry: Geometry, output: torch.dtype) -> Tensor:
        assert self._projections is not None
        view = View.whole(times, geometry)
        feature, flow = self._kernels.implicit(self._projections, view)
        return self._kernels.decode(self._projections, view, feature, flow, output=output)


class EncoderGraphs:
    """The two parts of an encoder that PyTorch runs, as graphs for the frames' size that came last.

    They are recorded when a second pair of one size comes, because to record costs as much as three pairs. A graph is
    used only if its first replay gives what its operations have given one by one. Else, or where they cannot be
    recorded, they are launched one by one from then on, and a warning says why.
    """

    def __init__(self, engine: TorchEngine, max_pixels: int) -> None:
        """max_pixels: of all frames of a batch, beyond which nothing is recorded: a graph keeps the memory that it
        works with, and large frames keep the GPU busy anyway."""
        self._engine = engine
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._shape: torch.Size | None = None  # of the frames
        self._pair_seen = False  # of that shape
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        self._pool: Any = None
        self._last_replay: torch.cuda.Event | None = None
        self._failed = False

    def extract(self, frames: Tensor, matching: bool) -> Extracted:
        """``TorchEngine.extract`` of padded frames [B, 3, h, w]."""
        extract = functools.partial(self._engine.extract, matching=matching)
        return self._run(("extract", matching), frames.shape, extract, frames)

    def merge(self, first: Extracted, second: Extracted, velocity: Tensor | None, shape: torch.Size) -> Features:
        """``TorchEngine.merge`` of what was extracted from frames of that shape."""
        features = self._run(("merge", velocity is None), shape, self._engine.merge, first, second, velocity)
        self._pair_seen = True
        return features

    def _run(self, name: tuple[object, ...], shape: torch.Size, function: Callable[..., R], *inputs: Any) -> R:
        B, _, h, w = shape
        with self._lock:
            if self._failed or B * h * w > self._max_pixels:
                return function(*inputs)
            if shape != self._shape:
                self._recorded.clear()
                self._shape, self._pool, self._pair_seen = shape, torch.cuda.graph_pool_handle(), False
            if not self._pair_seen:
                return function(*inputs)
            tensors = tensors_of(inputs)
            name = (*name, len(tensors))  # frames may come with what is matched, though a velocity is given
            stream = torch.cuda.current_stream(tensors[0].device)
            if self._last_replay is not None:
                stream.wait_event(self._last_replay)
            if name not in self._recorded:
                return self._record(name, function, inputs)
            result: R = self._recorded[name].replay(tensors)
            self._last_replay = torch.cuda.Event()
            self._last_replay.record(stream)
            return result

    def _record(self, name: tuple[object, ...], function: Callable[..., R], inputs: tuple[Any, ...]) -> R:
        """Records the function, and returns what it makes of the inputs."""
        static = map_tensors(inputs, torch.clone)
        device = tensors_of(inputs)[0].device
        try:
            graph, expected, outputs = record(functools.partial(function, *static), self._pool, device)
            recorded = _Recorded(graph, tensors_of(static), outputs)
            error = _difference(recorded.replay(tensors_of(inputs)), expected)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as failure:  # an operation that waits for the host cannot be recorded
            return self._give_up(" ".join(str(failure).split())[:300], functools.partial(function, *inputs))
        if not error < LARGEST_DIFFERENCE:
            return self._give_up(f"its result differs by {error:.1e}", functools.partial(function, *inputs))
        self._recorded[name] = recorded
        return expected

    def _give_up(self, reason: str, function: Callable[[], R]) -> R:
        log.warning("the encoder is not replayed as a CUDA graph, it is launched step by step: %s", reason)
        self._failed = True
        self._recorded.clear()
        return function()


@dataclass(frozen=True)
class _Recorded:
    """A function of tensors as a graph. inputs: read by it. outputs: written by it, of the function's structure."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any

    def replay(self, inputs: list[Tensor]) -> Any:
        for target, source in zip(self.inputs, inputs, strict=True):
            target.copy_(source)
        self.graph.replay()
        return map_tensors(self.outputs, torch.clone)


def record(function: Callable[[], R], pool: Any, device: torch.device) -> tuple[torch.cuda.CUDAGraph, R, R]:
    """A graph of what the function launches, what the function gave before, and what the graph writes."""
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        before = function()  # compiles what is not compiled yet: that cannot be recorded
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads may allocate GPU memory meanwhile
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        outputs = function()
    return graph, before, outputs


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Nested lists and tuples with each tensor replaced by what the function makes of it."""
    if isinstance(value, Tensor):
        return function(value)
    if not isinstance(value, (list, tuple)):
        return value
    parts = [map_tensors(part, function) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of nested lists and tuples, in their order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, (list, tuple)) else []


def _difference(actual: Any, expected: Any) -> float:
    """The largest difference of any tensor, relative to the largest value there; NaN where there is one."""
    errors = [
        ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6))
        for a, b in zip(tensors_of(actual), tensors_of(expected), strict=True)
    ]
    return float(torch.stack(errors).max())


def _bytes(projections: Projections) -> int:
    return sum(x.nbytes for x in projections.tensors)
