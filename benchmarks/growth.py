"""The cost of growth: time and peak memory against output pixels and against frames per pair.

    python -m benchmarks.growth --output DIR [--quick]

For the runtime and the plain PyTorch model, from one encoded pair. Against output pixels: one frame. Against frames per
pair: encoding and all frames, each of FRAME_MEGAPIXELS. Peak memory is what the frames need beyond weights, input and
features. Writes growth.json, .csv, .md, .png and .svg to DIR; run again with the same settings, it goes on where it
ended.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks.figure3 import AUTO, FLOAT32, NONE, PAPER_SIZE, QUICK_SIZE, input_size
from benchmarks.interface import Method, Size
from benchmarks.measure import (
    Line,
    Loaded,
    PeakMemory,
    Results,
    colophon,
    console,
    describe_machine,
    device_of,
    duration,
    main,
    plan,
    progress_bar,
    write_csv,
)
from benchmarks.plot import line_styles, log_scales, mark_failures, new_figure, save
from stif_rt.timing import time_steps

MEGAPIXELS = [0.1, 0.25, 0.5, 1, 2, 4, 8]
FRAMES = [1, 2, 4, 8, 16]
FRAME_MEGAPIXELS = 0.25
METHODS = ["stif-rt", "stif"]
PANELS = (("megapixels", "output megapixels, one frame"), ("count", f"frames per pair, {FRAME_MEGAPIXELS} MP each"))

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def growth(
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    quick: Annotated[bool, typer.Option("--quick", help=f"From {QUICK_SIZE}, up to 0.25 MP and 2 frames.")] = False,
    size: Annotated[
        str | None, typer.Option(help=f"Input size WIDTHxHEIGHT, else {PAPER_SIZE}; multiples of 4.")
    ] = None,
    dtype: Annotated[list[str], typer.Option(help="Repeat for several.")] = FLOAT32,
    kernels: Annotated[list[str], typer.Option(help="stif-rt's backends; repeat for several.")] = AUTO,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each point.")] = 3,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the plain model.")] = False,
    weights: Annotated[list[str], typer.Option(help="stif=FILE; random weights otherwise.")] = NONE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard earlier samples in the folder.")] = False,
) -> None:
    """Time and memory against output pixels and frames per pair, for the runtime and the plain model."""
    megapixels, counts = MEGAPIXELS, FRAMES
    if quick:
        rounds = 1
        megapixels, counts = megapixels[:2], counts[:2]
    torch_device = device_of(device)
    inputs = input_size(size or (QUICK_SIZE if quick else PAPER_SIZE))
    settings = {"input": list(inputs), "compile": compile, "weights": sorted(weights)}
    results = Results(output, "growth", settings, torch_device, fresh)
    cases = [{"megapixels": n, "count": 0} for n in megapixels] + [{"megapixels": 0, "count": n} for n in counts]
    measure_all(
        results,
        plan(METHODS, dtype, kernels, torch_device),
        cases,
        inputs,
        Loaded(torch_device, compile, weights),
        rounds,
    )
    console.print(f"wrote {results.path.with_suffix('')}.json, .csv, .md, .png, .svg", highlight=False)


def measure_all(
    results: Results, lines: list[Line], cases: list[dict[str, Any]], inputs: Size, loaded: Loaded, rounds: int
) -> None:
    frames = torch.rand(1, 2, 3, *inputs, generator=torch.Generator().manual_seed(0)).to(loaded.device)

    def sample(line: Line, megapixels: float, count: int) -> dict[str, Any]:
        method = loaded(line)
        loaded.warm_up(line, lambda: measure_once(method, frames, MEGAPIXELS[0], 1))
        return measure_once(method, frames, megapixels or FRAME_MEGAPIXELS, count or 1)

    with progress_bar() as progress:
        task = progress.add_task("", total=rounds * len(cases) * len(lines))
        for number in range(rounds):
            for point in cases:
                for line in lines:
                    name = f"{point['megapixels']:g} MP" if point["megapixels"] else f"{point['count']} frames"
                    progress.update(task, description=f"round {number + 1} of {rounds}, {name}, {line.label}")
                    result = results.measure_sample(
                        functools.partial(sample, line, **point), line, **point, round=number
                    )
                    if result is not None:
                        progress.console.print(f"{name}, {line.label}: {format_sample(result)}", highlight=False)
                    progress.advance(task)
            write(results)


def measure_once(method: Method, frames: torch.Tensor, megapixels: float, count: int) -> dict[str, Any]:
    """Seconds for the pair and for its frames, and the peak memory of the frames in bytes."""
    size = frame_size(megapixels, (frames.shape[-2], frames.shape[-1]))
    peaks = []

    def steps() -> Iterator[object]:
        pair = method.encode(frames)
        yield None
        peaks.append(PeakMemory(frames.device))
        yield from method.frames(pair, count, size)

    encode, *made = time_steps(steps(), frames.device)
    return {"encode": encode, "frames": sum(made), "memory": peaks[0].bytes()}


def frame_size(megapixels: float, inputs: Size) -> Size:
    """(H, W) of the input's shape with about that many pixels."""
    scale = (megapixels * 1e6 / (inputs[0] * inputs[1])) ** 0.5
    return round(inputs[0] * scale), round(inputs[1] * scale)


def format_sample(result: dict[str, Any]) -> str:
    return result.get("error") or f"{duration(result['frames'])}, {result['memory'] / 2**20:.0f} MiB"


def points(results: Results, line: Line, key: str) -> Iterator[tuple[float, float, float]]:
    """Along one panel: pixels or frames, median seconds, median GiB."""
    for value in sorted({sample[key] for sample in results.samples if sample[key]}):
        good = [sample for sample in results.find(line, **{key: value}) if "error" not in sample]
        if good:
            seconds = [sample["frames"] + (sample["encode"] if key == "count" else 0) for sample in good]
            yield value, median(seconds), median([sample["memory"] for sample in good]) / 2**30


def failures(results: Results, line: Line, key: str) -> list[float]:
    return sorted({s[key] for s in results.find(line) if s[key] and "error" in s})


def write(results: Results) -> None:
    fields = ("method", "kernels", "dtype", "megapixels", "count", "round", "encode", "frames", "memory", "error")
    write_csv(results.path.with_suffix(".csv"), fields, results.samples)
    results.path.with_suffix(".md").write_text(tables(results))
    draw(results)


def tables(results: Results) -> str:
    """Markdown: seconds and GiB, for each panel."""
    text = []
    for key, title in PANELS:
        values = sorted({sample[key] for sample in results.samples if sample[key]})
        text += [
            f"Median seconds, and GiB that the frames need beyond weights, input and features, against {title}.",
            "",
        ]
        text += ["| method | " + " | ".join(f"{value:g}" for value in values) + " |", "|---|" + "---|" * len(values)]
        for line in results.lines():
            cells = {value: f"{seconds:.3g} s, {memory:.2g}" for value, seconds, memory in points(results, line, key)}
            cells |= dict.fromkeys(failures(results, line, key), "failed")
            text.append(f"| {line.label} | " + " | ".join(cells.get(value, "") for value in values) + " |")
        text.append("")
    return "\n".join([*text, *colophon(results)]) + "\n"


def draw(results: Results) -> None:
    figure, axes = new_figure(2, 2)
    for column, (key, title) in enumerate(PANELS):
        for row, quantity in enumerate(("seconds", "peak memory, GiB")):
            axis = axes[row][column]
            for index, (line, style) in enumerate(line_styles(results.lines())):
                series = list(points(results, line, key))
                axis.plot(
                    [point[0] for point in series], [point[1 + row] for point in series], label=line.label, **style
                )
                mark_failures(axis, failures(results, line, key), index, style["color"])
            log_scales(axis)
            ticks = sorted({sample[key] for sample in results.samples if sample[key]})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_xlabel(title)
            axis.set_ylabel(quantity)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    h, w = results.content["settings"]["input"]
    title = f"Cost of growth from {w}x{h}, {describe_machine(results.content['machine'])}"
    marks = "\n(crosses: out of memory or not supported)" if any("error" in s for s in results.samples) else ""
    figure.suptitle(title + marks, fontsize=10)
    save(figure, results.path)


if __name__ == "__main__":
    main(app)
