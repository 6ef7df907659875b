"""How the figures look."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

try:
    import matplotlib
except ImportError as error:
    raise RuntimeError("figures need matplotlib: pip install --editable '.[bench]'") from error

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.measure import Line

STYLES = {
    "stif-rt": ("#d62728", "o"),
    "stif": ("#ff7f0e", "s"),
    "zooming_slowmo": ("#1f77b4", "D"),
    "tmnet": ("#2ca02c", "^"),
    "super_slomo+edvr": ("#9467bd", "v"),
    "bicubic": ("#7f7f7f", "."),
}
"""Colour and marker of each method of the paper's figure."""
OTHER_COLOURS = ("#8c564b", "#e377c2", "#bcbd22", "#17becf", "#000000", "#aec7e8", "#98df8a")
OTHER_MARKERS = "P*X<>"
"""Those of other two-stage methods, in turn; their pairs repeat after 35."""
DASHES = ("-", "--", ":", "-.")

plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "stif-rt",
}


def logarithmic(axis: Axes) -> None:
    """A logarithmic axis of x with labels at whole decades: those between lie over each other."""
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())


def new_figure(rows: int, columns: int) -> tuple[Figure, Any]:
    """Room for that many panels [rows, columns], with the legend below and the title above."""
    return plt.subplots(rows, columns, figsize=(5.5 * columns, 4.2 * rows + 0.8), layout="constrained")


def line_styles(lines: list[Line]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Colour and marker say the method, dashes which of its dtypes and backends."""
    others = [name for name in dict.fromkeys(line.method for line in lines) if name not in STYLES]
    styles = STYLES | dict(zip(others, zip(cycle(OTHER_COLOURS), cycle(OTHER_MARKERS), strict=False), strict=False))
    for line in lines:
        variant = [other for other in lines if other.method == line.method].index(line)
        colour, marker = styles[line.method]
        dash = DASHES[variant % len(DASHES)]
        yield line, {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4}


def log_scales(axis: Axes) -> None:
    """Both axes, with plain numbers at 1, 2 and 5 of every decade."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def mark_failures(axis: Axes, positions: Sequence[float], index: int, colour: str) -> None:
    """Crosses along the top, each line's at its own height."""
    heights = [1 - 0.025 * index] * len(positions)
    (marks,) = axis.plot(positions, heights, "x", color=colour, transform=axis.get_xaxis_transform(), clip_on=False)
    marks.set_in_layout(False)


def save(figure: Figure, path: Path) -> None:
    """Save a figure as .png and .svg beside ``path``."""
    figure.savefig(path.with_suffix(".png"), dpi=160)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
