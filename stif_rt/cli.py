"""The command line, ``stif-rt``."""

import contextlib
import copy
import csv
import importlib
import logging
import os
import platform
import sys
import traceback
from collections import deque
from enum import Enum
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import torch
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stif_rt import __version__
from stif_rt import bench as benchmark
from stif_rt.engines import ENGINES, bundle_engines
from stif_rt.evaluation.datasets import DATASETS, load_dataset
from stif_rt.evaluation.methods import BASELINE, Method, external, ours, predictions
from stif_rt.evaluation.metrics import Window
from stif_rt.evaluation.protocol import Mean, Result, count_groups, groups, summarise
from stif_rt.evaluation.protocol import evaluate as evaluate_group
from stif_rt.evaluation.tables import TABLES, write, write_strip
from stif_rt.kernels import BACKENDS, native
from stif_rt.model.checkpoints import load_model, save_model
from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import DTYPES, Runtime, choose_device, output_size
from stif_rt.training.data import Recipe, find_clips, load_clip, load_pictures
from stif_rt.training.train import Options, Step, is_first_process
from stif_rt.training.train import train as train_model
from stif_rt.video.plan import count
from stif_rt.video.reader import VideoReader, open_reader
from stif_rt.video.render import render_frames
from stif_rt.video.writer import check_target, image_writer, is_video, video_writer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Continuous space-time video super-resolution: any frame rate, any size.",
)
console = Console(stderr=True)
state = {"verbose": False}

Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help=f"auto (the fastest here), {', '.join(DTYPES)}.")]
KernelsOption = Annotated[str, typer.Option(help=f"auto, {', '.join(BACKENDS)}.")]
EncoderOption = Annotated[str, typer.Option(help=f"auto, {', '.join(ENGINES)}; or one that a bundle holds.")]
Weights = Annotated[Path | None, typer.Option(help="A .pth or .safetensors file, or a bundle; else the bundled ones.")]


class Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console,
    )


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is chosen, and show tracebacks.")] = False,
) -> None:
    state["verbose"] = verbose
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=console, show_time=False, show_path=False)]
    )


@app.command()
def render(
    input: Annotated[Path, typer.Argument(help="A video file, or a folder of images in the order of their names.")],
    output: Annotated[Path, typer.Argument(help="A video file (.mp4, .mkv, .mov, .webm), or a folder for PNG images.")],
    scale: Annotated[float | None, typer.Option(help="Output pixels per input pixel. 4 unless given.")] = None,
    size: Annotated[str | None, typer.Option(help="Output size WIDTHxHEIGHT, instead of --scale.")] = None,
    time_scale: Annotated[str | None, typer.Option(help="Output frames per input frame, such as 8 or 5/2.")] = None,
    fps: Annotated[str | None, typer.Option(help="Output frames per second, such as 60 or 60000/1001.")] = None,
    input_fps: Annotated[str, typer.Option(help="Frames per second of a folder of images.")] = "24",
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
    max_memory: Annotated[
        float, typer.Option(min=0, max=2**20, help="GiB of working memory for a frame; larger ones go in pieces.")
    ] = 1,
    crf: Annotated[int, typer.Option(min=0, max=63, help="Quality of the written video: lower is better.")] = 16,
    audio: Annotated[bool, typer.Option(help="Copy the input's sound.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Render a video at another size and frame rate."""
    as_video = is_video(output)
    check_target(output, input, overwrite)
    with contextlib.closing(open_reader(input, parse_rate(input_fps, "--input-fps"))) as reader:
        rate = output_rate(reader.rate, time_scale, fps)
        H, W = frame_size(reader.height, reader.width, scale, size, even=as_video)
        runtime = Runtime.load(
            weights, device=device, dtype=dtype, kernels=kernels, encoder=encoder, max_memory=int(max_memory * 2**30)
        )
        if as_video:
            sound = reader if audio and isinstance(reader, VideoReader) else None
            aspect = reader.sample_aspect_ratio if size is None else None  # a size of one's own has square pixels
            target = video_writer(output, (H, W), rate, crf, sound, aspect)
        else:
            target = image_writer(output)
        console.print(
            f"{reader.width}x{reader.height} at {float(reader.rate):g}/s -> {W}x{H} at {float(rate):g}/s, "
            f"{describe(runtime)}"
        )
        total = None if reader.frames is None else count(reader.frames, reader.rate, rate)
        with target as writer, progress_bar() as progress:
            task = progress.add_task("rendering", total=total)
            written = render_frames(runtime, reader, writer, (H, W), rate, lambda: progress.advance(task))
    console.print(f"wrote {written} frames to {output}", highlight=False, markup=False)


def output_rate(input_rate: Fraction, time_scale: str | None, fps: str | None) -> Fraction:
    """Frames per second of the output, exactly."""
    if time_scale is not None and fps is not None:
        raise ValueError("give either --time-scale or --fps, not both")
    if fps is not None:
        rate = parse_rate(fps, "--fps")
    else:
        rate = input_rate * (1 if time_scale is None else parse_rate(time_scale, "--time-scale"))
    if max(rate.numerator, rate.denominator) >= 2**31:  # more than files can hold; 59.94005994... becomes 60000/1001
        rate = rate.limit_denominator(1001)
    if not 0 < rate < 2**20:
        raise ValueError(f"the output would have {float(rate):g} frames per second")
    return rate


def parse_rate(text: str, option: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{option} {text}: give a number such as 60, 23.976 or 24000/1001") from error
    if rate <= 0:
        raise ValueError(f"{option} {text}: must be positive")
    return rate


def frame_size(height: int, width: int, scale: float | None, size: str | None, even: bool) -> tuple[int, int]:
    """(H, W) of the output. Video files need even sides: those of a scale are rounded to even, a size must be."""
    if size is None:
        H, W = output_size((height, width), 4 if scale is None else scale, None)
        return (max(2, 2 * round(H / 2)), max(2, 2 * round(W / 2))) if even else (H, W)
    try:
        W, H = (int(side) for side in size.lower().split("x"))
    except ValueError as error:
        raise ValueError(f"--size {size}: give WIDTHxHEIGHT, such as 1920x1080") from error
    if even and (H % 2 or W % 2):
        raise ValueError(f"--size {size}: sides of a video file must be even (4:2:0 chroma)")
    return output_size((height, width), scale, (H, W))


def describe(runtime: Runtime) -> str:
    return f"{runtime.device}, {str(runtime.dtype).removeprefix('torch.')}"


@app.command()
def info() -> None:
    """What this machine can run, and why not the rest."""
    out = Console()
    packages = ("torch", "torchvision", "triton", "av", "numpy", "safetensors", "tensorboard")
    facts = [
        ("stif-rt", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, installed(name)) for name in packages),
        (
            "FFmpeg",
            ", ".join(f"{k} {'.'.join(map(str, v))}" for k, v in av.library_versions.items() if k != "swresample"),
        ),
        ("CPU", f"{torch.get_num_threads()} threads, {instruction_sets()}"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        facts.append((f"cuda:{index}", f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"))
    if not torch.cuda.is_available():
        built = f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch is a CPU build"
        facts.append(("CUDA", f"not available: {built}, no usable NVIDIA GPU or driver"))
    table = Table("what", "is", title="This machine", title_justify="left")
    for fact in facts:
        table.add_row(*fact)
    out.print(table)

    table = Table("what", "device", "dtype", "can run", title="Encoder engines and kernels", title_justify="left")
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        for dtype_name, dtype in DTYPES.items():
            for engine in ENGINES:
                table.add_row(f"encoder {engine}", device, dtype_name, "yes")
            for engine, why in bundle_engines(torch.device(device), dtype).items():
                table.add_row(f"encoder {engine} (bundles)", device, dtype_name, f"no: {why}" if why else "yes")
            for name, module in BACKENDS.items():
                reason = module.unavailable_reason(Config(), torch.device(device), dtype)
                table.add_row(f"kernels {name}", device, dtype_name, "yes" if reason is None else f"no: {reason}")
    out.print(table)

    library = native.load()
    if isinstance(library, str):
        out.print(f"Native CPU kernels: no, {library}. The PyTorch reference serves instead.", highlight=False)
        return
    table = Table("instruction set", "computes in", "can run", title="Native CPU kernels", title_justify="left")
    for isa in library.isas:
        dtype_name = str(isa.dtype).removeprefix("torch.")
        table.add_row(isa.name, dtype_name, "yes" if isa.unavailable is None else f"no: {isa.unavailable}")
    out.print(table)


def instruction_sets() -> str:
    """Those that matter for matrix products and sines, as the operating system names them."""
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16")
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux: what PyTorch uses
        return torch.backends.cpu.get_cpu_capability()
    return ", ".join(name for name in wanted if name in words) or "none of note"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class Precision(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command()
def train(
    data: Annotated[list[Path], typer.Argument(help="Videos, folders of frames, or folders of either.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and weights; an unfinished run there resumes.")],
    config: Annotated[str, typer.Option(help=f"{', '.join(CONFIGS)}.")] = "stif",
    start_from: Annotated[Path | None, typer.Option(help="Weights to start from, instead of random ones.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded frames, else OUTPUT/cache.")] = None,
    downscale: Annotated[
        float, typer.Option(min=0.1, help="Shrink clips by this before use, to shed compression.")
    ] = 1,
    stage_one: Annotated[int, typer.Option(help="Iterations at one spatial scale.")] = 450_000,
    stage_two: Annotated[int, typer.Option(help="Iterations at scales drawn per batch.")] = 150_000,
    scale: Annotated[float, typer.Option(help="Spatial scale of stage one.")] = 4,
    min_scale: Annotated[float, typer.Option(help="Smallest spatial scale of stage two.")] = 1,
    max_scale: Annotated[float, typer.Option(help="Largest spatial scale of stage two.")] = 4,
    batch: Annotated[int, typer.Option(help="Windows per iteration, over all processes.")] = 24,
    patch: Annotated[int, typer.Option(help="Side of the low-resolution patch; a multiple of 4.")] = 32,
    window: Annotated[int, typer.Option(min=2, help="Frames of a window; its first and last are the input.")] = 9,
    min_window: Annotated[int | None, typer.Option(min=2, help="Shortest window, where they vary.")] = None,
    targets: Annotated[int, typer.Option(help="Frames of each window to be predicted.")] = 3,
    photometric: Annotated[
        bool, typer.Option(help="Random gain, gamma and channel order; one example in five dark.")
    ] = False,
    candidates: Annotated[int, typer.Option(min=1, help="Places drawn for each window; the busiest is taken.")] = 1,
    synthetic: Annotated[
        float, typer.Option(min=0, max=1, help="Share of still pictures in known motion, made on the fly.")
    ] = 0,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="Images for these, besides the clips' own frames.")
    ] = None,
    largest_motion: Annotated[
        float, typer.Option(min=0, help="Their largest translation between the inputs, input pixels.")
    ] = 12,
    flow_weight: Annotated[float, typer.Option(min=0, help="First weight of their flow's error, per pixel.")] = 0,
    learning_rate: Annotated[float, typer.Option()] = 1e-4,
    final_learning_rate: Annotated[float, typer.Option()] = 1e-7,
    period: Annotated[int, typer.Option(min=1, help="Iterations between restarts of the cosine.")] = 150_000,
    warm_up: Annotated[int, typer.Option(min=0, help="Iterations over which the rate rises from zero.")] = 0,
    siren_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the rate for SIREN layers; if not 1, wide ones get a quarter.")
    ] = 1,
    beta1: Annotated[float, typer.Option(min=0, max=1, help="Adam's decay of the mean gradient.")] = 0.9,
    beta2: Annotated[float, typer.Option(min=0, max=1, help="Adam's decay of the mean square.")] = 0.999,
    clip_gradient: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    average: Annotated[float, typer.Option(help="Decay of the weights' moving average; 0 for none.")] = 0,
    precision: Annotated[
        Precision,
        typer.Option(help="Of the encoder's activations; bfloat16 also of SIREN products (needs a C++ compiler)."),
    ] = Precision.float32,
    save_every: Annotated[int, typer.Option(min=1, help="Iterations between checkpoints.")] = 1000,
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Clips to validate on at each checkpoint; OUTPUT/validation.csv has the curve."),
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    workers: Annotated[int, typer.Option(help="Processes that cut windows.")] = 1,
    device: Device = "auto",
    tensorboard: Annotated[bool, typer.Option(help="Write curves for TensorBoard to OUTPUT.")] = False,
) -> None:
    """Train a model: the paper's recipe, every number an option. Several GPUs: torchrun -m stif_rt.cli train ..."""
    if config not in CONFIGS:
        raise ValueError(f"unknown configuration {config!r}; there are: {', '.join(CONFIGS)}")
    options = Options(
        recipe=Recipe(
            patch,
            (scale, scale),
            (min_window or window, window),
            targets,
            photometric,
            candidates,
            synthetic,
            largest_motion,
        ),
        stage_one=stage_one,
        stage_two=stage_two,
        stage_two_scales=(min_scale, max_scale),
        batch=batch,
        learning_rate=learning_rate,
        final_learning_rate=final_learning_rate,
        period=period,
        warm_up=warm_up,
        siren_share=siren_share,
        betas=(beta1, beta2),
        clip_gradient=clip_gradient,
        average=average,
        flow_weight=flow_weight,
        precision=precision.value,
        save_every=save_every,
        seed=seed,
    )
    if device == "auto" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"  # torchrun: one GPU for each process
    chosen = choose_device(device)
    frames = cache or output / "cache"
    with console.status("decoding clips"):
        clips = [load_clip(path, frames, downscale) for folder in data for path in find_clips(folder)]
        stills = [image for path in pictures or [] for image in load_pictures(path)]
        held_out = [load_clip(path, frames, downscale) for folder in validation or [] for path in find_clips(folder)]
    torch.manual_seed(seed)
    model = STIF(CONFIGS[config]) if start_from is None else load_model(start_from)
    curves = summary_writer(output) if tensorboard and is_first_process() else None

    losses: deque[float] = deque(maxlen=save_every)
    errors: deque[float] = deque(maxlen=save_every)

    def report(step: Step) -> None:
        losses.append(step.loss)
        progress.update(task, description=f"loss {step.loss:.4f}", completed=step.iteration)
        if curves is not None:
            curves.add_scalar("loss", step.loss, step.iteration)
        if step.flow_error is not None:
            errors.append(step.flow_error)
            if curves is not None:
                curves.add_scalar("flow error", step.flow_error, step.iteration)
        if curves is not None:
            curves.add_scalar("learning rate", step.learning_rate, step.iteration)

    def validate(model: STIF, iteration: int) -> None:
        flow = f", flow error {np.mean(errors):.2f} pixels" if errors else ""
        console.print(f"{iteration}: loss {np.mean(losses):.5f}{flow}")
        if not held_out:
            return
        runtime = Runtime.from_model(copy.deepcopy(model), device=device)
        methods = {"this": ours(runtime)}
        means = summarise([evaluate_group(group, methods) for group in groups(held_out, 3, scale, 4)])
        pairs = zip(means[::2], means[1::2], strict=True)  # the baseline and this
        rows = []
        for bicubic, mean in pairs:
            if mean.clip is None and mean.windows != "all" and mean.frames != "center":
                shown = f"{mean.windows}, {mean.frames}"
                console.print(f"{iteration}: {shown}: {mean.psnr:.2f} dB, {mean.psnr - bicubic.psnr:+.2f} over bicubic")
                rows.append((iteration, mean.windows, mean.frames, f"{mean.psnr:.3f}", f"{bicubic.psnr:.3f}"))
                if curves is not None:
                    curves.add_scalar(f"PSNR {shown}", mean.psnr, iteration)
        table = output / "validation.csv"
        head = not table.exists()
        with table.open("a", newline="") as file:
            writer = csv.writer(file)
            if head:
                writer.writerow(("iteration", "windows", "frames", "psnr", "bicubic"))
            writer.writerows(rows)

    with progress_bar() as progress:
        task = progress.add_task("training", total=stage_one + stage_two)
        usable = train_model(model, clips, options, output, chosen, workers, report, validate, stills)
    if is_first_process():
        save_model(usable, output / f"{config}.safetensors")
        console.print(f"wrote {output / f'{config}.safetensors'}")


def summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the package tensorboard: pip install 'stif-rt[train]'") from error
    return SummaryWriter(str(folder))


class SSIM(str, Enum):
    none = "none"
    gaussian = "gaussian"
    uniform = "uniform"


SSIM_WINDOWS: dict[SSIM, Window | None] = {SSIM.none: None, SSIM.gaussian: "gaussian", SSIM.uniform: "uniform"}


@app.command("eval")
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


bench = typer.Typer(no_args_is_help=True, help="Measure speed.")
app.add_typer(bench, name="bench")


@bench.command()
def quick(
    size: Annotated[str, typer.Option(help="Size of the clip, WIDTHxHEIGHT.")] = "320x180",
    scale: Annotated[float, typer.Option(min=0.1, help="Output pixels per input pixel.")] = 4,
    time_scale: Annotated[float, typer.Option(min=1, help="Output frames per input frame.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "float32",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
) -> None:
    """How fast a clip will be on this machine, in under a minute."""
    try:
        width, height = (int(side) for side in size.lower().split("x"))
    except ValueError as error:
        raise ValueError(f"--size {size}: give WIDTHxHEIGHT, such as 640x360") from error
    inputs = height, width
    outputs = output_size(inputs, scale, None)
    columns = ("model", "kernels", "measured", "pair", "frame", "frames/s", "MP/s")
    title = f"{width}x{height} to {outputs[1]}x{outputs[0]}, {time_scale:g} times the frames, {dtype}"
    table = Table(*columns, title=title, title_justify="left")
    for model in benchmark.MODELS:
        with console.status(f"measuring {model}"):
            measured = benchmark.measure(
                model, inputs, scale, device=device, dtype=dtype, kernels=kernels, encoder=encoder
            )
        speed = measured.at(inputs, outputs)
        table.add_row(
            model,
            measured.kernels,
            f"{measured.inputs[1]}x{measured.inputs[0]}",
            f"{speed.encode:.3g} s",
            f"{speed.render:.3g} s",
            f"{speed.frames_per_second(time_scale):.3g}",
            f"{speed.megapixels_per_second(time_scale):.3g}",
        )
    Console().print(table)
    console.print("stif-s: the bundled weights. stif: the paper's network, here with random weights.")
    console.print("Measured on smaller frames where that takes too long, and scaled by the number of pixels.")
    console.print("Reading and writing files is not included.")


def forward_to(module: str) -> Any:
    """A command of the source checkout's ``benchmarks`` folder, which no wheel holds."""

    def command(context: typer.Context) -> None:
        checkout = Path(__file__).resolve().parent.parent
        if not (checkout / "benchmarks" / f"{module}.py").is_file():
            raise ValueError(
                f"bench {module} needs the source code of stif-rt, whose benchmarks folder is not in {checkout}: "
                f"check it out, install it with pip install --editable '.[bench]', and run it there"
            )
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        found = importlib.import_module(f"benchmarks.{module}")
        found.app(context.args, prog_name=f"stif-rt bench {module}", standalone_mode=False)

    return command


passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
for module, summary in (
    ("figure3", "The paper's Figure 3: inference time against time scale, with its peers. Needs the source checkout."),
    ("growth", "Time and memory against output pixels and frames per pair. Needs the source checkout."),
):
    bench.command(module, help=summary, add_help_option=False, context_settings=passed_on)(forward_to(module))


@app.command(
    "export",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def export_(context: typer.Context) -> None:
    """Turn weights into a bundle for ONNX Runtime or TensorRT, or into an ONNX file."""
    try:
        commands = importlib.import_module("stif_export.cli")
    except ImportError as error:
        raise RuntimeError(f"exporting needs more packages ({error}): pip install 'stif-rt[export]'") from error
    commands.app(context.args, prog_name="stif-rt export")


def main() -> Any:
    return run(app)


def run(commands: typer.Typer) -> Any:
    """Runs a command line; errors of the user's making become one line and exit status 1."""
    try:
        return commands()
    except (ValueError, TypeError, RuntimeError, OSError, ArithmeticError, MemoryError, av.FFmpegError) as error:
        if state["verbose"]:
            traceback.print_exc()
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
