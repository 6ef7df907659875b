"""How long steps of work take, on CPUs and GPUs."""

import itertools
import time
from collections.abc import Iterable

import torch


@torch.inference_mode()
def time_steps(steps: Iterable[object], device: torch.device) -> list[float]:
    """Measure how long each item of ``steps`` takes to be made.

    On a GPU this is the time between events on its stream; the host waits only before the first step and after the
    last.

    Args:
        steps: an iterator that does the work of one step before it yields an item.
        device: the device that the work runs on.

    Returns:
        Seconds, one number for each step.
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
