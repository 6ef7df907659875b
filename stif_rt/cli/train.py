"""``stif-rt train``."""

import copy
import csv
import difflib
import os
import sys
from collections import deque
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from stif_rt.cli.options import Device
from stif_rt.cli.terminal import console, progress_bar
from stif_rt.data.clips import load_clips, load_pictures
from stif_rt.evaluation.methods import ours
from stif_rt.evaluation.protocol import evaluate as evaluate_group
from stif_rt.evaluation.protocol import groups, summarise
from stif_rt.model.checkpoints import load_model, save_model
from stif_rt.model.config import CONFIGS
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime, choose_device
from stif_rt.training.examples import Recipe
from stif_rt.training.train import Options, Step, is_first_process
from stif_rt.training.train import train as train_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


FIRST_LINES, LINE_EVERY = (1, 2, 5, 10, 20), 50
"""Iterations of this run that print a line, and how many lie between all others that do."""


class Precision(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def read_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the values of a recipe the defaults of the other options. Raises BadParameter for what is no option."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # also TOML's and Unicode's
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    known = {parameter.name for parameter in context.command.params} - {"recipe", "data", "output"}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, [other for other in known if other], 1)
            raise typer.BadParameter(f"{path} has an unknown key {name!r}" + (f"; {near[0]!r}?" if near else ""))
        option = next(parameter for parameter in context.command.params if parameter.name == name)
        try:
            option.process_value(context, value)
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{path} has {name} = {value!r}: {error.message}") from error
    context.default_map = {**(context.default_map or {}), **values}
    return path


def train(
    data: Annotated[list[Path], typer.Argument(help="Videos, folders of frames, or folders of either.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and weights; an unfinished run there resumes.")],
    recipe: Annotated[
        Path | None,
        typer.Option(help="TOML file of values for these options.", callback=read_recipe, is_eager=True),
    ] = None,
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
    context: Annotated[
        int, typer.Option(min=0, help="Pixels around the patch that the velocity head is shown too.")
    ] = 0,
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
    middle: Annotated[
        float, typer.Option(min=0, max=1, help="Share of windows whose first target is midway between the inputs.")
    ] = 0,
    labels: Annotated[bool, typer.Option(help="Label the flow of clips by OpenCV's DIS.")] = False,
    noise: Annotated[float, typer.Option(min=0, max=1, help="Largest deviation of noise added to the inputs.")] = 0,
    exposure: Annotated[
        float, typer.Option(min=0, max=1, help="Largest difference in exposure between the inputs, a logarithm.")
    ] = 0,
    flow_weight: Annotated[float, typer.Option(min=0, help="First weight of the flow's error, per pixel.")] = 0,
    levels_weight: Annotated[
        float, typer.Option(min=0, help="First weight of the velocity's error at the levels of its pyramid.")
    ] = 0,
    smooth_weight: Annotated[float, typer.Option(min=0, help="First weight of the velocity's slope.")] = 0,
    blend_weight: Annotated[
        float, typer.Option(min=0, help="Weight of the error of the blended frames without the residual.")
    ] = 0,
    flow_only: Annotated[bool, typer.Option(help="Train the velocity head alone, on known flow.")] = False,
    learning_rate: Annotated[float, typer.Option()] = 1e-4,
    final_learning_rate: Annotated[float, typer.Option()] = 1e-7,
    period: Annotated[int, typer.Option(min=1, help="Iterations between restarts of the cosine.")] = 150_000,
    warm_up: Annotated[int, typer.Option(min=0, help="Iterations over which the rate rises from zero.")] = 0,
    siren_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the rate for SIREN layers; if not 1, wide ones get a quarter.")
    ] = 1,
    motion_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the rate for the velocity head; 0 leaves it as it is.")
    ] = 1,
    beta1: Annotated[float, typer.Option(min=0, max=1, help="Adam's decay of the mean gradient.")] = 0.9,
    beta2: Annotated[float, typer.Option(min=0, max=1, help="Adam's decay of the mean square.")] = 0.999,
    eps: Annotated[float, typer.Option(help="Adam's; gradients of a mean loss are small.")] = 1e-15,
    clip_gradient: Annotated[float | None, typer.Option(help="Largest norm of the gradient of each part.")] = None,
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
            context,
            middle,
            labels,
            noise,
            exposure,
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
        motion_share=motion_share,
        betas=(beta1, beta2),
        eps=eps,
        clip_gradient=clip_gradient,
        average=average,
        flow_weight=flow_weight,
        levels_weight=levels_weight,
        smooth_weight=smooth_weight,
        blend_weight=blend_weight,
        flow_only=flow_only,
        precision=precision.value,
        save_every=save_every,
        seed=seed,
    )
    if device == "auto" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"  # torchrun: one GPU for each process
    chosen = choose_device(device)
    frames = cache or output / "cache"
    console.print(f"decoded frames are kept in {frames}", highlight=False, soft_wrap=True)
    clips = load_clips(data, frames, downscale)
    held_out = load_clips(validation, frames, downscale) if validation else []
    stills = [image for path in pictures or [] for image in load_pictures(path)]
    torch.manual_seed(seed)
    model = STIF(CONFIGS[config]) if start_from is None else load_model(start_from)
    curves = summary_writer(output) if tensorboard and is_first_process() else None

    losses: deque[float] = deque(maxlen=save_every)
    errors: deque[float] = deque(maxlen=save_every)

    total, seconds = stage_one + stage_two, deque[float](maxlen=LINE_EVERY)

    def report(step: Step) -> None:
        losses.append(step.loss)
        seconds.append(step.seconds)
        progress.update(task, description=f"loss {step.loss:.4f}", completed=step.iteration)
        if len(losses) in FIRST_LINES or step.iteration % LINE_EVERY == 0:  # a bar does not show in a file or a pipe
            flow = "" if step.flow_error is None else f", flow error {step.flow_error:.2f} pixels"
            pace = f"{np.mean(seconds):.2f} s an iteration, rate {step.learning_rate:.1e}"
            console.print(f"{step.iteration} of {total}: loss {step.loss:.4f}{flow}; {pace}", highlight=False)
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
        task = progress.add_task("training", total=total)
        usable = train_model(model, clips, options, output, chosen, workers, report, validate, stills)
    if is_first_process() and not seconds:
        console.print(f"{output / 'last.pt'} holds a finished run of {total} iterations: nothing was left to do")
    if is_first_process():
        save_model(usable, output / f"{config}.safetensors")
        console.print(f"wrote {output / f'{config}.safetensors'}")


def summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the package tensorboard: pip install 'stif-rt[train]'") from error
    return SummaryWriter(str(folder))
