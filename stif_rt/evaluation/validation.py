"""Validation while a network is trained: its PSNR over bicubic enlargement, as a curve in a CSV file."""

import copy
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from stif_rt.data.clips import Clip
from stif_rt.evaluation.methods import BASELINE, runtime_method
from stif_rt.evaluation.protocol import evaluate, summarise, windows
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime

LENGTH, WINDOWS = 3, 4
"""Frames of a window, and windows of each clip."""
HEAD = ("iteration", "windows", "frames", "psnr", "bicubic")


class Point(NamedTuple):
    """Mean RGB PSNR, dB, of the network and the baseline over the ``frames`` of the windows of one ``texture``."""

    texture: str
    frames: str
    psnr: float
    bicubic: float


def validate(model: STIF, clips: Sequence[Clip], scale: float, device: torch.device | str) -> list[Point]:
    """Scores a network on windows of three frames.

    Args:
        model: is left as it is.
        clips: what it is scored on.
        scale: by which the inputs are shrunk.
        device: where it runs. Its encoder is not compiled, which would take longer than it saves.

    Raises:
        ValueError: where no clip has three frames without a scene cut.
    """
    runtime = Runtime.from_model(copy.deepcopy(model), device=device, encoder="torch")
    methods = {"model": runtime_method(runtime)}
    results = [evaluate(window, methods) for window in windows(list(clips), LENGTH, scale, WINDOWS)]
    if not results:
        raise ValueError(f"no clip of --validation has {LENGTH} frames without a scene cut")
    psnr = {
        (mean.texture, mean.frames, mean.method): mean.psnr for mean in summarise(results) if mean.clip is None
    }  # of three frames, center is the average
    return [
        Point(texture, frames, value, psnr[texture, frames, BASELINE])
        for (texture, frames, method), value in psnr.items()
        if method != BASELINE and texture != "all" and frames != "center"
    ]


def append_points(file: Path, iteration: int, points: Sequence[Point]) -> None:
    """Adds a line for each point to a CSV file, which gets a head where it is new."""
    new = not file.exists()
    with file.open("a", newline="") as text:
        writer = csv.writer(text)
        if new:
            writer.writerow(HEAD)
        writer.writerows((iteration, p.texture, p.frames, f"{p.psnr:.3f}", f"{p.bicubic:.3f}") for p in points)
