"""What a render will take: disk space, and seconds from a quick probe."""

import errno
import itertools
import shutil
import time
from fractions import Fraction
from typing import NamedTuple

import torch

from stif_rt.errors import format_bytes
from stif_rt.runtime import Runtime
from stif_rt.video.colour import flatten
from stif_rt.video.job import Job

BITS_PER_PIXEL = {"ffv1": 12.0, "rawvideo": 12.0, "prores_ks": 3.0, "png": 12.0, "tiff": 20.0, "exr": 40.0}
"""What encoders make of usual footage, roughly."""
USUAL_BITS = 0.3
"""Of encoders with a constant rate factor around 16."""
LEAST = 0.1
"""Of an estimate, what even simple pictures need."""


class Estimate(NamedTuple):
    """frames: of the output. seconds: of the network, where it was probed. bytes: on the disk while it is written."""

    frames: int
    seconds: float | None
    bytes: int


def estimate(job: Job, runtime: Runtime | None = None) -> Estimate | None:
    """The time and the space that a job will take; None where the input does not say how long it is.

    With a runtime, the first two frames are rendered to see how long that takes.
    """
    if job.expected is None:
        return None
    H, W = job.layout.frame
    bits = BITS_PER_PIXEL.get(job.encoding.codec, USUAL_BITS)
    copies = 2 if job.as_video else 1  # segments, and the result that is joined of them
    seconds = None if runtime is None else _probe(job, runtime)
    return Estimate(job.expected, seconds, round(job.expected * H * W * bits / 8 * copies))


def _probe(job: Job, runtime: Runtime) -> float:
    """Seconds of the network for the whole job."""
    frames = list(itertools.islice(job.reader.read(job.start), 2))
    before, after = flatten(frames[0].picture), flatten(frames[-1].picture)
    start = encoded = 0.0
    for _ in range(2):  # the first time, much is prepared
        start = time.perf_counter()
        pair = runtime.encode(before, after)
        _wait(runtime)
        encoded = time.perf_counter()
        pair.render(0.5, size=job.layout.picture, region=job.layout.region)
        _wait(runtime)
    encode, render = encoded - start, time.perf_counter() - encoded
    expected = job.expected or 0
    pairs = expected / max(job.rates.sampling / job.reader.rate, Fraction(1))
    return float(pairs) * encode + expected * render


def _wait(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def check_space(job: Job) -> None:
    """Warns where a job may fill the disk. OSError where it is sure to."""
    needs = estimate(job)
    if needs is None:
        return
    folder = job.output.absolute().parent
    free = shutil.disk_usage(folder).free
    if free < needs.bytes * LEAST:
        text = f"the output needs about {format_bytes(needs.bytes)}, and {folder} has {format_bytes(free)} left"
        raise OSError(errno.ENOSPC, text)
    if free < needs.bytes:
        job.reader.notices.add(
            f"{folder} has {format_bytes(free)} left, and the output may need {format_bytes(needs.bytes)}"
        )
