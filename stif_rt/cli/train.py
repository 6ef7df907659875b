"""``stif-rt train``."""

import difflib
import inspect
import os
import sys
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from stif_rt.cli.options import MAX_CACHE, Device, MaxCache, parse_bytes
from stif_rt.cli.terminal import console, progress_bar
from stif_rt.data.clips import load_clips, load_pictures
from stif_rt.errors import CannotRunError
from stif_rt.evaluation.validation import append_points, validate
from stif_rt.model.checkpoints import load_model, save_model
from stif_rt.model.config import CONFIGS
from stif_rt.model.stif import STIF
from stif_rt.runtime import choose_device, find_weights
from stif_rt.runtime.weights import WEIGHTS_FOLDER
from stif_rt.training.declare import declared, parameters
from stif_rt.training.examples import Recipe
from stif_rt.training.train import Options, Step, is_first_process
from stif_rt.training.train import train as train_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


FIRST_LINES, LINE_EVERY = (1, 2, 5, 10, 20), 50
"""Iterations of this run that print a line, and how many lie between all others that do."""


def read_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the values of a recipe the defaults of the other options. Raises BadParameter for what is no option."""
    if path is None:
        return None
    if not path.exists() and not path.suffix and (bundled := WEIGHTS_FOLDER / f"{path}.toml").is_file():
        path = bundled
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
        typer.Option(
            help="TOML file of values for these options, or the name of a bundled one, such as stif-s.",
            callback=read_recipe,
            is_eager=True,
        ),
    ] = None,
    config: Annotated[str, typer.Option(help=f"{', '.join(CONFIGS)}.")] = "stif",
    start_from: Annotated[
        Path | None, typer.Option(help="Weights to start from, or the name of bundled ones, instead of random ones.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded frames, else OUTPUT/cache.")] = None,
    max_cache: MaxCache = MAX_CACHE,
    downscale: Annotated[
        float, typer.Option(min=0.1, help="Shrink clips by this before use, to shed compression.")
    ] = 1,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="Images to set in motion, besides the clips' own frames.")
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Clips to validate on at each checkpoint; OUTPUT/validation.csv has the curve."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that cut examples.")] = 1,
    device: Device = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves for TensorBoard to OUTPUT.")] = False,
    **values: Any,
) -> None:
    """Train a model: the paper's recipe, every number an option. Several GPUs: torchrun -m stif_rt.cli train ..."""
    if config not in CONFIGS:
        raise ValueError(f"unknown configuration {config!r}; there are: {', '.join(CONFIGS)}")
    cut = Recipe(**{field.name: values.pop(field.name) for field in declared(Recipe)})
    options = Options(recipe=cut, **values)
    if device == "auto" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"  # torchrun: one GPU for each process
    torch_device = choose_device(device)
    frames = cache or output / "cache"
    console.print(f"decoded frames are kept in {frames}", highlight=False, soft_wrap=True)
    most_bytes = parse_bytes(max_cache, "--max-cache")
    clips = load_clips(data, frames, downscale, most_bytes)
    held_out = load_clips(validation, frames, downscale, most_bytes) if validation else []
    still_images = [image for path in pictures or [] for image in load_pictures(path)]
    torch.manual_seed(options.seed)
    model = STIF(CONFIGS[config]) if start_from is None else load_model(find_weights(start_from))
    curves = summary_writer(output) if tensorboard and is_first_process() else None

    losses: deque[float] = deque(maxlen=options.save_every)
    errors: deque[float] = deque(maxlen=options.save_every)

    total, seconds = options.stage_one + options.stage_two, deque[float](maxlen=LINE_EVERY)

    def report(step: Step) -> None:
        losses.append(step.loss)
        seconds.append(step.seconds)
        progress.update(task, description=f"loss {step.loss:.4f}", completed=step.iteration)
        if len(losses) in FIRST_LINES or step.iteration % LINE_EVERY == 0:  # a bar does not show in a file or a pipe
            flow = "" if step.flow_error is None else f", flow error {step.flow_error:.2f} pixels"
            pace = f"{np.mean(seconds):.2f} s an iteration, rate {step.learning_rate:.1e}"
            line = f"{step.iteration} of {total}: loss {step.loss:.4f}{flow}; {pace}"
            console.print(line, highlight=False, soft_wrap=True)
        if curves is not None:
            curves.add_scalar("loss", step.loss, step.iteration)
        if step.flow_error is not None:
            errors.append(step.flow_error)
            if curves is not None:
                curves.add_scalar("flow error", step.flow_error, step.iteration)
        if curves is not None:
            curves.add_scalar("learning rate", step.learning_rate, step.iteration)

    def checkpoint(model: STIF, iteration: int) -> None:
        flow = f", flow error {np.mean(errors):.2f} pixels" if errors else ""
        console.print(f"{iteration}: loss {np.mean(losses):.5f}{flow}")
        points = validate(model, held_out, cut.scale, device) if held_out else []
        for texture, frames, psnr, bicubic in points:
            shown = f"{texture}, {frames}"
            console.print(f"{iteration}: {shown}: {psnr:.2f} dB, {psnr - bicubic:+.2f} over bicubic")
            if curves is not None:
                curves.add_scalar(f"PSNR {shown}", psnr, iteration)
        if points:
            append_points(output / "validation.csv", iteration, points)

    with progress_bar() as progress:
        task = progress.add_task("training", total=total)
        usable = train_model(model, clips, options, output, torch_device, workers, report, checkpoint, still_images)
    if is_first_process() and not seconds:
        console.print(f"{output / 'last.pt'} holds a finished run of {total} iterations: nothing was left to do")
    if is_first_process():
        save_model(usable, output / f"{config}.safetensors")
        console.print(f"wrote {output / f'{config}.safetensors'}")


def _declare() -> None:
    """Adds the options that the dataclasses declare to the command's own."""
    own = inspect.signature(train)
    fixed = [parameter for parameter in own.parameters.values() if parameter.kind != inspect.Parameter.VAR_KEYWORD]
    made = [*parameters(Recipe), *parameters(Options)]
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in fixed]
    train.__signature__ = own.replace(parameters=[*keywords, *made])  # type: ignore[attr-defined]
    train.__annotations__ |= {parameter.name: parameter.annotation for parameter in made}


_declare()


def summary_writer(folder: Path) -> Any:
    """A writer of TensorBoard's files. Raises CannotRunError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise CannotRunError("--tensorboard needs the package tensorboard: pip install 'stif-rt[train]'") from error
    return SummaryWriter(str(folder))
