"""The two-stage training schedule of the paper (Section 4.1), with every number an option."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from stif_rt.data.clips import Clip
from stif_rt.files import whole_file
from stif_rt.geometry import Box, make_geometry
from stif_rt.model.config import CHANNELS
from stif_rt.model.siren import Siren
from stif_rt.model.stif import STIF
from stif_rt.ops.implicit.reference import ReferenceKernels
from stif_rt.ops.implicit.weights import RADIANS, fold
from stif_rt.training.examples import Batch, Batches, Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The paper's numbers.

    stage_one, stage_two: iterations at the fixed scale of ``recipe`` and at scales uniform in ``stage_two_scales``.
    batch: windows per iteration over all processes. learning_rate falls to ``final_learning_rate`` along a cosine that
    restarts every ``period`` iterations; over the first ``warm_up`` iterations it rises from zero. siren_share: share
    of it that SIREN layers get, see ``parameter_groups``. betas: Adam's. clip_gradient: largest norm of the gradient,
    None for no limit.
    average: decay of the exponential moving average of the weights, 0 for none; what is saved is the average.
    flow_weight: weight in the loss of the mean error of the flow, in input pixels, where it is known; it follows
        the learning rate.
    precision: dtype of the encoder's activations. In bfloat16 the implicit functions' products are bfloat16 too (and
        their pre-activations float32), otherwise they stay float32.
    save_every: iterations between checkpoints.
    """

    recipe: Recipe = field(default_factory=Recipe)
    stage_one: int = 450_000
    stage_two: int = 150_000
    stage_two_scales: tuple[float, float] = (1.0, 4.0)
    batch: int = 24
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-7
    period: int = 150_000
    warm_up: int = 0
    siren_share: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_gradient: float | None = None
    average: float = 0.0
    flow_weight: float = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    save_every: int = 1000
    seed: int = 0

    def learning_rate_at(self, iteration: int) -> float:
        phase = (iteration % self.period) / self.period
        low, high = self.final_learning_rate, self.learning_rate
        warmth = min(1.0, (iteration + 1) / max(1, self.warm_up))
        return warmth * (low + (high - low) * (1 + math.cos(math.pi * phase)) / 2)


def parameter_groups(model: STIF, siren_share: float) -> list[dict[str, Any]]:
    """Parameters for the optimizer, each group with its ``share`` of the learning rate.

    A step moves a layer's pre-activations by up to 30 times rate, inputs and activation: by a whole radian at the usual
    rates where 256 sines come in and sines follow. Unless share is 1, such a layer gets a quarter of the others' share.
    """
    if siren_share == 1:
        return [{"params": list(model.parameters()), "share": 1.0}]
    hidden = [layer for net in model.implicit_functions.children() for layer in cast(Siren, net).linears[1:-1]]
    wide = [parameter for layer in hidden if layer.in_features > CHANNELS for parameter in layer.parameters()]
    known = set(wide)
    others = [parameter for parameter in model.implicit_functions.parameters() if parameter not in known]
    return [
        {"params": list(model.encoder.parameters()), "share": 1.0},
        {"params": others, "share": siren_share},
        {"params": wide, "share": siren_share / 4},
    ]


def charbonnier(output: Tensor, truth: Tensor) -> Tensor:
    """mean sqrt(difference^2 + 1e-6): a mean, so that large scales do not outweigh small ones."""
    return torch.sqrt((output - truth) ** 2 + 1e-6).mean()


def flow_error(flow: Tensor, batch: Batch) -> Tensor:
    """Mean distance, in input pixels, between the flow and the known one, over where that is visible; 0 if nowhere.

    flow: [B, T, H, W, 4], output pixels.
    """
    scale = batch.truth.shape[-1] / batch.frames.shape[-1]
    difference = ((flow - batch.flow) / scale).unflatten(-1, (2, 2))  # (frame, axis)
    distance = torch.sqrt((difference**2).sum(-1) + 1e-4)
    return (distance * batch.visible).sum() / batch.visible.sum().clamp(min=1)


class FastForm(nn.Module):
    """The model as it is trained: the same mathematics through the differentiable fast form of the kernels."""

    def __init__(self, model: STIF, precision: str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, frames: Tensor, times: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """frames: [B, 2, 3, h, w]. times: [B, T].

        Returns RGB [B, T, 3, H, W], not clamped, and the flow [B, T, H, W, 4] in output pixels, None for "-f".
        """
        dtype = getattr(torch, self.precision)
        with torch.autocast(frames.device.type, dtype, enabled=dtype != torch.float32):
            features = self.model.encode(frames)
        config = self.model.config
        products = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        kernels = ReferenceKernels(fold(self.model.implicit_functions, RADIANS), products)
        geometry = make_geometry(config, (frames.shape[-2], frames.shape[-1]), size).to(frames.device)
        whole = Box(0, 0, *size)
        projections = kernels.project(features.to(torch.float32), frames)
        feature, flow = kernels.implicit(projections, times, geometry, whole)
        return kernels.decode(projections, feature, flow, times, geometry, whole, whole), flow


class Step(NamedTuple):
    """What the caller is told after each iteration.

    loss: of the picture alone. flow_error: input pixels, None where the batch has no known flow. seconds: it took.
    """

    iteration: int
    loss: float
    flow_error: float | None
    learning_rate: float
    seconds: float


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
    is left out and logged; raises FloatingPointError for a loss that is not.
    """
    rank, world = _join_processes(device)
    if options.batch % world:
        raise ValueError(f"a batch of {options.batch} cannot be shared by {world} processes")
    if options.recipe.patch % 4:
        raise ValueError(f"the patch must be a multiple of 4 pixels, not {options.recipe.patch}")
    if model.config.fixed_time:
        raise ValueError("a fixed-time model knows t = 0.5 only and cannot be trained on the times of a window")
    torch.manual_seed(options.seed)
    model.to(device).train()
    network: nn.Module = FastForm(model, options.precision)
    if world > 1:
        unused = model.config.upsampling_head
        network = DistributedDataParallel(network, find_unused_parameters=unused)
    groups = parameter_groups(model, options.siren_share)
    optimizer = torch.optim.Adam(groups, lr=options.learning_rate, betas=options.betas)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.average)) if options.average else None
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
    checkpoint = output / "last.pt"
    done = 0
    if checkpoint.exists():
        done = _resume(checkpoint, options, device, model, optimizer, average, scaler)
        log.info("resumed %s after iteration %d", checkpoint, done)

    total = options.stage_one + options.stage_two
    start = time.perf_counter()
    for number, batch in enumerate(_batches(clips, pictures, options, done, total, rank, world, workers), done):
        batch = batch.to(device)
        rate = options.learning_rate_at(number)
        for group, own in zip(optimizer.param_groups, groups, strict=True):  # a checkpoint's groups have its shares
            group["lr"] = rate * own["share"]
        size = (batch.truth.shape[-2], batch.truth.shape[-1])
        rgb, flow = network(batch.frames, batch.times, size)
        loss = charbonnier(rgb, batch.truth)
        known = flow is not None and bool(batch.visible.any())
        error = flow_error(flow, batch) if known else loss.new_zeros(())
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss + options.flow_weight * rate / options.learning_rate * error).backward()
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss of iteration {number + 1} is {loss.item()}: the run has diverged. "
                f"{checkpoint} is of before; resume with a lower learning rate"
            )
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), options.clip_gradient or math.inf)
        if norm.isfinite() or scaler.is_enabled():  # the scaler leaves such a step out by itself
            scaler.step(optimizer)
        else:
            log.warning("iteration %d: the gradient is %f, the step is left out", number + 1, norm.item())
        scaler.update()
        if average is not None:
            average.update_parameters(model)
        now = time.perf_counter()
        report(Step(number + 1, float(loss.detach()), float(error.detach()) if known else None, rate, now - start))
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
) -> Iterator[Batch]:
    """Batches ``done`` to ``total`` - 1, this process's share of each."""
    stages = [
        (
            first,
            end,
            Batches(clips, replace(options.recipe, scales=scales), options.batch // world, options.seed, pictures),
        )
        for first, end, scales in (
            (0, options.stage_one, options.recipe.scales),
            (options.stage_one, total, options.stage_two_scales),
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
