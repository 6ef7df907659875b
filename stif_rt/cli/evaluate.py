"""``stif-rt eval``."""

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stif_rt.cli.options import MAX_CACHE, Device, Dtype, EncoderOption, KernelsOption, MaxCache, Weights, parse_bytes
from stif_rt.cli.terminal import console, progress_bar
from stif_rt.data.datasets import DATASETS, load_dataset
from stif_rt.evaluation.methods import BASELINE, Method, external, ours, predictions
from stif_rt.evaluation.metrics import Window
from stif_rt.evaluation.protocol import Mean, summarise
from stif_rt.evaluation.run import Plan, run_evaluation
from stif_rt.evaluation.tables import TABLES, write
from stif_rt.runtime import Runtime


class SSIM(str, Enum):
    none = "none"
    gaussian = "gaussian"
    uniform = "uniform"


SSIM_WINDOWS: dict[SSIM, Window | None] = {SSIM.none: None, SSIM.gaussian: "gaussian", SSIM.uniform: "uniform"}


def evaluate(
    data: Annotated[list[Path], typer.Argument(help="Videos, folders of frames, or folders of either.")],
    cache: Annotated[Path, typer.Option(help="Folder for decoded frames.")],
    max_cache: MaxCache = MAX_CACHE,
    dataset: Annotated[str | None, typer.Option(help=f"Take the test split of {', '.join(DATASETS)}.")] = None,
    table: Annotated[
        int | None, typer.Option(help="Scales and lengths of the paper's table 1 or 2; all groups, with SSIM.")
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option(min=0.1, help="Spatial scale, 4 unless given; repeatable.")
    ] = None,
    window: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Frames of a group, 3 unless given; its first and last are the input. Repeatable."),
    ] = None,
    windows: Annotated[
        int, typer.Option(min=0, help="Groups per clip, evenly spread; 0 for all that follow each other.")
    ] = 16,
    ssim: Annotated[
        SSIM, typer.Option(help="gaussian is MATLAB's and the usual one, uniform is scikit-image's default.")
    ] = SSIM.none,
    downscale: Annotated[
        float, typer.Option(min=0.1, help="Shrink clips by this before use, to shed compression.")
    ] = 1,
    output: Annotated[Path | None, typer.Option(help="Folder for tables (.md, .csv, .json) and strips (.png).")] = None,
    prediction: Annotated[
        list[str] | None,
        typer.Option("--predictions", help="NAME=FOLDER of frames made elsewhere, FOLDER/CLIP/NUMBER.png. Repeatable."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="NAME=module:function, another network to be scored. Repeatable.")
    ] = None,
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
) -> None:
    """PSNR and SSIM on clips, beside bicubic up-scaling with linear blending. docs/evaluation.md explains it."""
    most_bytes = parse_bytes(max_cache, "--max-cache")
    lengths, scales = tuple(dict.fromkeys(window or (3,))), tuple(dict.fromkeys(scale or (4.0,)))
    most = windows or None
    if table is not None:
        if table not in TABLES:
            raise ValueError(f"--table {table}: there are {', '.join(map(str, TABLES))}")
        if window or scale:
            raise ValueError("--table sets --window and --scale: give either")
        lengths, scales = TABLES[table]
        if table == 1 and dataset is not None:  # Vid4: single-frame interpolation; the others: x8
            lengths = (3,) if dataset == "vid4" else (9,)
        most, ssim = None, SSIM.gaussian if ssim == SSIM.none else ssim
    runtime = Runtime.load(weights, device=device, dtype=dtype, kernels=kernels, encoder=encoder)
    methods: dict[str, Method] = {"this": ours(runtime)}
    for given in prediction or []:
        name, folder = named(given, "--predictions", methods)
        methods[name] = predictions(Path(folder))
    for given in method or []:
        name, target = named(given, "--method", methods)
        methods[name] = external(target)
    clips = load_dataset(dataset, data, cache, downscale, most_bytes)
    plan = Plan(lengths, scales, most, SSIM_WINDOWS[ssim])
    with progress_bar() as progress:
        task = progress.add_task("groups", total=plan.count(clips))
        results = run_evaluation(clips, methods, plan, output, lambda: progress.advance(task))
    means = summarise(results)
    if output is not None:
        write(output, results, means, dataset)
        console.print(f"wrote results.md, results.csv, results.json and strips to {output}", markup=False)
    for factor in scales:
        for length in lengths:
            if part := [mean for mean in means if (mean.scale, mean.length) == (factor, length)]:
                show_means(part, factor, length)
            else:
                console.print(f"no clip has {length} frames without a scene cut: left out")


def named(given: str, option: str, taken: Iterable[str]) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not (name and equals and value) or name == BASELINE or name in taken:
        raise ValueError(f"{option} {given}: give NAME=..., a name of your own")
    return name, value


def show_means(means: list[Mean], scale: float, length: int) -> None:
    """One table on standard output: textured and smooth windows apart, each method beside the baseline."""
    methods = list(dict.fromkeys(mean.method for mean in means))
    title = f"RGB PSNR, dB (gain): space x{scale:g}, groups of {length} frames"
    columns = ("windows", "number", "frames", *map(escape, methods))  # names may look like rich's markup
    table = Table(*columns, title=title, title_justify="left")
    for first in range(0, len(means), len(methods)):
        row = means[first : first + len(methods)]  # the baseline and every method on the same frames
        if length > 3 or row[0].frames != "center":  # of three frames, center is the average
            name = row[0].windows if row[0].clip is None else f"{row[0].windows}, {row[0].clip}"
            gains = [f"{mean.psnr:.2f} ({mean.psnr - row[0].psnr:+.2f})" for mean in row[1:]]
            table.add_row(escape(name), str(row[0].number), row[0].frames, f"{row[0].psnr:.2f}", *gains)
    Console().print(table)
