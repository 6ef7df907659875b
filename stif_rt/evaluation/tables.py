"""Results as files: the paper's tables in Markdown, everything as CSV and JSON, crops to look at as PNG."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.data.datasets import DATASETS
from stif_rt.evaluation.methods import BASELINE, Group, Method, bicubic
from stif_rt.evaluation.protocol import Mean, Result
from stif_rt.files import write_whole
from stif_rt.video.writer import write_png

CROP = 128
"""Side of the crops of a strip, pixels of the output."""


class Published(NamedTuple):
    """A figure of the paper. frames: ``center`` or ``average``. length: frames of a group. psnr: of the luma."""

    dataset: str
    length: int
    scale: float
    frames: str
    psnr: float
    ssim: float


PAPER = [
    Published("vid4", 3, 4, "average", 25.61, 0.7709),
    Published("gopro", 9, 4, "center", 30.26, 0.8792),
    Published("gopro", 9, 4, "average", 29.41, 0.8669),
    Published("adobe240", 9, 4, "center", 29.92, 0.8746),
    Published("adobe240", 9, 4, "average", 29.27, 0.8651),
]
"""VideoINR in the paper's Table 1, as later papers quote it. The paper does not say of what its PSNR is; in issue 9 of
its repository people come near it from the published weights with luma, and are a dB or more below it with RGB."""

TABLES = {1: ((3, 9), (4.0,)), 2: ((7, 13, 17), (4.0, 6.0, 12.0))}
"""Of the paper's tables those that need other groups: lengths (time x2, x8; x6, x12, x16) and spatial scales."""


def markdown(means: list[Mean], dataset: str | None) -> str:
    """One table for each scale and length, with the paper's figure where it has one; then one row a clip."""
    sections = []
    for scale, length in sorted({(mean.scale, mean.length) for mean in means}):
        chosen = [mean for mean in means if (mean.scale, mean.length) == (scale, length)]
        sections.append(f"## Space x{scale:g}, time x{length - 1}: groups of {length} frames\n")
        sections.append(_section([mean for mean in chosen if mean.clip is None], dataset))
        clips = [
            mean for mean in chosen if mean.clip is not None and mean.windows == "all" and mean.frames == "average"
        ]
        rows = [[mean.clip or "", str(mean.number), mean.method, *_metrics(mean)] for mean in clips]
        sections.append(_table(["clip", "groups", "method", "RGB PSNR", "luma PSNR", "SSIM"], rows))
    return "\n".join(sections)


def _section(means: list[Mean], dataset: str | None) -> str:
    rows = []
    for mean, following in zip(means, [*means[1:], None], strict=True):
        rows.append([mean.windows, str(mean.number), mean.frames, mean.method, *_metrics(mean)])
        if mean.windows == "all" and (following is None or following.frames != mean.frames):  # the last method
            for row in PAPER:
                if row[:4] == (dataset, mean.length, mean.scale, mean.frames):
                    name = f"the paper's model, all {len(DATASETS[row.dataset].clips)} clips"
                    rows.append(["all", "", row.frames, name, "", f"{row.psnr:.2f}", f"{row.ssim:.4f}"])
    return _table(["windows", "groups", "frames", "method", "RGB PSNR", "luma PSNR", "SSIM"], rows)


def _metrics(mean: Mean) -> list[str]:
    return [f"{mean.psnr:.2f}", f"{mean.luma:.2f}", "" if mean.ssim is None else f"{mean.ssim:.4f}"]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def write(folder: Path, results: list[Result], means: list[Mean], dataset: str | None) -> None:
    """``results.md``, ``results.csv`` (a row for each mean) and ``results.json`` (also every frame's scores)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Mean)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(mean) for mean in means)
    frames = [
        {
            "clip": result.clip,
            "first": result.first,
            "scale": result.scale,
            "scores": {method: [asdict(score) for score in scores] for method, scores in result.scores.items()},
        }
        for result in results
    ]
    content = {
        "results.md": markdown(means, dataset),
        "results.csv": text.getvalue(),
        "results.json": json.dumps(
            {"dataset": dataset, "means": [asdict(mean) for mean in means], "groups": frames}, indent=1
        ),
    }
    for name, written in content.items():
        write_whole(folder / name, written.encode(errors="backslashreplace"))


def strip(group: Group, methods: Mapping[str, Method]) -> Tensor:
    """The same crop of the middle frame side by side: input, bicubic, each method, truth. uint8 [side, n * side, 3].

    The crop is where the first and the last frame differ most; the input is enlarged without a filter.
    """
    H, W = group.size
    side = min(CROP, H, W)
    change = (group.truth[-1] - group.truth[0]).abs().mean(0)[None, None]
    places = F.avg_pool2d(change, side, stride=max(1, side // 4))[0, 0]
    y, x = (int(n) * max(1, side // 4) for n in divmod(int(places.argmax()), places.shape[1]))
    middle = (len(group.truth) - 1) // 2
    pictures = [F.interpolate(group.inputs[:1], (H, W), mode="nearest")[0]]
    pictures += [method(group)[middle] for method in {BASELINE: bicubic, **methods}.values()]
    pictures.append(group.truth[middle])
    crops = torch.cat([picture[:, y : y + side, x : x + side] for picture in pictures], 2)
    return (crops.clamp(0, 1) * 255).round().byte().movedim(0, -1)


def write_strip(folder: Path, group: Group, methods: Mapping[str, Method]) -> Path:
    """Writes ``strip_CLIP_xSCALE_LENGTH.png`` and returns its path. In the clip's name, ``/`` is written %2F."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"strip_{_as_file_name(group.clip)}_x{group.scale:g}_{len(group.truth)}.png"
    write_png(path, np.ascontiguousarray(strip(group, methods).numpy()))
    return path


def _as_file_name(name: str) -> str:
    """Different names stay different; what file systems do not take is escaped, what is too long replaced by a hash."""
    escaped = re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda match: f"%{ord(match[0]):02X}", name)
    if len(escaped.encode()) <= 180:
        return escaped
    return escaped.encode()[:150].decode(errors="ignore") + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
