"""Training examples: low-resolution windows of clips, and still pictures in known motion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stif_rt.data.clips import Clip
from stif_rt.data.resize import degrade
from stif_rt.data.synthetic_motion import render_motion
from stif_rt.training.declare import option
from stif_rt.training.labels import SMALLEST_LABELLED, label_flow

EXAMPLES = "Examples"


@dataclass(frozen=True)
class Recipe:
    """How a training example is cut. Pixels are those of the low resolution; inputs are a window's first and last
    frame."""

    patch: int = option(32, EXAMPLES, "Side of the patch, in input pixels.", min=1)
    context: int = option(0, EXAMPLES, "Pixels around the patch that only the velocity head sees.", min=0)
    scale: float = option(4.0, EXAMPLES, "Spatial scale of stage one.", min=0.1)
    window: int = option(9, EXAMPLES, "Frames of a window; the first and the last are the input.", min=2)
    min_window: int | None = option(None, EXAMPLES, "Shortest window, where they vary.", min=2)
    targets: int = option(3, EXAMPLES, "Frames of a window that are to be predicted.", min=1)
    middle: float = option(0.0, EXAMPLES, "Share of windows whose first target is the middle frame.", min=0, max=1)
    photometric: bool = option(False, EXAMPLES, "Random gain, gamma and channel order; one example in five dark.")
    noise: float = option(0.0, EXAMPLES, "Largest deviation of noise on the inputs, of 1.", min=0, max=1)
    exposure: float = option(0.0, EXAMPLES, "Largest difference in exposure of the inputs, a logarithm.", min=0, max=1)
    candidates: int = option(1, EXAMPLES, "Places drawn for each example; the busiest is taken.", min=1)
    synthetic: float = option(0.0, EXAMPLES, "Share of still pictures in known motion.", min=0, max=1)
    largest_motion: float = option(12.0, EXAMPLES, "Their largest translation between the inputs, pixels.", min=0)
    labels: bool = option(False, EXAMPLES, "Label the flow of clips by OpenCV's DIS (see training.labels).")

    def __post_init__(self) -> None:
        if self.shortest_window > self.window:
            raise ValueError(f"min_window is {self.min_window}, more than window, which is {self.window}")

    @property
    def shortest_window(self) -> int:
        return self.min_window or self.window

    @property
    def shown(self) -> int:
        """Side of the inputs, low-resolution pixels."""
        return self.patch + 2 * self.context


class Batch(NamedTuple):
    """frames: [B, 2, 3, h, w] low-resolution inputs, with their context. times: [B, T]. truth: [B, T, 3, H, W] of the
    patch. All float32 in [0, 1].

    flow: [B, T, H, W, 4], where each pixel of the truth is seen in the inputs, (x0, y0, x1, y1) in output pixels.
    visible: [B, T, H, W, 2], 1 where the flow is known and that place shows the same point. float32.
    context: input pixels around the patch that the frames show and the truth does not.
    """

    frames: Tensor
    times: Tensor
    truth: Tensor
    flow: Tensor
    visible: Tensor
    context: int

    @property
    def scale(self) -> float:
        """Pixels of the truth per pixel of the frames."""
        return self.truth.shape[-1] / (self.frames.shape[-1] - 2 * self.context)

    def to(self, device: torch.device) -> "Batch":
        tensors = {name: part.to(device) for name, part in self._asdict().items() if name != "context"}
        return self._replace(**tensors)


class _Cut(NamedTuple):
    """Sides of a batch's examples. patch, context: input pixels. truth, border: the same in pixels of the clips."""

    patch: int
    context: int
    truth: int
    border: int

    @property
    def side(self) -> int:
        return self.truth + 2 * self.border


class Batches(Dataset[Batch]):
    """Batch number n, wholly determined by (seed, n): a resumed run sees what an unbroken one would have seen."""

    def __init__(
        self,
        clips: Sequence[Clip],
        recipe: Recipe,
        size: int,
        seed: int,
        pictures: Sequence[NDArray[np.uint8]] = (),
        scales: tuple[float, float] | None = None,
        usual: float = 0.0,
        unit: int = 1,
    ) -> None:
        """scales: from which one is drawn for each batch, else the recipe's. usual: share of batches that have the
        recipe's all the same. unit: what sides of a patch are multiples of.

        Above the recipe's scale patch and context shrink, so that their truth is no larger than at that scale."""
        self.scales, self.usual, self.unit = scales or (recipe.scale, recipe.scale), usual, unit
        self.recipe, self.size, self.seed, self.pictures = recipe, size, seed, pictures
        sides = self._sides()
        if recipe.labels and sides[0] < SMALLEST_LABELLED:
            least = f"{SMALLEST_LABELLED}x{SMALLEST_LABELLED} pixels"
            raise ValueError(
                f"labels need examples of {least} or more, and some are {sides[0]}x{sides[0]}: enlarge patch"
            )
        side = sides[1]
        usable = [clip for clip in clips if min(clip.frames.shape[1:3]) >= side and clip.windows(recipe.window)]
        if not usable:
            raise ValueError(f"no clip has {recipe.window} frames without a cut at {side}x{side} pixels or more")
        self.clips = usable
        lengths = range(recipe.shortest_window, recipe.window + 1)
        self.windows = {length: [clip.windows(length) for clip in usable] for length in lengths}

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        cut = self._cut(self._draw_scale(rng))
        examples = [self._example(rng, cut) for _ in range(self.size)]
        frames, times, truth, flow, visible = (torch.stack(parts) for parts in zip(*examples, strict=True))
        return Batch(frames, times, truth, flow, visible, cut.context)

    def _draw_scale(self, rng: np.random.Generator) -> float:
        low, high = self.scales
        scale = low + (high - low) * rng.random()
        return self.recipe.scale if self.usual and rng.random() < self.usual else scale

    def _cut(self, scale: float) -> "_Cut":
        shrink = min(1.0, self.recipe.scale / scale)
        patch = max(1, round(self.recipe.patch * shrink / self.unit)) * self.unit
        context = round(self.recipe.context * shrink / self.unit) * self.unit
        # the border is the same on both sides, so that the patch is the centre exactly
        return _Cut(patch, context, round(patch * scale), round(context * scale))

    def _sides(self) -> tuple[int, int]:
        """The smallest and the largest of what may be cut, in pixels of the clips; the largest is up to a step of the
        rounding more where scales vary."""
        low, high = self.scales
        drawn = [self._cut(scale).side for scale in np.linspace(low, high, 100)]
        step = math.ceil(high) if low < high else 0
        usual = [self._cut(self.recipe.scale).side] if self.usual else []
        return min(drawn + usual), max([max(drawn) + step, *usual])

    def _example(self, rng: np.random.Generator, cut: "_Cut") -> tuple[Tensor, ...]:
        """The tensors of one example, without the axis B."""
        recipe, side = self.recipe, cut.side
        if rng.random() < recipe.synthetic:
            return self._in_motion(rng, cut)
        windows = [self._random_window(rng, side) for _ in range(recipe.candidates)]
        window = max(windows, key=_crop_score) if len(windows) > 1 else windows[0]
        length = len(window)
        order = self._targets(rng, length)
        window = np.ascontiguousarray(_random_flip_rotate(window[np.concatenate(([0, length - 1], order))], rng))
        if rng.random() < 0.5:  # time runs backwards
            window[[0, 1]], order = window[[1, 0]], length - 1 - order
        images = torch.from_numpy(window).permute(0, 3, 1, 2).float() / 255
        times = torch.from_numpy(order / (length - 1)).float()
        if recipe.labels:
            flow, visible = label_flow(window)
        else:
            flow = torch.zeros(len(times), side, side, 4)
            visible = flow[..., :2]
        return self._finish(rng, images, times, flow, visible, cut)

    def _targets(self, rng: np.random.Generator, length: int) -> NDArray[np.int64]:
        """Frames of a window that are to be predicted."""
        order = rng.choice(length, min(self.recipe.targets, length), replace=False)
        if self.recipe.middle and length % 2 and rng.random() < self.recipe.middle:
            order = np.concatenate(([length // 2], order[order != length // 2]))[: len(order)]
        return order

    def _random_window(self, rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
        """A random window of a clip, [length, side, side, 3]."""
        length = int(rng.integers(self.recipe.shortest_window, self.recipe.window + 1))
        counts = np.array([len(firsts) for firsts in self.windows[length]])
        weights = np.sqrt(counts)  # a long film must not crowd out short clips
        index = int(rng.choice(len(counts), p=weights / weights.sum()))
        clip = self.clips[index]
        first = self.windows[length][index][rng.integers(counts[index])]
        _, H, W, _ = clip.frames.shape
        y, x = rng.integers(H - side + 1), rng.integers(W - side + 1)
        return clip.frames[first : first + length, y : y + side, x : x + side]

    def _in_motion(self, rng: np.random.Generator, cut: "_Cut") -> tuple[Tensor, ...]:
        """Times are those of a window of the greatest length. Two fifths are one picture without cut-outs."""
        recipe, side = self.recipe, cut.side
        length = recipe.window
        times = (self._targets(rng, length) / (length - 1)).tolist()
        layers = [self._picture(rng) for _ in range(rng.choice((1, 2, 3, 4), p=(0.4, 0.25, 0.2, 0.15)))]
        largest = recipe.largest_motion * cut.truth / cut.patch
        images, flow, visible = render_motion(layers, times, side, largest, rng)
        return self._finish(rng, images, torch.tensor(times), flow, visible, cut)

    def _picture(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A still picture: one of those given, or a frame of a clip, flipped and turned."""
        if self.pictures and rng.random() < 0.5:
            picture = self.pictures[int(rng.integers(len(self.pictures)))]
        else:
            clip = self.clips[rng.integers(len(self.clips))]
            picture = clip.frames[rng.integers(len(clip.frames))]
        return _random_flip_rotate(picture[None], rng)[0]

    def _finish(
        self, rng: np.random.Generator, images: Tensor, times: Tensor, flow: Tensor, visible: Tensor, cut: "_Cut"
    ) -> tuple[Tensor, ...]:
        """images: the two inputs, then the targets, all at the targets' size and with the border around them."""
        recipe = self.recipe
        if recipe.photometric:
            images = _photometric(images, rng)
        shown = cut.patch + 2 * cut.context
        frames = degrade(images[:2], (shown, shown))
        if recipe.noise or recipe.exposure:
            gain = np.exp(rng.uniform(-recipe.exposure, recipe.exposure, (2, 1, 1, 1)) / 2)
            noise = rng.uniform(0, recipe.noise) * rng.standard_normal(frames.shape)
            frames = (frames * torch.from_numpy(gain) + torch.from_numpy(noise)).clamp(0, 1).float()
        inner = slice(cut.border, cut.border + cut.truth)
        return frames, times, images[2:, :, inner, inner], flow[:, inner, inner], visible[:, inner, inner]


def _crop_score(patch: NDArray[np.uint8]) -> float:
    """A crop's worth for training: change from the first to the last frame, seen coarsely, and detail in the first.

    Detail is the mean step between neighbours in a row; it counts twice, so that still places are taken too.
    """
    first, last = (patch[n, ::4, ::4].astype(np.float32) for n in (0, -1))
    detail = np.abs(np.diff(patch[0, ::4].astype(np.float32), axis=1))
    return float(np.abs(last - first).mean() + 2 * detail.mean())


def _random_flip_rotate(patch: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A view of [n, h, w, 3], flipped and rotated by right angles."""
    patch = np.rot90(patch, int(rng.integers(4)), axes=(1, 2))
    return patch[:, :, ::-1] if rng.random() < 0.5 else patch


def _photometric(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One gain, gamma and channel order for all frames of an example. One in five is dark, as film often is."""
    gamma, gain = np.exp(rng.uniform(-0.4, 0.4)), rng.uniform(0.5, 1.1)
    if rng.random() < 0.2:
        gain = rng.uniform(0, 0.5)
    return (images[:, rng.permutation(3).tolist()] ** gamma * gain).clamp(0, 1)
