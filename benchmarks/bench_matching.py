"""The velocity head's small operations, on the finest level's maps: what the head calls, and PyTorch's own form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.cases import Case

from benchmarks.conftest import DEVICES
from stif_rt.ops import matching
from stif_rt.ops.matching import reference

MATCH, SEEN, CONTEXT = 8, 16, 32
CHANNELS = 3 + MATCH + SEEN
FORMS = {"dispatched": matching, "PyTorch": reference}
COSTS = {  # operations of arithmetic, and numbers read and written once, of a cell
    "warp": (7 * CHANNELS, 2 * CHANNELS + 2),
    "normalise": (14 * CHANNELS, 4 * CHANNELS),
    "gauss_newton": (34 * (3 + MATCH) + 250, 2 * (3 + MATCH) + 9),
    "prelu": (2 * CONTEXT, 2 * CONTEXT),
    "evidence": (15 * (MATCH + SEEN), 2 * (MATCH + SEEN) + 7 + CONTEXT + 2 * SEEN + 8 + CONTEXT),
    "choose": (15 * matching.OFFERED, matching.OFFERED + 2 + 6),
}


@pytest.mark.parametrize("operation", COSTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("device", DEVICES)
def test_matching(measure: Any, case: Case, form: str, operation: str, device: str) -> None:
    torch.manual_seed(0)
    B, (h, w) = case.batch, case.inputs

    def maps(channels: int) -> torch.Tensor:
        return torch.randn(B, channels, h, w).to(device).contiguous(memory_format=torch.channels_last)

    first, second, v, start = maps(CHANNELS), maps(CHANNELS), maps(2).contiguous(), maps(2).contiguous()
    with torch.inference_mode():
        pair = matching.normalise(first, second)
    gain, damping, tolerance = torch.ones(3 + MATCH, 1, 1), torch.tensor(0.03), torch.tensor(0.6)
    given = {
        "warp": (first, v),
        "normalise": (first, second),
        "gauss_newton": (pair[:, :, : 3 + MATCH], v, *(x.to(device) for x in (gain, damping, tolerance)), 1),
        "prelu": (maps(CONTEXT), torch.rand(CONTEXT, device=device)),
        "evidence": (pair[:, :, 3:], MATCH, v, start, maps(3).contiguous(), maps(CONTEXT), torch.float32),
        "choose": (maps(2 + matching.OFFERED), torch.zeros(1, matching.OFFERED, 1, 1, device=device), v, start),
    }[operation]
    function = getattr(FORMS[form], operation)

    def run() -> Any:
        with torch.inference_mode():
            return function(*given)

    flop, numbers = (count * B * h * w for count in COSTS[operation])
    out = measure(f"{operation}, {form}, {case.name}", run, device, torch.float32, flop, 4 * numbers)
    assert all(x.isfinite().all() for x in (out if isinstance(out, tuple) else (out,)))
