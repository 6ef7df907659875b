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
from stif_rt.training.labels import label_flow


@dataclass(frozen=True)
class Recipe:
    """How a training example is cut.

    patch: side of the low-resolution patch, pixels. scales: range of the spatial scale, one per batch.
    windows: range of window lengths in frames; inputs are a window's first and last frame. targets: frames of the
    window, drawn at random, that are to be predicted. photometric: random gain, gamma and channel order; one example
    in five is made dark.
    candidates: places in the clips that are drawn for each example; the one that changes most and has most detail is
    taken.
    synthetic: share of examples that are still pictures in known motion (``data.synthetic_motion``).
    largest_motion: translation that those reach, in low-resolution pixels between the inputs.
    context: low-resolution pixels around the patch that the inputs show too; there, only the velocity head looks.
    middle: share of examples whose first target is midway between the inputs, where velocity is known.
    labels: whether the flow of clips is labelled (``training.labels``).
    noise: largest deviation of the noise that is added to the inputs, in [0, 1]; exposure: largest difference in
    exposure between them, as a logarithm. Both are drawn for each example.
    """

    patch: int = 32
    scales: tuple[float, float] = (4.0, 4.0)
    windows: tuple[int, int] = (9, 9)
    targets: int = 3
    photometric: bool = False
    candidates: int = 1
    synthetic: float = 0.0
    largest_motion: float = 12.0
    context: int = 0
    middle: float = 0.0
    labels: bool = False
    noise: float = 0.0
    exposure: float = 0.0

    @property
    def shown(self) -> int:
        """Side of the inputs, low-resolution pixels."""
        return self.patch + 2 * self.context


class Batch(NamedTuple):
    """frames: [B, 2, 3, h, w] low-resolution inputs, with their context. times: [B, T]. truth: [B, T, 3, H, W] of the
    patch. All float32 in [0, 1].

    flow: [B, T, H, W, 4], where each pixel of the truth is seen in the inputs, (x0, y0, x1, y1) in output pixels.
    visible: [B, T, H, W, 2], 1 where the flow is known and that place shows the same point. float32.
    """

    frames: Tensor
    times: Tensor
    truth: Tensor
    flow: Tensor
    visible: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(part.to(device) for part in self))


class Batches(Dataset[Batch]):
    """Batch number n, wholly determined by (seed, n): a resumed run sees what an unbroken one would have seen."""

    def __init__(
        self,
        clips: Sequence[Clip],
        recipe: Recipe,
        size: int,
        seed: int,
        pictures: Sequence[NDArray[np.uint8]] = (),
    ) -> None:
        side = math.ceil(recipe.shown * recipe.scales[1])
        usable = [clip for clip in clips if min(clip.frames.shape[1:3]) >= side and clip.windows(recipe.windows[1])]
        if not usable:
            raise ValueError(f"no clip has {recipe.windows[1]} frames without a cut at {side}x{side} pixels or more")
        self.clips, self.recipe, self.size, self.seed, self.pictures = usable, recipe, size, seed, pictures
        lengths = range(recipe.windows[0], recipe.windows[1] + 1)
        self.windows = {length: [clip.windows(length) for clip in usable] for length in lengths}

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        low, high = self.recipe.scales
        scale = low + (high - low) * rng.random()
        patch = round(self.recipe.patch * scale)
        border = round(self.recipe.context * scale)  # the same on both sides, so that the patch is the centre exactly
        examples = [self._example(rng, patch, border) for _ in range(self.size)]
        return Batch(*(torch.stack(parts) for parts in zip(*examples, strict=True)))

    def _example(self, rng: np.random.Generator, patch: int, border: int) -> Batch:
        """One example, without the axis B. patch, border: sides of the truth and of what is shown around it."""
        recipe, side = self.recipe, patch + 2 * border
        if rng.random() < recipe.synthetic:
            return self._in_motion(rng, patch, border)
        places = [self._place(rng, side) for _ in range(recipe.candidates)]
        window = max(places, key=_interest) if len(places) > 1 else places[0]
        length = len(window)
        order = self._targets(rng, length)
        window = np.ascontiguousarray(_turn(window[np.concatenate(([0, length - 1], order))], rng))
        if rng.random() < 0.5:  # time runs backwards
            window[[0, 1]], order = window[[1, 0]], length - 1 - order
        images = torch.from_numpy(window).permute(0, 3, 1, 2).float() / 255
        times = torch.from_numpy(order / (length - 1)).float()
        if recipe.labels:
            flow, visible = label_flow(window)
        else:
            flow = torch.zeros(len(times), side, side, 4)
            visible = flow[..., :2]
        return self._finish(rng, images, times, flow, visible, border)

    def _targets(self, rng: np.random.Generator, length: int) -> NDArray[np.int64]:
        """Frames of a window that are to be predicted."""
        order = rng.choice(length, min(self.recipe.targets, length), replace=False)
        if self.recipe.middle and length % 2 and rng.random() < self.recipe.middle:
            order = np.concatenate(([length // 2], order[order != length // 2]))[: len(order)]
        return order

    def _place(self, rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
        """A random window of a clip, [length, side, side, 3]."""
        length = int(rng.integers(self.recipe.windows[0], self.recipe.windows[1] + 1))
        counts = np.array([len(firsts) for firsts in self.windows[length]])
        share = np.sqrt(counts)  # a long film must not crowd out short clips
        chosen = int(rng.choice(len(counts), p=share / share.sum()))
        clip = self.clips[chosen]
        first = self.windows[length][chosen][rng.integers(counts[chosen])]
        _, H, W, _ = clip.frames.shape
        y, x = rng.integers(H - side + 1), rng.integers(W - side + 1)
        return clip.frames[first : first + length, y : y + side, x : x + side]

    def _in_motion(self, rng: np.random.Generator, patch: int, border: int) -> Batch:
        """Times are those of a window of the greatest length. Half of the scenes are one picture without cut-outs."""
        recipe, side = self.recipe, patch + 2 * border
        length = recipe.windows[1]
        times = (self._targets(rng, length) / (length - 1)).tolist()
        layers = [self._picture(rng) for _ in range(rng.choice((1, 2, 3), p=(0.5, 0.3, 0.2)))]
        largest = recipe.largest_motion * patch / recipe.patch
        images, flow, visible = render_motion(layers, times, side, largest, rng)
        return self._finish(rng, images, torch.tensor(times), flow, visible, border)

    def _picture(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A still picture: one of those given, or a frame of a clip, flipped and turned."""
        if self.pictures and rng.random() < 0.5:
            picture = self.pictures[int(rng.integers(len(self.pictures)))]
        else:
            clip = self.clips[rng.integers(len(self.clips))]
            picture = clip.frames[rng.integers(len(clip.frames))]
        return _turn(picture[None], rng)[0]

    def _finish(
        self, rng: np.random.Generator, images: Tensor, times: Tensor, flow: Tensor, visible: Tensor, border: int
    ) -> Batch:
        """images: the two inputs, then the targets, all at the targets' size and with the border around them."""
        recipe = self.recipe
        if recipe.photometric:
            images = _photometric(images, rng)
        frames = degrade(images[:2], (recipe.shown, recipe.shown))
        if recipe.noise or recipe.exposure:
            gain = np.exp(rng.uniform(-recipe.exposure, recipe.exposure, (2, 1, 1, 1)) / 2)
            noise = rng.uniform(0, recipe.noise) * rng.standard_normal(frames.shape)
            frames = (frames * torch.from_numpy(gain) + torch.from_numpy(noise)).clamp(0, 1).float()
        inner = slice(border, images.shape[-1] - border)
        return Batch(frames, times, images[2:, :, inner, inner], flow[:, inner, inner], visible[:, inner, inner])


def _interest(patch: NDArray[np.uint8]) -> float:
    """How much there is to learn: change from the first to the last frame, seen coarsely, and detail in the first.

    Detail is the mean step between neighbours in a row; it counts twice, so that still places are taken too.
    """
    first, last = (patch[n, ::4, ::4].astype(np.float32) for n in (0, -1))
    detail = np.abs(np.diff(patch[0, ::4].astype(np.float32), axis=1))
    return float(np.abs(last - first).mean() + 2 * detail.mean())


def _turn(patch: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A view of [n, h, w, 3], flipped and rotated by right angles."""
    patch = np.rot90(patch, int(rng.integers(4)), axes=(1, 2))
    return patch[:, :, ::-1] if rng.random() < 0.5 else patch


def _photometric(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One gain, gamma and channel order for all frames of an example. One in five is dark, as film often is."""
    gamma, gain = np.exp(rng.uniform(-0.4, 0.4)), rng.uniform(0.5, 1.1)
    if rng.random() < 0.2:
        gain = rng.uniform(0, 0.5)
    return (images[:, rng.permutation(3).tolist()] ** gamma * gain).clamp(0, 1)
