"""Whole frames as CUDA graphs: the launches of both passes, recorded once and replayed with other times and pairs."""

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stif_rt.geometry import Geometry
from stif_rt.model.config import CHANNELS
from stif_rt.ops.implicit.interface import Kernels, Projections, View

MAX_GRAPHS = 8

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
        stream, current = torch.cuda.Stream(times.device), torch.cuda.current_stream(times.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._frame(static_times, geometry, output)  # compiles what is not compiled yet: that cannot be recorded
        current.wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may allocate GPU memory meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            pictures = self._frame(static_times, geometry, output)
        return _Graph(graph, static_times, pictures, geometry, self._sizes(times, geometry, output)[0])

    def _frame(self, times: Tensor, geometry: Geometry, output: torch.dtype) -> Tensor:
        assert self._projections is not None
        view = View.whole(times, geometry)
        feature, flow = self._kernels.implicit(self._projections, view)
        return self._kernels.decode(self._projections, view, feature, flow, output=output)


def _bytes(projections: Projections) -> int:
    return sum(x.nbytes for x in projections.tensors)
