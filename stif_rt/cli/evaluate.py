"""``stif-rt eval``."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stif_rt.cli.options import Device, Dtype, EncoderOption, KernelsOption, Weights
from stif_rt.cli.terminal import console, progress_bar
from stif_rt.data.datasets import DATASETS, load_dataset
from stif_rt.evaluation.methods import BASELINE, Method, external, ours, predictions
from stif_rt.evaluation.metrics import Window
from stif_rt.evaluation.protocol import Mean, Result, count_groups, groups, summarise
from stif_rt.evaluation.protocol import evaluate as evaluate_group
from stif_rt.evaluation.tables import TABLES, write, write_strip
from stif_rt.runtime import Runtime


class SSIM(str, Enum):
    none = "none"
    gaussian = "gaussian"
    uniform = "uniform"


SSIM_WINDOWS: dict[SSIM, Window | None] = {SSIM.none: None, SSIM.gaussian: "gaussian", SSIM.uniform: "uniform"}


def evaluate(
    data: Annotated[list[Path], typer.Argument(help="Videos, folders of frames, or folders of either.")],
    cache: Annotated[Path, typer.Option(help="Folder for decoded frames.")],
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
    lengths, scales = tuple(window or (3,)), tuple(scale or (4.0,))
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
        name, folder = named(given, "--predictions")
        methods[name] = predictions(Path(folder))
    for given in method or []:
        name, place = named(given, "--method")
        methods[name] = external(place)
    clips = load_dataset(dataset, data, cache, downscale)
    results: list[Result] = []
    with progress_bar() as progress:
        total = len(scales) * sum(count_groups(clips, length, most) for length in lengths)
        task = progress.add_task("groups", total=total)
        for factor in scales:
            for length in lengths:
                busiest: dict[str, float] = {}  # by clip, how much the group of its strip changes
                for group in groups(clips, length, factor, most):
                    results.append(evaluate_group(group, methods, SSIM_WINDOWS[ssim]))
                    if output is not None:
                        change = float((group.truth[-1] - group.truth[0]).abs().mean())
                        if change > busiest.get(group.clip, -1):
                            busiest[group.clip] = change
                            write_strip(output, group, methods)
                    progress.advance(task)
    if not results:
        raise ValueError(f"no clip has {min(lengths)} frames without a scene cut")
    means = summarise(results)
    for factor in scales:
        for length in lengths:
            show_means([m for m in means if (m.scale, m.length) == (factor, length)], factor, length)
    if output is not None:
        write(output, results, means, dataset)
        console.print(f"wrote results.md, results.csv, results.json and strips to {output}", markup=False)


def named(given: str, option: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not (name and equals and value) or name in ("this", BASELINE):
        raise ValueError(f"{option} {given}: give NAME=..., a name of your own")
    return name, value


def show_means(means: list[Mean], scale: float, length: int) -> None:
    """One table on standard output: textured and smooth windows apart, each method beside the baseline."""
    methods = list(dict.fromkeys(mean.method for mean in means))
    title = f"RGB PSNR, dB (gain): space x{scale:g}, groups of {length} frames"
    table = Table("windows", "number", "frames", *methods, title=title, title_justify="left")
    for first in range(0, len(means), len(methods)):
        row = means[first : first + len(methods)]  # the baseline and every method on the same frames
        if length > 3 or row[0].frames != "center":  # of three frames, center is the average
            name = row[0].windows if row[0].clip is None else f"{row[0].windows}, {row[0].clip}"
            gains = [f"{mean.psnr:.2f} ({mean.psnr - row[0].psnr:+.2f})" for mean in row[1:]]
            table.add_row(name, str(row[0].number), row[0].frames, f"{row[0].psnr:.2f}", *gains)
    Console().print(table)
