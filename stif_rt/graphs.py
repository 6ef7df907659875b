"""A whole frame as one CUDA graph: the launches of both passes, recorded once and replayed with another time."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from stif_rt.geometry import Box, Geometry
from stif_rt.ops.implicit.interface import Kernels, Projections

KEPT = 4
"""Graphs, one for each output size, that are kept; each holds its own spatial feature, flow and picture."""


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    times: Tensor  # [1, 1], read by the graph
    rgb: Tensor  # [3, H, W], written by it
    geometry: Geometry  # kept alive: the graph reads its tables


class FrameGraphs:
    """Graphs read the pair's projections at fixed addresses, so each new pair is copied to where the first one was."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._projections: Projections | None = None
        self._graphs: OrderedDict[tuple[int, int], _Graph] = OrderedDict()

    def take(self, projections: Projections) -> Projections:
        """The same projections, at the address that the graphs read. Graphs of another input size are dropped."""
        held = self._projections
        if held is None or held.frames.shape != projections.frames.shape:
            self._graphs.clear()
            self._projections = projections
            return projections
        for target, source in zip(_tensors(held), _tensors(projections), strict=True):
            target.copy_(source)
        return held

    def render(self, times: Tensor, geometry: Geometry) -> Tensor:
        """The whole frame at ``times`` [1, 1]: float32 [3, H, W], valid until the next call."""
        found = self._graphs.get(geometry.outputs)
        if found is None:
            found = self._record(times, geometry)
            self._graphs[geometry.outputs] = found
            if len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(geometry.outputs)
        found.times.copy_(times)
        found.graph.replay()
        return found.rgb

    def _record(self, times: Tensor, geometry: Geometry) -> _Graph:
        held = times.clone()
        stream, current = torch.cuda.Stream(times.device), torch.cuda.current_stream(times.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._frame(held, geometry)  # compiles what is not compiled yet, which cannot be recorded
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            rgb = self._frame(held, geometry)
        return _Graph(graph, held, rgb, geometry)

    def _frame(self, times: Tensor, geometry: Geometry) -> Tensor:
        assert self._projections is not None
        whole = Box(0, 0, *geometry.outputs)
        feature, flow = self._kernels.implicit(self._projections, times, geometry, whole)
        return self._kernels.decode(self._projections, feature, flow, times, geometry, whole, whole)[0, 0]


def _tensors(projections: Projections) -> tuple[Tensor, ...]:
    velocity = () if projections.velocity is None else (projections.velocity,)
    return (*projections.sif, *projections.tif, *projections.decoder, projections.frames, *velocity)
