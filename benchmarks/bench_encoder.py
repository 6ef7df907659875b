"""The encoder on every engine: the bundled weights' configuration and the paper's."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers.cases import CASES, Case
from helpers.models import fill_model
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.conftest import DEVICES, DTYPES
from stif_rt.engines import ENGINES, Engine, make_engine
from stif_rt.model.config import CONFIGS
from stif_rt.model.encoder import Encoder

SMALL_CASES = CASES[:1]
"""Unmeasured: the encoder has no cases of its own, and the paper's is slow."""


def padded(case: Case) -> tuple[int, int]:
    """The runtime pads to multiples of 4."""
    height, width = (side + -side % 4 for side in case.inputs)
    return height, width


@functools.cache
def engine_of(engine: str, config: str, device: str, dtype: torch.dtype) -> Engine:
    return make_engine(engine, fill_model(Encoder(CONFIGS[config])), torch.device(device), dtype)


@functools.cache
def flop_per_pixel(config: str) -> float:
    """Counted with gradients on, where all operations are PyTorch's own."""
    with FlopCounterMode(display=False) as counter:
        Encoder(CONFIGS[config])(torch.rand(1, 2, 3, 16, 16))
    return counter.get_total_flops() / 256


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", ["stif-s", "stif"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_encoder(measure: Any, case: Case, engine: str, config: str, device: str, dtype: torch.dtype) -> None:
    if engine == "compiled" and device == "cpu":
        pytest.skip("compiling takes minutes on a CPU, where it is not the default")
    torch.manual_seed(0)
    frames = torch.rand(case.batch, 2, 3, *padded(case)).to(device)
    try:
        run = engine_of(engine, config, device, dtype)
    except RuntimeError as error:
        pytest.skip(f"engine {engine} cannot run here: {error}")
    pixels = case.batch * padded(case)[0] * padded(case)[1]
    weights = sum(parameter.numel() for parameter in Encoder(CONFIGS[config]).parameters())
    moved = dtype.itemsize * (weights + (6 + 3 * 64) * pixels)
    flop = flop_per_pixel(config) * pixels
    name = f"encoder {config}, {case.name}"
    features = measure(name, lambda: run(frames), device, dtype, flop, moved)
    assert features.maps.shape == (case.batch, 3, 64, *padded(case))
