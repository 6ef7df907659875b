"""``stif-rt eval``."""

import itertools
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stif_rt.cli.options import MAX_CACHE, NETWORK, Device, Dtype, EncoderOption, KernelsOption, MaxCache, parse_bytes
from stif_rt.cli.terminal import console, progress_bar
from stif_rt.data.datasets import DATASETS, load_dataset
from stif_rt.evaluation.methods import (
    BASELINE,
    OURS,
    Method,
    Peers,
    bundled_method,
    external,
    predictions,
    runtime_method,
)
from stif_rt.evaluation.metrics import SsimWindow
from stif_rt.evaluation.paper import Reproduction
from stif_rt.evaluation.protocol import Mean, summarise
from stif_rt.evaluation.published import WEIGHTS
from stif_rt.evaluation.run import Plan, run_evaluation
from stif_rt.evaluation.tables import write
from stif_rt.runtime import Runtime, choose_device, find_weights


class SSIM(str, Enum):
    """The window of SSIM, or none at all."""

    none = "none"
    gaussian = "gaussian"
    uniform = "uniform"


SSIM_WINDOWS: dict[SSIM, SsimWindow | None] = {SSIM.none: None, SSIM.gaussian: "gaussian", SSIM.uniform: "uniform"}


def evaluate(
    data: Annotated[list[Path], typer.Argument(help="Videos, folders of frames, or folders of either.")],
    cache: Annotated[Path, typer.Option(help="Folder for decoded frames.")],
    max_cache: MaxCache = MAX_CACHE,
    dataset: Annotated[str | None, typer.Option(help=f"Take the test split of {', '.join(DATASETS)}.")] = None,
    table: Annotated[
        int | None,
        typer.Option(help="One of the paper's tables, 1 to 5: its scales, lengths, rows; all windows, SSIM."),
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option(min=0.1, help="Spatial scale, 4 unless given; repeatable.")
    ] = None,
    frames_per_window: Annotated[
        list[int] | None,
        typer.Option(min=2, help="3 unless given; the first and the last are the input. Repeatable."),
    ] = None,
    max_windows: Annotated[
        int, typer.Option(min=0, help="Of each clip, evenly spread; 0 for all that follow each other.")
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
        list[str] | None,
        typer.Option(
            help="NAME=module:function, another network; or one of the paper's, in a source checkout: tmnet, "
            "zooming_slowmo, INTERPOLATOR+ENLARGER such as dain+basicvsr. Repeatable."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="A .pth or .safetensors file, a bundle, or the name of bundled weights, else what fits each scale; "
            f"NAME=FILE for another network, NAME one of {', '.join(WEIGHTS)}. Repeatable.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
) -> None:
    """PSNR and SSIM on clips, beside bicubic up-scaling with linear blending. docs/evaluation.md explains it."""
    most_bytes = parse_bytes(max_cache, "--max-cache")
    plan = Plan(
        dict.fromkeys(frames_per_window or (3,)),
        dict.fromkeys(scale or (4.0,)),
        max_windows or None,
        SSIM_WINDOWS[ssim],
    )
    paper = None if table is None else Reproduction(table, dataset)
    if paper is not None:
        if frames_per_window or scale:
            raise ValueError("--table sets --frames-per-window and --scale: give either")
        plan = Plan(paper.lengths, paper.scales, None, plan.ssim or "gaussian")
    files = parse_weights(weights or [])

    def load(weights: str | Path) -> Runtime:
        return Runtime.load(weights, device=device, dtype=dtype, kernels=kernels, encoder=encoder)

    def model(file: Path | None) -> Method:
        return bundled_method(load, plan.scales) if file is None else runtime_method(load(file))

    peers = Peers(files, choose_device(device))
    methods: dict[str, Method] = {OURS: model(files.get("stif"))}
    for given in prediction or []:
        name, folder = named(given, "--predictions", methods)
        methods[name] = predictions(Path(folder))
    for given in method or []:
        if "=" in given or ":" in given:
            name, target = named(given, "--method", methods)
            methods[name] = external(target)
        else:
            methods[given] = peers(given)
    if paper is not None:
        methods = paper.add_methods(methods, files, model, peers)
    clips = load_dataset(dataset, data, cache, downscale, most_bytes)
    with progress_bar() as progress:
        task = progress.add_task("windows", total=plan.count(clips))
        results = run_evaluation(clips, methods, plan, output, lambda: progress.advance(task), paper)
    means = summarise(results)
    text = "" if paper is None else paper.markdown(results)
    if output is not None:
        write(output, results, means, dataset, text)
        console.print(f"wrote results.md, results.csv, results.json and strips to {output}", markup=False)
    if paper is not None:
        Console().print(text, markup=False, highlight=False, soft_wrap=True)
        return
    for factor in plan.scales:
        for length in plan.lengths:
            if part := [mean for mean in means if (mean.scale, mean.length) == (factor, length)]:
                show_means(part, factor, length)
            else:
                console.print(f"no clip has {length} frames without a scene cut: left out")


def parse_weights(texts: list[str]) -> dict[str, Path]:
    """Files by network, ``stif`` where none is named."""
    files = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if equals and name not in WEIGHTS and not Path(text).exists():
            raise ValueError(f"--weights {text}: no network {name!r}; there are {', '.join(WEIGHTS)}")
        name, path = (name, Path(file)) if equals and name in WEIGHTS else ("stif", find_weights(text))
        if not path.exists():
            raise FileNotFoundError(f"--weights {text}: {path} does not exist")
        files[name] = path
    return files


def named(given: str, option: str, taken: Iterable[str]) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``. Raises ValueError for anything else, and for a name that is taken."""
    name, equals, value = given.partition("=")
    if not (name and equals and value) or name == BASELINE or name in taken:
        raise ValueError(f"{option} {given}: give NAME=..., a name of your own")
    return name, value


def show_means(means: list[Mean], scale: float, length: int) -> None:
    """One table on standard output: textured and smooth windows apart, each method beside the baseline."""
    methods = list(dict.fromkeys(mean.method for mean in means))
    title = f"RGB PSNR, dB (gain): space x{scale:g}, windows of {length} frames"
    columns = ("texture", "windows", "frames", *map(escape, methods))  # names may look like rich's markup
    table = Table(*columns, title=title, title_justify="left")
    for (texture, clip, frames), part in itertools.groupby(means, lambda mean: (mean.texture, mean.clip, mean.frames)):
        row = {mean.method: mean for mean in part}  # the baseline and every method on the same frames
        if length > 3 or frames != "center":  # of three frames, center is the average
            base = row[BASELINE]
            gains = [f"{row[name].psnr:.2f} ({row[name].psnr - base.psnr:+.2f})" for name in methods[1:]]
            name = texture if clip is None else f"{texture}, {clip}"
            table.add_row(escape(name), str(base.number), frames, f"{base.psnr:.2f}", *gains)
    Console().print(table)
