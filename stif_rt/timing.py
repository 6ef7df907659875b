"""The stopwatch."""

import itertools
import time
from collections.abc import Iterable

import torch


@torch.inference_mode()
def time_steps(steps: Iterable[object], device: torch.device) -> list[float]:
    """Seconds that each item of ``steps`` took to be made.

    On a GPU the time between events on its stream, waiting only before the first step and after the last.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            events = [torch.cuda.Event(enable_timing=True)]
            torch.cuda.synchronize()
            events[0].record()
            for _ in steps:
                events.append(torch.cuda.Event(enable_timing=True))
                events[-1].record()
            torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(events)]
    marks = [time.perf_counter()]
    for _ in steps:
        marks.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(marks)]
