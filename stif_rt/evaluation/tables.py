"""Results as files: the paper's tables in Markdown, everything as CSV and JSON, crops to look at as PNG."""

import csv
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.data.datasets import DATASETS
from stif_rt.evaluation.methods import Window
from stif_rt.evaluation.protocol import Mean, Pictures, Result
from stif_rt.evaluation.published import TABLES, Column, Figure
from stif_rt.files import write_whole
from stif_rt.video.writer import write_png

CROP = 128
"""Side of the crops of a strip, pixels of the output."""


def markdown(means: list[Mean], dataset: str | None) -> str:
    """One table for each scale and length, with the paper's figure where it has one; then one row a clip."""
    sections = []
    for scale, length in sorted({(mean.scale, mean.length) for mean in means}):
        selected = [mean for mean in means if (mean.scale, mean.length) == (scale, length)]
        sections.append(f"## Space x{scale:g}, time x{length - 1}: windows of {length} frames\n")
        sections.append(_section([mean for mean in selected if mean.clip is None], dataset))
        clips = [
            mean for mean in selected if mean.clip is not None and mean.texture == "all" and mean.frames == "average"
        ]
        rows = [[mean.clip or "", str(mean.number), mean.method, *_metrics(mean)] for mean in clips]
        sections.append(table(["clip", "windows", "method", "RGB PSNR", "luma PSNR", "SSIM"], rows))
    return "\n".join(sections)


def _section(means: list[Mean], dataset: str | None) -> str:
    rows = []
    for (texture, frames), part in itertools.groupby(means, lambda mean: (mean.texture, mean.frames)):
        for mean in part:
            rows.append([texture, str(mean.number), frames, mean.method, *_metrics(mean)])
        if texture == "all":
            for column, figure in _models_figures():
                if column[1:] == (dataset, mean.length, mean.scale, frames):
                    name = f"the paper's model, all {len(DATASETS[column.dataset].clips)} clips"
                    rows.append(["all", "", frames, name, "", f"{figure.psnr:.2f}", f"{figure.ssim:.4f}"])
    return table(["texture", "windows", "frames", "method", "RGB PSNR", "luma PSNR", "SSIM"], rows)


def _models_figures() -> Iterator[tuple[Column, Figure]]:
    """The paper's model in its Table 1."""
    for row in TABLES[1].rows:
        if row.method == "stif":
            for column, figure in zip(TABLES[1].columns, row.figures, strict=True):
                if figure is not None:
                    yield column, figure


def _metrics(mean: Mean) -> list[str]:
    return [f"{mean.psnr:.2f}", f"{mean.luma:.2f}", "" if mean.ssim is None else f"{mean.ssim:.4f}"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def write(folder: Path, results: list[Result], means: list[Mean], dataset: str | None, beginning: str = "") -> None:
    """``results.md``, ``results.csv`` (a row for each mean) and ``results.json`` (also every frame's scores).

    Args:
        folder: Made where it is missing.
        results: Of all windows.
        means: Their summary.
        dataset: Which was evaluated, None for clips of one's own.
        beginning: Markdown to begin ``results.md`` with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Mean)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(mean) for mean in means)
    frames = [
        {
            "clip": result.clip,
            "first": result.first,
            "scale": result.scale,
            "scores": {
                method: [None if score is None else asdict(score) for score in scores]
                for method, scores in result.scores.items()
            },
        }
        for result in results
    ]
    content = {
        "results.md": "\n".join(filter(None, (beginning, markdown(means, dataset)))),
        "results.csv": text.getvalue(),
        "results.json": json.dumps(
            {"dataset": dataset, "means": [asdict(mean) for mean in means], "windows": frames}, indent=1
        ),
    }
    for name, written in content.items():
        write_whole(folder / name, written.encode(errors="backslashreplace"))


def strip(window: Window, pictures: Mapping[str, Pictures]) -> Tensor:
    """The same crop of the middle frame side by side: input, each method, truth. uint8 [side, n * side, 3].

    The crop is where the first and the last frame differ most; the input is enlarged without a filter. Methods that did
    not make the middle frame are left out.
    """
    H, W = window.size
    side = min(CROP, H, W)
    change = (window.truth[-1] - window.truth[0]).abs().mean(0)[None, None]
    places = F.avg_pool2d(change, side, stride=max(1, side // 4))[0, 0]
    y, x = (int(n) * max(1, side // 4) for n in divmod(int(places.argmax()), places.shape[1]))
    middle = (len(window.truth) - 1) // 2
    shown = [F.interpolate(window.inputs[:1], (H, W), mode="nearest")[0]]
    shown += [made[middle] for made in pictures.values() if middle in made]
    shown.append(window.truth[middle])
    crops = torch.cat([picture[:, y : y + side, x : x + side] for picture in shown], 2)
    return (crops.clamp(0, 1) * 255).round().byte().movedim(0, -1)


def write_strip(folder: Path, window: Window, pictures: Mapping[str, Pictures]) -> Path:
    """Writes ``strip_CLIP_xSCALE_LENGTH.png`` of the pictures that were scored, and returns its path.

    In the clip's name, ``/`` is written %2F.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"strip_{_as_file_name(window.clip)}_x{window.scale:g}_{len(window.truth)}.png"
    write_png(path, np.ascontiguousarray(strip(window, pictures).numpy()))
    return path


def _as_file_name(name: str) -> str:
    """Different names stay different; what file systems do not take is escaped, what is too long replaced by a hash."""
    escaped = re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda match: f"%{ord(match[0]):02X}", name)
    if len(escaped.encode()) <= 180:
        return escaped
    return escaped.encode()[:150].decode(errors="ignore") + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
