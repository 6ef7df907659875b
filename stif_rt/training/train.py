"""The two-stage training schedule of the paper (Section 4.1), with every number an option."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from stif_rt.data.clips import Clip
from stif_rt.errors import CannotRunError
from stif_rt.files import whole_file
from stif_rt.geometry import make_geometry
from stif_rt.model.compact import CompactEncoder
from stif_rt.model.config import CHANNELS, HEAD_STRIDE, Config
from stif_rt.model.siren import Siren
from stif_rt.model.stif import STIF
from stif_rt.model.velocity import Velocities, resize
from stif_rt.ops.implicit.interface import View
from stif_rt.ops.implicit.reference import ReferenceKernels
from stif_rt.ops.implicit.weights import RADIANS, fold
from stif_rt.training.declare import option
from stif_rt.training.examples import Batch, Batches, Recipe

log = logging.getLogger(__name__)


SCHEDULE, OPTIMISER, LOSSES = "Schedule", "Optimiser", "Losses"


@dataclass(frozen=True)
class Options:
    """The paper's numbers, and what networks that find velocity need beside them.

    ``learning_rate`` falls to ``final_learning_rate`` along a cosine. Shares of it are explained at
    ``parameter_groups``. The average of the weights, where there is one, is what is saved. In bfloat16 the encoder's
    activations and the implicit functions' products have that dtype, pre-activations stay float32.
    """

    recipe: Recipe = field(default_factory=Recipe)
    stage_one: int = option(450_000, SCHEDULE, "Iterations at the scale of the examples.", min=0)
    stage_two: int = option(150_000, SCHEDULE, "Iterations at scales drawn for each batch.", min=0)
    min_scale: float = option(1.0, SCHEDULE, "Smallest scale of stage two.", min=0.1)
    max_scale: float = option(4.0, SCHEDULE, "Largest scale of stage two.", min=0.1)
    usual_scale: float = option(0.0, SCHEDULE, "Share of stage two's batches at stage one's scale.", min=0, max=1)
    batch: int = option(24, SCHEDULE, "Examples of an iteration, over all processes.", min=1)
    learning_rate: float = option(1e-4, SCHEDULE, "At first and after restarts.", min=0)
    final_learning_rate: float = option(1e-7, SCHEDULE, "Before restarts and at last.", min=0)
    period: int = option(150_000, SCHEDULE, "Iterations between restarts of the cosine.", min=1)
    warm_up: int = option(0, SCHEDULE, "Iterations over which the rate rises from zero.", min=0)
    average: float = option(0.0, SCHEDULE, "Decay of the weights' moving average; 0 for none.", min=0, max=1)
    precision: Literal["float32", "bfloat16", "float16"] = option("float32", SCHEDULE, "Of activations and products.")
    save_every: int = option(1000, SCHEDULE, "Iterations between checkpoints.", min=1)
    seed: int = option(0, SCHEDULE, "Of weights and examples.")
    siren_share: float = option(
        1.0, OPTIMISER, "Share of the rate for SIREN layers; if not 1, wide ones get a quarter.", min=0, max=1
    )
    motion_share: float = option(
        1.0, OPTIMISER, "Share of the rate for the velocity head; 0 leaves it as it is.", min=0, max=1
    )
    beta1: float = option(0.9, OPTIMISER, "Adam's decay of the mean gradient.", min=0, max=1)
    beta2: float = option(0.999, OPTIMISER, "Adam's decay of the mean square.", min=0, max=1)
    # of a loss that is a mean, gradients of the paper's alignment are as small as 1e-11: Adam's 1e-8 would freeze it
    eps: float = option(1e-15, OPTIMISER, "Adam's; far below 1e-8, for gradients of a mean loss are small.", min=0)
    clip_gradient: float | None = option(
        None, OPTIMISER, "Largest norm of the gradient of head, encoder and functions, each by itself.", min=0
    )
    flow_only: bool = option(False, LOSSES, "Train the velocity head alone, on known flow.")
    flow_weight: float = option(0.0, LOSSES, "Weight of the flow's error, per pixel; follows the rate.", min=0)
    levels_weight: float = option(0.0, LOSSES, "Of the velocity's at all levels of its pyramid; likewise.", min=0)
    smooth_weight: float = option(0.0, LOSSES, "Of the velocity's slope away from edges; likewise.", min=0)
    blend_weight: float = option(0.0, LOSSES, "Of the error of the blended frames without the residual.", min=0)

    def learning_rate_at(self, iteration: int) -> float:
        phase = (iteration % self.period) / self.period
        low, high = self.final_learning_rate, self.learning_rate
        warmth = min(1.0, (iteration + 1) / max(1, self.warm_up))
        return warmth * (low + (high - low) * (1 + math.cos(math.pi * phase)) / 2)


def parameter_groups(model: STIF, siren_share: float = 1.0, motion_share: float = 1.0) -> list[dict[str, Any]]:
    """Parameters for the optimizer, each group with its ``share`` of the learning rate.

    A step of Adam moves a layer's pre-activations by up to 30 times rate, inputs and activation: by about a radian at
    usual rates, where 256 sines come in and sines follow. Unless share is 1, such a layer gets a quarter of that share.
    """
    head, encoder, functions = parts(model)
    groups = [{"params": encoder, "share": 1.0}]
    if head:
        groups.append({"params": head, "share": motion_share})
    if siren_share == 1:
        return [*groups, {"params": functions, "share": 1.0}]
    hidden = [layer for net in model.implicit_functions.children() for layer in cast(Siren, net).linears[1:-1]]
    wide = [parameter for layer in hidden if layer.in_features > CHANNELS for parameter in layer.parameters()]
    known = set(wide)
    groups.append({"params": [parameter for parameter in functions if parameter not in known], "share": siren_share})
    return [*groups, {"params": wide, "share": siren_share / 4}] if wide else groups


def parts(model: STIF) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the velocity head (none where there is none), of the rest of the encoder, of the functions."""
    head = list(model.encoder.velocity_head.parameters()) if isinstance(model.encoder, CompactEncoder) else []
    known = set(head)
    encoder = [parameter for parameter in model.encoder.parameters() if parameter not in known]
    return head, encoder, list(model.implicit_functions.parameters())


def charbonnier(output: Tensor, truth: Tensor) -> Tensor:
    """mean sqrt(difference^2 + 1e-6): a mean, so that large scales do not outweigh small ones."""
    return torch.sqrt((output - truth) ** 2 + 1e-6).mean()


def flow_error(flow: Tensor, batch: Batch) -> Tensor:
    """Mean distance, in input pixels, between the flow and the known one, over where that is visible; 0 if nowhere.

    flow: [B, T, H, W, 4], output pixels.
    """
    difference = ((flow - batch.flow) / batch.scale).unflatten(-1, (2, 2))  # (frame, axis)
    distance = torch.sqrt((difference**2).sum(-1) + 1e-4)
    return (distance * batch.visible).sum() / batch.visible.sum().clamp(min=1)


LEVEL_SHARES = (0.05, 0.1, 0.2, 0.4, 1.0)
"""Weights of the levels' errors, from coarse to fine."""


def levels_error(levels: tuple[Tensor, ...], batch: Batch) -> Tensor:
    """Weighted sum of the mean errors of the velocity, in input pixels, at every level of the pyramid; 0 where none is
    known: only midway between the inputs is the velocity that of the flow.

    levels: as ``Velocities`` has them. After Gauss-Newton an error counts half of what it does after the network.
    """
    midway = (batch.times == 0.5).float()[..., None, None, None]
    weight = batch.visible.amax(-1, keepdim=True) * midway
    truth = (batch.flow[..., 2:] - batch.flow[..., :2]) / batch.scale
    truth, weight = ((truth * weight).sum(1).movedim(-1, 1), weight.sum(1).movedim(-1, 1).clamp(max=1))
    total = truth.new_zeros(())
    for number, v in enumerate(levels):
        size = (v.shape[-2], v.shape[-1])
        area = F.adaptive_avg_pool2d(weight, size)
        known = (area > 0.5).float()
        expected = F.adaptive_avg_pool2d(truth, size) / area.clamp(min=1e-4)
        distance = ((v - expected).square().sum(1, keepdim=True) + 1e-4).sqrt()
        level_weight = LEVEL_SHARES[number // 2] * (1.0 if number % 2 else 0.5)
        total = total + level_weight * (distance * known).sum() / known.sum().clamp(min=1)
    return total


def slope(velocity: Tensor, frames: Tensor) -> Tensor:
    """Mean slope of a velocity [B, 2, h, w] where the mean of the frames [B, 2, 3, H, W] has no edges."""
    image = F.adaptive_avg_pool2d(frames.mean(1), (velocity.shape[-2], velocity.shape[-1]))
    total = velocity.new_zeros(())
    for dim in (-1, -2):
        flat = (-10 * torch.diff(image, dim=dim).abs().mean(1)).exp()
        total = total + (torch.diff(velocity, dim=dim).abs().sum(1) * flat).mean()
    return total


class Made(NamedTuple):
    """rgb: [B, T, 3, H, W], not clamped; blend: the same without the residual, zero where there is none. flow:
    [B, T, H, W, 4], output pixels, None for "-f". velocities: of a network that finds them itself."""

    rgb: Tensor
    blend: Tensor
    flow: Tensor | None
    velocities: Velocities | None


class FastForm(nn.Module):
    """The model as it is trained: the same mathematics through the differentiable fast form of the kernels."""

    def __init__(self, model: STIF, precision: str, train_motion: bool = True) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.train_motion = train_motion

    def forward(self, frames: Tensor, times: Tensor, size: tuple[int, int], context: int = 0) -> Made:
        """frames: [B, 2, 3, h, w]. times: [B, T]. size: (H, W) of the picture of what the context surrounds."""
        velocities = None
        if isinstance(self.model.encoder, CompactEncoder):
            velocities = self.velocities(frames)
        inner = [slice(context, side - context) for side in frames.shape[-2:]]
        frames = frames[..., inner[0], inner[1]].contiguous()
        with self._mixed(frames):
            if velocities is None:
                features = self.model.encode(frames)
            else:
                stride, encoder = self.model.config.feature_stride, cast(CompactEncoder, self.model.encoder)
                border, (height, width) = context // stride, (side // stride for side in frames.shape[-2:])
                v = resize(velocities.velocity, HEAD_STRIDE // stride)
                v = v[..., border : border + height, border : border + width]
                map0, map1 = (encoder.extract(frames[:, k], matching=False)[0] for k in (0, 1))
                features = encoder.align(map0, map1, v)
        functions = self.model.implicit_functions
        kernels = ReferenceKernels(fold(functions, RADIANS), torch.bfloat16 if self._half else torch.float32)
        geometry = make_geometry(self.model.config, (frames.shape[-2], frames.shape[-1]), size).to(frames.device)
        view = View.whole(times, geometry)
        projections = kernels.project(features.to(torch.float32), frames)
        feature, flow = kernels.implicit(projections, view)
        shown = times.new_zeros((*view.shape, 4)) if flow is None else flow
        detail, blend = kernels.decode_apart(projections, view, feature, shown, view.box)
        return Made(detail + blend, blend, flow, velocities)

    def velocities(self, frames: Tensor) -> Velocities:
        """The velocities of frames of any size, by the velocity head. Without gradients unless it is trained."""
        head = cast(CompactEncoder, self.model.encoder).velocity_head
        h, w = frames.shape[-2:]
        unit = self.model.config.multiple
        padded = F.pad(frames.flatten(0, 1), (0, -w % unit, 0, -h % unit), mode="replicate").unflatten(0, (-1, 2))
        with torch.set_grad_enabled(self.train_motion and torch.is_grad_enabled()), self._mixed(frames):
            velocities: Velocities = head(*(head.extract(padded[:, k])[1] for k in (0, 1)))
        return velocities

    @property
    def _half(self) -> bool:
        return self.precision == "bfloat16"

    def _mixed(self, frames: Tensor) -> torch.autocast:
        dtype = getattr(torch, self.precision)
        return torch.autocast(frames.device.type, dtype, enabled=dtype != torch.float32)


class Step(NamedTuple):
    """The state of training after an iteration, for the caller.

    loss: of the picture alone. flow_error: input pixels, None where the batch has no known flow. seconds: it took.
    """

    iteration: int
    loss: float
    flow_error: float | None
    learning_rate: float
    seconds: float


OLDEST_PYTORCH = (2, 9)


def train(
    model: STIF,
    clips: list[Clip],
    options: Options,
    output: Path,
    device: torch.device,
    workers: int = 1,
    report: Callable[[Step], None] = lambda step: None,
    validate: Callable[[STIF, int], None] | None = None,
    pictures: Sequence[NDArray[np.uint8]] = (),
) -> STIF:
    """Trains ``model`` in place, resuming from ``output``/last.pt where that exists. Returns the model to be used.

    Under ``torchrun`` every process works on its share of the batch. A resumed run repeats an unbroken one exactly:
    batches depend on their number only, and the checkpoint holds everything else. A step whose gradient is not finite
    is left out and logged.

    Raises:
        FloatingPointError: for a loss that is not finite.
        ValueError: for options that do not fit each other, the network or the number of processes, or a checkpoint of
            another configuration.
        CannotRunError: for a version of PyTorch that is too old.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_PYTORCH:
        raise CannotRunError(
            f"training needs PyTorch {'.'.join(map(str, OLDEST_PYTORCH))} or later, and this is {torch.__version__}: "
            "pip install 'stif-rt[train]'"
        )
    rank, world = _join_processes(device)
    _check(model, options, world)
    torch.manual_seed(options.seed)
    model.to(device).train()
    fast: nn.Module = FastForm(model, options.precision, train_motion=options.motion_share > 0)
    objective = Objective(fast, options)
    network: nn.Module = objective
    if world > 1:
        network = DistributedDataParallel(objective, find_unused_parameters=_has_unused(model, options))
    groups = parameter_groups(model, options.siren_share, options.motion_share)
    optimizer = torch.optim.Adam(
        groups, lr=options.learning_rate, betas=(options.beta1, options.beta2), eps=options.eps
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.average)) if options.average else None
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
    checkpoint = output / "last.pt"
    done = 0
    if checkpoint.exists():
        done = _resume(checkpoint, options, device, model, optimizer, average, scaler)
        log.info("resumed %s after iteration %d", checkpoint, done)

    total = options.stage_one + options.stage_two
    start = time.perf_counter()
    for number, batch in enumerate(
        _batches(clips, pictures, options, done, total, rank, world, workers, patch_unit(model.config)), done
    ):
        batch = batch.to(device)
        rate = options.learning_rate_at(number)
        for group, own in zip(optimizer.param_groups, groups, strict=True):  # a checkpoint's groups have its shares
            group["lr"] = rate * own["share"]
        losses: Losses = network(batch, rate / options.learning_rate)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(losses.total).backward()
        if not losses.total.isfinite():
            raise FloatingPointError(
                f"the loss of iteration {number + 1} is {losses.total.item()}: the run has diverged. "
                f"{checkpoint} is of before; resume with a lower learning rate"
            )
        scaler.unscale_(optimizer)
        norm = _clip(model, options.clip_gradient)
        if norm.isfinite() or scaler.is_enabled():  # the scaler leaves such a step out by itself
            scaler.step(optimizer)
        else:
            log.warning("iteration %d: the gradient is %f, the step is left out", number + 1, norm.item())
        scaler.update()
        if average is not None:
            average.update_parameters(model)
        now = time.perf_counter()
        report(Step(number + 1, float(losses.picture.detach()), _number(losses.flow), rate, now - start))
        start = now
        if (number + 1) % options.save_every == 0 or number + 1 == total:
            if rank == 0:
                _save(checkpoint, options, number + 1, model, optimizer, average, scaler)
                if validate is not None:
                    validate(_usable(model, average), number + 1)
            start = time.perf_counter()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # none may leave while the first one still writes
        torch.distributed.destroy_process_group()
    return _usable(model, average)


class Losses(NamedTuple):
    """total: what is minimised. picture: its part that is the picture's, or the velocity's where that alone is trained.
    flow: the flow's error in input pixels, None where none is known."""

    total: Tensor
    picture: Tensor
    flow: Tensor | None


class Objective(nn.Module):
    """The loss of a batch, as a module: gradients of several processes meet in its parameters."""

    def __init__(self, fast: nn.Module, options: Options) -> None:
        super().__init__()
        self.fast, self.options = cast(FastForm, fast), options

    def forward(self, batch: Batch, warmth: float) -> Losses:
        """warmth: of the learning rate, from 1 on downwards; the weights of what guides the flow follow it."""
        options, known = self.options, bool(batch.visible.any())
        if options.flow_only:
            velocities = self.fast.velocities(batch.frames)
            wrong = levels_error(velocities.levels, batch)
            return Losses(wrong + options.smooth_weight * slope(velocities.velocity, batch.frames), wrong, None)
        size = (batch.truth.shape[-2], batch.truth.shape[-1])
        made = self.fast(batch.frames, batch.times, size, batch.context)
        picture = charbonnier(made.rgb, batch.truth)
        total = picture
        if options.blend_weight:
            total = total + options.blend_weight * charbonnier(made.blend, batch.truth)
        error = flow_error(made.flow, batch) if known and made.flow is not None else None
        if error is not None:
            total = total + warmth * options.flow_weight * error
        if made.velocities is not None and self.fast.train_motion:
            if options.levels_weight:
                total = total + warmth * options.levels_weight * levels_error(made.velocities.levels, batch)
            total = total + warmth * options.smooth_weight * slope(made.velocities.velocity, batch.frames)
        return Losses(total, picture, error)


def patch_unit(config: Config) -> int:
    """The number of which sides of training patches are multiples: the velocity head pads by itself."""
    return config.feature_stride if config.motion else config.multiple


def _check(model: STIF, options: Options, world: int) -> None:
    recipe, config = options.recipe, model.config
    if options.batch % world:
        raise ValueError(f"a batch of {options.batch} cannot be shared by {world} processes")
    unit = patch_unit(config)
    if recipe.patch % unit or recipe.context % unit:
        raise ValueError(f"patch and context must be multiples of {unit}, not {recipe.patch} and {recipe.context}")
    if config.fixed_time:
        raise ValueError("a fixed-time model knows t = 0.5 only and cannot be trained on the times of a window")
    if not config.motion and (options.flow_only or options.levels_weight or options.smooth_weight or recipe.context):
        raise ValueError("flow_only, levels_weight, smooth_weight and context are for a network with a velocity head")
    if recipe.context and options.levels_weight:
        raise ValueError("the levels' errors need flow that is known of all that is shown: context must be 0")
    if options.flow_only and not recipe.middle:
        raise ValueError("flow_only needs targets that are midway between the inputs: middle must not be 0")


def _has_unused(model: STIF, options: Options) -> bool:
    """Whether parameters get no gradient, which DistributedDataParallel must be told."""
    return model.config.upsampling_head or options.flow_only or model.config.motion


def _clip(model: STIF, limit: float | None) -> Tensor:
    """Limits the gradient of each part by itself. Returns the largest of their norms before that."""
    trained = [[parameter for parameter in part if parameter.grad is not None] for part in parts(model)]
    norms = [nn.utils.clip_grad_norm_(part, limit or math.inf) for part in trained if part]
    return torch.stack(norms).max()  # NaN where one is


def _number(value: Tensor | None) -> float | None:
    return None if value is None else float(value.detach())


def _usable(model: STIF, average: AveragedModel | None) -> STIF:
    return model if average is None else cast(STIF, average.module)


def is_first_process() -> bool:
    """Whether this process is the one that writes files: the only one, or torchrun's first."""
    return int(os.environ.get("RANK", 0)) == 0


def _join_processes(device: torch.device) -> tuple[int, int]:
    """(rank, number of processes); joins the group that ``torchrun`` announces."""
    if "RANK" not in os.environ:
        return 0, 1
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _batches(
    clips: list[Clip],
    pictures: Sequence[NDArray[np.uint8]],
    options: Options,
    done: int,
    total: int,
    rank: int,
    world: int,
    workers: int,
    unit: int,
) -> Iterator[Batch]:
    """Batches ``done`` to ``total`` - 1, this process's share of each. unit: what sides of patches are multiples of."""
    stages = [
        (
            first,
            end,
            Batches(
                clips, options.recipe, options.batch // world, options.seed, pictures, scales, options.usual_scale, unit
            ),
        )
        for first, end, scales in (
            (0, options.stage_one, None),
            (options.stage_one, total, (options.min_scale, options.max_scale)),
        )
        if first < end  # both are made, and so checked, before the first iteration
    ]
    for first, end, data in stages:
        numbers = range(max(first, done) * world + rank, end * world, world)
        yield from DataLoader(
            data, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=4 if workers else None
        )


def _save(
    path: Path,
    options: Options,
    iteration: int,
    model: STIF,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    scaler: torch.amp.GradScaler,
) -> None:
    state = {
        "iteration": iteration,
        "options": asdict(options),
        "config": model.config.to_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
        "scaler": scaler.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        torch.save(state, temporary)


def _resume(
    path: Path,
    options: Options,
    device: torch.device,
    model: STIF,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    scaler: torch.amp.GradScaler,
) -> int:
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if state["config"] != model.config.to_dict():
        raise ValueError(f"{path} holds another configuration, {state['config']}: choose another output folder")
    changed = {
        name: (value, asdict(options)[name])
        for name, value in state["options"].items()
        if value != asdict(options)[name]
    }
    if changed:
        log.warning("options differ from those of %s (then, now): %s", path, changed)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    if average is not None and state["average"] is not None:
        average.load_state_dict(state["average"])
    return int(state["iteration"])
