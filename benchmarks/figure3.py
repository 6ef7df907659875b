"""The paper's Figure 3: inference time against the temporal up-sampling scale, with the peers.

    python -m benchmarks.figure3 --output DIR [--quick]

Measures one pair of frames end to end: what is done once per pair, then all frames up to the next pair. Rounds go over
all methods in turn, so that drift of the machine hits them alike. Writes figure3.json (all samples), .csv, .md
(tables), .png and .svg to DIR after every round. Run again with the same settings, it goes on where it ended.
"""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks.interface import SCALE, Method, Size
from benchmarks.measure import (
    Line,
    Loaded,
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
from benchmarks.methods import METHODS, find_method
from benchmarks.peers import size_table
from benchmarks.plot import line_styles, log_scales, mark_failures, new_figure, save
from benchmarks.two_stage import ENLARGERS, INTERPOLATORS
from stif_rt.cli.options import parse_size
from stif_rt.timing import time_steps

TIME_SCALES = [2, 4, 8, 16]
ALL_METHODS = list(METHODS)
TWO_STAGES = f"one of {', '.join(INTERPOLATORS)}, +, one of {', '.join(ENLARGERS)}"
FLOAT32, AUTO, NONE = ["float32"], ["auto"], list[str]()
PAPER_SIZE, QUICK_SIZE = "320x180", "48x32"
QUICK_SECONDS = 150
BASE = "stif-rt"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def figure3(
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    quick: Annotated[bool, typer.Option("--quick", help=f"At {QUICK_SIZE}, within five minutes on two cores.")] = False,
    size: Annotated[
        str | None, typer.Option(help=f"Input size WIDTHxHEIGHT, else {PAPER_SIZE}; multiples of 4.")
    ] = None,
    time_scale: Annotated[list[int], typer.Option(min=1, help="Repeat for several.")] = TIME_SCALES,
    method: Annotated[
        list[str],
        typer.Option(help=f"Repeat for several of {', '.join(METHODS)}, or other two stages: {TWO_STAGES}."),
    ] = ALL_METHODS,
    dtype: Annotated[list[str], typer.Option(help="Repeat for several.")] = FLOAT32,
    kernels: Annotated[list[str], typer.Option(help="stif-rt's backends; repeat for several.")] = AUTO,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each point, at most.")] = 3,
    seconds: Annotated[float | None, typer.Option(help="Begin no round that would end later than this.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the networks that PyTorch runs.")] = False,
    weights: Annotated[list[str], typer.Option(help="NETWORK=FILE; random weights otherwise.")] = NONE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard earlier samples in the folder.")] = False,
) -> None:
    """Inference time against time scale, for STIF and its peers."""
    inputs = input_size(size or (QUICK_SIZE if quick else PAPER_SIZE))
    if quick and seconds is None:
        seconds = QUICK_SECONDS
    torch_device = device_of(device)
    lines = plan(method, dtype, kernels, torch_device)
    settings = {"input": list(inputs), "scale": SCALE, "compile": compile, "weights": sorted(weights)}
    results = Results(output, "figure3", settings, torch_device, fresh)
    measure_all(
        results, lines, sorted(set(time_scale)), inputs, Loaded(torch_device, compile, weights), rounds, seconds
    )
    console.print(f"wrote {results.path.with_suffix('')}.json, .csv, .md, .png, .svg", highlight=False)


def input_size(text: str) -> Size:
    width, height = parse_size(text, "--size")
    if min(width, height) < 4 or width % 4 or height % 4:
        raise ValueError(f"--size {text}: sides must be multiples of 4")
    return height, width


def measure_all(
    results: Results,
    lines: list[Line],
    time_scales: list[int],
    inputs: Size,
    loaded: Loaded,
    rounds: int,
    seconds: float | None,
) -> None:
    frames = torch.rand(1, 2, 3, *inputs, generator=torch.Generator().manual_seed(0)).to(loaded.device)
    begin = time.perf_counter()

    def sample(line: Line, time_scale: int) -> dict[str, Any]:
        method = loaded(line)
        loaded.warm_up(line, lambda: time_steps(pair(method, frames, time_scale), loaded.device))
        encode, *made = time_steps(pair(method, frames, time_scale), loaded.device)
        assert len(made) == time_scale
        return {"encode": encode, "frames": made}

    with progress_bar() as progress:
        task = progress.add_task("", total=rounds * len(time_scales) * len(lines))
        for number in range(rounds):
            start = time.perf_counter()
            for time_scale in time_scales:
                for line in lines:
                    progress.update(task, description=f"round {number + 1} of {rounds}, x{time_scale}, {line.label}")
                    work = functools.partial(sample, line, time_scale)
                    result = results.measure_sample(work, line, time_scale=time_scale, round=number)
                    if result is not None:
                        progress.console.print(f"x{time_scale} {line.label}: {format_sample(result)}", highlight=False)
                    progress.advance(task)
            write(results)
            now = time.perf_counter()
            if number + 1 < rounds and seconds is not None and now + (now - start) > begin + seconds:
                say_what_is_missing(number + 1, rounds, seconds)
                return


def say_what_is_missing(done: int, rounds: int, seconds: float) -> None:
    """Where the time did not suffice for all rounds."""
    scatter = "; one sample of each point does not tell how far they scatter" if done == 1 else ""
    console.print(
        f"stopped after {done} of {rounds} rounds, since the next one would end after {seconds:g} s{scatter}. The same "
        "command goes on; --seconds allows more",
        highlight=False,
        soft_wrap=True,
    )


def pair(method: Method, frames: torch.Tensor, time_scale: int) -> Iterator[None]:
    """One pair end to end, a step for what is done once and one for each frame."""
    size = SCALE * frames.shape[-2], SCALE * frames.shape[-1]
    encoded = method.encode(frames)
    yield
    for frame in method.frames(encoded, time_scale, size):
        assert frame.shape[-3:] == (3, *size)
        yield


def total(sample: dict[str, Any]) -> float:
    """Seconds for the whole pair."""
    return sample["encode"] + sum(sample["frames"])


def format_sample(sample: dict[str, Any]) -> str:
    return sample["error"] if "error" in sample else duration(total(sample))


def totals(results: Results, line: Line, time_scale: int) -> list[float]:
    return [total(s) for s in results.find(line, time_scale=time_scale) if "error" not in s]


def failure(results: Results, line: Line, time_scale: int) -> str | None:
    return next((s["error"] for s in results.find(line, time_scale=time_scale) if "error" in s), None)


def measured_scales(results: Results) -> list[int]:
    return sorted({sample["time_scale"] for sample in results.samples})


def write(results: Results) -> None:
    fields = ("method", "kernels", "dtype", "time_scale", "round", "encode", "frames", "total", "error")
    write_csv(results.path.with_suffix(".csv"), fields, (row(sample) for sample in results.samples))
    results.path.with_suffix(".md").write_text(tables(results))
    draw(results)


def row(sample: dict[str, Any]) -> dict[str, Any]:
    return sample if "error" in sample else sample | {"total": total(sample), "frames": sum(sample["frames"])}


def tables(results: Results) -> str:
    """Markdown: seconds per pair with speed-ups, encode and frame apart, sizes of the networks, how it was measured."""
    scales, lines = measured_scales(results), results.lines()
    best = fastest(results, lines, scales[-1])
    h, w = results.content["settings"]["input"]
    text = [
        f"Seconds per pair of frames, {w}x{h} to {SCALE * w}x{SCALE * h}: all that it takes to make the frames up to "
        f"the next pair, xN of them. {samples_of(results)}",
        "",
        "| method | " + " | ".join(f"x{n}" for n in scales) + " |",
        "|---|" + "---|" * len(scales),
    ]
    for line in lines:
        text.append(f"| {line.label} | " + " | ".join(spread(results, line, n) for n in scales) + " |")
    if best is not None:
        text += ["", f"How many times longer than {best.label} the others take:", "", text[2], text[3]]
        for line in lines:
            if line != best:
                text.append(f"| {line.label} | " + " | ".join(ratio(results, line, best, n) for n in scales) + " |")
    text += [
        "",
        "Medians of what is done once per pair and of what is done for each frame, where a method works frame by "
        "frame; the last column is how many frames take as long as what is done once.",
        "",
    ]
    text += ["| method | pair | frame | pair / frame |", "|---|---|---|---|"]
    text += [cells for line in lines if (cells := apart(results, line))]
    text += ["", "Networks:", "", size_table(), "", *colophon(results)]
    return "\n".join(text) + "\n"


def samples_of(results: Results) -> str:
    """How many samples the points have, in words."""
    good = [(line, n) for line in results.lines() for n in measured_scales(results) if totals(results, line, n)]
    counts = {len(totals(results, line, n)) for line, n in good}
    if max(counts, default=1) == 1:
        return "One sample of each point, so that it is not known how far they scatter."
    few = "" if len(counts) == 1 else f"{min(counts)} to "
    return f"Median (and smallest to largest) of {few}{max(counts)} samples."


def fastest(results: Results, lines: list[Line], time_scale: int) -> Line | None:
    own = [line for line in lines if line.method == BASE and totals(results, line, time_scale)]
    return min(own, key=lambda line: median(totals(results, line, time_scale)), default=None)


def spread(results: Results, line: Line, time_scale: int) -> str:
    values = totals(results, line, time_scale)
    if not values:
        return (failure(results, line, time_scale) or "").partition(":")[0]
    return f"{median(values):.3g}" + (f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else "")


def ratio(results: Results, line: Line, best: Line, time_scale: int) -> str:
    other, own = totals(results, line, time_scale), totals(results, best, time_scale)
    return f"{median(other) / median(own):.3g}" if other and own else ""


def apart(results: Results, line: Line) -> str | None:
    samples = [sample for sample in results.find(line) if "error" not in sample]
    if not samples or not find_method(line.method)[1].streams:  # type: ignore[attr-defined]
        return None
    encode = median([sample["encode"] for sample in samples])
    frame = median([sum(sample["frames"]) / len(sample["frames"]) for sample in samples])
    return f"| {line.label} | {duration(encode)} | {duration(frame)} | {encode / frame:.3g} |"


def draw(results: Results) -> None:
    scales = measured_scales(results)
    figure, axes = new_figure(1, 2)
    h, w = results.content["settings"]["input"]
    for axis, kind in zip(axes, ("log", "linear"), strict=True):
        for index, (line, style) in enumerate(line_styles(results.lines())):
            points = [(n, values) for n in scales if (values := totals(results, line, n))]
            middle = [median(values) for _, values in points]
            errors = [
                [m - min(values) for m, (_, values) in zip(middle, points, strict=True)],
                [max(values) - m for m, (_, values) in zip(middle, points, strict=True)],
            ]
            axis.errorbar([n for n, _ in points], middle, errors, label=line.label, capsize=2, **style)
            failed = [n for n in scales if failure(results, line, n)]
            mark_failures(axis, failed, index, style["color"])
        if kind == "log":
            log_scales(axis)
        else:
            axis.set_ylim(bottom=0)
        axis.set_xticks(scales, [f"×{n}" for n in scales])  # noqa: RUF001 - a multiplication sign
        axis.set_xlabel("time scale: frames per pair")
        axis.set_ylabel(f"seconds per pair ({kind})")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"Inference time, {w}x{h} to {SCALE * w}x{SCALE * h}, {describe_machine(results.content['machine'])}"
        + ("\n(crosses: out of memory or not supported)" if any("error" in s for s in results.samples) else ""),
        fontsize=10,
    )
    save(figure, results.path)


if __name__ == "__main__":
    main(app)
