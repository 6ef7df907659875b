from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import Config
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.model.stif import STIF
from stif_rt.runtime import bundled_weights

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from fill_weights import fill  # noqa: E402

TINY = {"front_blocks": 1, "back_blocks": 1, "recurrent": False, "upsampling_head": False}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native-library", help="a build of csrc/cpu to test instead of the installed one")


def pytest_configure() -> None:
    """Mends Triton's interpreter, where it is on.

    It prepares its language anew at every call of a function, 20 ms each, where once is enough; it rounds float32
    towards zero to bfloat16, where GPUs round to nearest; and it multiplies the bits of bfloat16 matrices as integers.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import triton.language as tl
    from triton.runtime import interpreter

    call, convert, prepared = interpreter.InterpretedFunction.__call__, interpreter._convert_float, set()

    def call_prepared(self, *args, **kwargs):
        module = self.fn.__module__
        if module.startswith("triton.") and module not in prepared:
            prepared.add(module)
            return call(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    def convert_to_nearest(values, source, target, rounding):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, rounding)
        bits = values.view(np.uint32)
        return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)

    def dot(self, a, b, *others):
        a, b = (
            interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
            if x.dtype.scalar == tl.bfloat16
            else x
            for x in (a, b)
        )
        return multiply(self, a, b, *others)

    multiply, interpreter.InterpreterBuilder.create_dot = interpreter.InterpreterBuilder.create_dot, dot
    interpreter.InterpretedFunction.__call__ = call_prepared
    interpreter._convert_float = convert_to_nearest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU that PyTorch can use")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip)


def fill_model(model, seed: int = 0):
    """Deterministic weights that make flows of several pixels, so that mistakes show."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in fill(shapes, seed).items()})
    return model.eval()


def functions(config: Config) -> ImplicitFunctions:
    return fill_model(ImplicitFunctions(config))


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
    """The bundled weights."""
    return load_model(bundled_weights()).eval()


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
