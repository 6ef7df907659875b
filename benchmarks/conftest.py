"""Micro-cases: every operation x backend x dtype, with its floor.

``pytest`` runs each once, unmeasured, on the small cases of ``tests/helpers/cases.py``;
``pytest benchmarks --benchmark-enable`` measures the sizes of ``MEASURED`` there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers.cases import CASES, MEASURED

from stif_rt import dtypes
from stif_rt.dtypes import parse_dtype
from stif_rt.timing import time_steps

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
DTYPES = {name: parse_dtype(name) for name in dtypes.DTYPES}

REPORTED: list[str] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        small = getattr(metafunc.module, "SMALL_CASES", CASES)
        cases = MEASURED if metafunc.config.getoption("benchmark_enable") else small
        metafunc.parametrize("case", cases, ids=lambda case: case.name)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if REPORTED:
        terminalreporter.section("against the floor")
        for line in REPORTED:
            terminalreporter.write_line(line)


class Peak(NamedTuple):
    """FLOP and bytes per second that PyTorch reaches here on large matrix products and copies."""

    flop: float
    bytes: float


@functools.cache
def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of the dtype or of float32, whichever is faster: some CPUs have no half-precision arithmetic."""
    n, size = (1024, 1 << 26) if device.type == "cpu" else (8192, 1 << 28)

    def fastest(work: Callable[[], object]) -> float:
        return min(time_steps((work() for _ in range(5)), device))

    seconds = []
    for kind in (dtype, torch.float32):
        a = torch.rand(n, n, device=device).to(kind)
        seconds.append(fastest(functools.partial(torch.mm, a, a)))
    source = torch.zeros(size, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    return Peak(2 * n**3 / min(seconds), copied / fastest(lambda: target.copy_(source)))


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., Any]:
    """``measure(group, work, device, dtype, flop, bytes)``: runs ``work``, and reports time, rates, ratio to the floor.

    flop, bytes: what the operation cannot do without. Returns what ``work`` returned.
    """

    def run(group: str, work: Callable[[], Any], device: str, dtype: torch.dtype, flop: float, bytes: float) -> Any:
        def finished() -> Any:
            result = work()
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        benchmark.group = f"{group}, {device}"
        with torch.inference_mode():
            result = benchmark.pedantic(finished, rounds=5, warmup_rounds=1)
        if not benchmark.disabled:
            seconds = benchmark.stats.stats.median
            machine = peak(torch.device(device), dtype)
            floor = max(flop / machine.flop, bytes / machine.bytes)
            facts = {"GB/s": bytes / seconds / 1e9, "TFLOP/s": flop / seconds / 1e12, "times floor": seconds / floor}
            benchmark.extra_info |= facts | {"floor s": floor}
            rates = ", ".join(f"{value:.3g} {unit}" for unit, value in facts.items())
            REPORTED.append(f"{benchmark.name}: {seconds * 1e3:.3g} ms, {rates}")
        return result

    return run
