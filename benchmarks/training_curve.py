"""Validation PSNR over bicubic enlargement against iterations, from the ``validation.csv`` of training runs.

python -m benchmarks.training_curve RUN [RUN ...] --output docs/training_curve
Runs are given in the order in which each went on from the one before.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from benchmarks.plot import new_figure, save

FRAMES = {"first and last": "#d62728", "middle": "#1f77b4"}


def read(runs: list[Path]) -> dict[str, dict[int, float]]:
    """Gain in dB over bicubic on textured windows, by frames and iteration; a resumed run's later rows count."""
    gains: dict[str, dict[int, float]] = defaultdict(dict)
    start = last = 0
    for run in runs:
        with (run / "validation.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row["windows"] == "textured" and row["frames"] in FRAMES:
                    last = start + int(row["iteration"])
                    gains[row["frames"]][last] = float(row["psnr"]) - float(row["bicubic"])
        start = last
    return gains


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of stif-rt train --validation")
    parser.add_argument("--output", type=Path, required=True, help="path of the figure, without suffix")
    options = parser.parse_args(arguments)
    figure, axis = new_figure(1, 1)
    for frames, gains in read(options.runs).items():
        axis.plot(*zip(*sorted(gains.items()), strict=True), color=FRAMES[frames], marker=".", label=f"{frames} frame")
    axis.axhline(0, color="#7f7f7f", linewidth=1)
    axis.set(xlabel="iterations", ylabel="PSNR over bicubic + blend, dB")
    axis.set_title("Validation: textured windows of three frames", fontsize=11)
    axis.legend()
    save(figure, options.output)


if __name__ == "__main__":
    main()
