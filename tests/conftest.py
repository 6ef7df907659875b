from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.emulation import compile_emulation
from helpers.models import GOLDEN, TINY, fill, fill_model
from helpers.native import ISAS, QUICK_ISAS
from helpers.triton_interpreter import mend_interpreter

from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.stif import STIF
from stif_rt.ops import native

SLOW_FIXTURES = {"compact_graph", "emulated", "half_graphs", "paper_graph", "reports", "stopped"}
"""They take long to make: the tests that share them are slow, whichever is the first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native-library", help="a build of csrc/cpu to test instead of the installed one")
    parser.addoption("--native-isas", help="instruction sets to test, comma between, instead of all")
    parser.addoption("--require-gpu", action="store_true", help="fail where there is no GPU, instead of skipping")


def pytest_configure() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        mend_interpreter()


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--require-gpu") and not torch.cuda.is_available():
        raise pytest.UsageError("--require-gpu: PyTorch sees no CUDA GPU on this machine")
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU that PyTorch can use")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip)
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if names := config.getoption("--native-isas"):
        isas = names.split(",")
        items[:] = [item for item in items if isinstance(item, pytest.Function) and _isa_of(item) in isas]


def _isa_of(item: pytest.Function) -> str:
    """The instruction set that a test runs in, by its parameter ``isa`` or a backend such as ``cpu-avx2``."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("isa") or str(params.get("load", "")).removeprefix("cpu-")


@pytest.fixture(scope="session")
def paper_model() -> STIF:
    shapes = json.loads((GOLDEN / "stif_parameters.json").read_text())
    model = STIF()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in fill(shapes, 0).items()})
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model() -> STIF:
    """The structure of stif-s with fewer blocks."""
    return fill_model(STIF(Config(**TINY, grid="centres", residual=True)))


@pytest.fixture(scope="session")
def compact_model() -> STIF:
    """A compact network with deformable alignment."""
    return fill_model(STIF(CONFIGS["stif-s-dcn"]))


@pytest.fixture(scope="session")
def compact_graph(compact_model):
    """Its encoder as traced for ONNX, float32, any size."""
    graphs = pytest.importorskip("stif_export.graphs", reason="needs the packages of the extra export")
    return graphs.encoder_graph(compact_model.encoder, compact_model.config, torch.float32)


@pytest.fixture
def frames() -> tuple[np.ndarray, np.ndarray]:
    """Two uint8 frames of an odd size, the second one moved and brighter."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (5, 7, 3))
    first = np.kron(coarse, np.ones((4, 3, 1), int))[:18, :21]
    return first.astype(np.uint8), np.clip(np.roll(first, 2, 1) + 20, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=[750, 800], ids=["fma", "tensor cores"])
def emulated(request, tmp_path_factory):
    """The kernels as functions on the CPU, as compiled for GPUs without and with bfloat16 tensor cores."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("emulation")
    return compile_emulation("deform_conv", folder, (f"__CUDA_ARCH__={request.param}",))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that kernels are to write holds NaN first, so that what they leave out shows."""
    new_empty = torch.Tensor.new_empty

    def poison(self: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        made = new_empty(self, *arguments, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(77)

    monkeypatch.setattr(torch.Tensor, "new_empty", poison)


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> native.Library:
    path = request.config.getoption("--native-library")
    native_library = native.Library(Path(path)) if path else native.load_library()
    if isinstance(native_library, str):
        pytest.skip(native_library)
    return native_library


@pytest.fixture(params=[pytest.param(name, marks=[] if name in QUICK_ISAS else pytest.mark.slow) for name in ISAS])
def isa(request: pytest.FixtureRequest, library: native.Library) -> native.Isa:
    chosen_isa = {isa.name: isa for isa in library.isas}.get(request.param)
    if chosen_isa is None:
        pytest.skip(f"this build has no {request.param}")
    if chosen_isa.unavailable:
        pytest.skip(chosen_isa.unavailable)
    return chosen_isa
