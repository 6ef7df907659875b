"""The implicit functions' three steps, on every backend that can run."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers.cases import Case
from helpers.models import functions

from benchmarks.conftest import DEVICES, DTYPES
from stif_rt.geometry import make_geometry
from stif_rt.model.config import Config
from stif_rt.model.encoder import Features
from stif_rt.ops.implicit import BACKENDS, make_kernels
from stif_rt.ops.implicit.interface import Kernels, Projections, View
from stif_rt.ops.implicit.weights import RADIANS, FoldedSiren, FoldedWeights, fold

CONFIG = Config()
RUNNABLE = [
    pytest.param(backend, device, dtype, id=f"{backend}-{device}-{name}")
    for backend, module in BACKENDS.items()
    for device in DEVICES
    for name, dtype in DTYPES.items()
    if module.unavailable_reason(CONFIG, torch.device(device), dtype) is None
]

runnable = pytest.mark.parametrize(("backend", "device", "dtype"), RUNNABLE)


@functools.cache
def kernels_of(backend: str, device: str, dtype: torch.dtype) -> Kernels:
    return make_kernels(backend, functions(CONFIG), torch.device(device), dtype)


@functools.cache
def weights() -> FoldedWeights:
    with torch.no_grad():
        return fold(functions(CONFIG), RADIANS)


def work(network: FoldedSiren | None) -> int:
    """Multiply-adds per output pixel and time after the projections; sines are not counted."""
    assert network is not None
    matrices = [*([network.local] if network.local is not None else []), *(w for w, _ in network.hidden)]
    return sum(matrix.numel() for matrix in (*matrices, network.output[0]))


def inputs(case: Case, device: str) -> tuple[Features, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    features = Features(torch.rand(case.batch, 3, 64, *case.inputs) - 0.5)
    times = torch.tensor(case.times).repeat(case.batch, 1)
    return features.to(device), torch.rand(case.batch, 2, 3, *case.inputs).to(device), times.to(device)


class Prepared:
    """A case's inputs, and sizes for the floors."""

    def __init__(self, case: Case, device: str, dtype: torch.dtype) -> None:
        self.features, self.frames, times = inputs(case, device)
        self.view = View.whole(times, make_geometry(CONFIG, case.inputs, case.outputs).to(torch.device(device)))
        self.input_pixels = case.batch * case.inputs[0] * case.inputs[1]
        self.output_pixels = times.numel() * self.view.box.pixels
        self.itemsize = dtype.itemsize

    @torch.inference_mode()
    def project(self, kernels: Kernels) -> Projections:
        return kernels.project(self.features, self.frames)


@runnable
def test_project(measure: Any, case: Case, backend: str, device: str, dtype: torch.dtype) -> None:
    kernels, on = kernels_of(backend, device, dtype), Prepared(case, device, dtype)
    matrices = sum(len(network.projections) for network in (weights().sif, weights().tif, weights().decoder) if network)
    flop = 2 * matrices * 198 * 64 * on.input_pixels
    moved = (198 + matrices * 64) * on.itemsize * on.input_pixels
    projections = measure(f"project, {case.name}", lambda: on.project(kernels), device, dtype, flop, moved)
    assert len(projections.decoder) == 2


@runnable
def test_implicit(measure: Any, case: Case, backend: str, device: str, dtype: torch.dtype) -> None:
    kernels, on = kernels_of(backend, device, dtype), Prepared(case, device, dtype)
    projections = on.project(kernels)
    flop = 2 * (work(weights().sif) + work(weights().tif)) * on.output_pixels
    moved = 2 * 64 * on.itemsize * on.input_pixels + (64 * on.itemsize + 4 * 4) * on.output_pixels
    feature, flow = measure(
        f"implicit, {case.name}",
        lambda: kernels.implicit(projections, on.view),
        device,
        dtype,
        flop,
        moved,
    )
    assert feature.shape == (*on.view.shape, 64)
    assert flow.shape == (*on.view.shape, 4)


@runnable
def test_decode(measure: Any, case: Case, backend: str, device: str, dtype: torch.dtype) -> None:
    kernels, on = kernels_of(backend, device, dtype), Prepared(case, device, dtype)
    projections = on.project(kernels)
    with torch.inference_mode():
        feature, flow = kernels.implicit(projections, on.view)
    flop = 2 * work(weights().decoder) * on.output_pixels
    moved = 2 * 64 * on.itemsize * on.input_pixels + (64 * on.itemsize + 4 * 4 + 3 * 4) * on.output_pixels
    rgb = measure(
        f"decode, {case.name}",
        lambda: kernels.decode(projections, on.view, feature, flow),
        device,
        dtype,
        flop,
        moved,
    )
    assert rgb.shape == on.view.picture_shape(torch.float32)
