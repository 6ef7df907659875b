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


@dataclass(frozen=True)
class Recipe:
    """How a training example is cut.

    patch: side of the low-resolution patch, pixels. scales: range of the spatial scale, one per batch.
    windows: range of window lengths in frames; inputs are a window's first and last frame. targets: frames of the
    window, drawn at random, that are to be predicted. photometric: random gain, gamma and channel order; one example
    in five is made dark.
    candidates: places in the clips that are drawn for each example; the one that changes most and has most detail is
    taken.
    synthetic: share of examples that are still pictures in known motion (``training.motion``).
    largest_motion: translation that those reach, in low-resolution pixels between the inputs.
    """

    patch: int = 32
    scales: tuple[float, float] = (4.0, 4.0)
    windows: tuple[int, int] = (9, 9)
    targets: int = 3
    photometric: bool = False
    candidates: int = 1
    synthetic: float = 0.0
    largest_motion: float = 12.0


class Batch(NamedTuple):
    """frames: [B, 2, 3, h, w] low-resolution inputs. times: [B, T]. truth: [B, T, 3, H, W]. All float32 in [0, 1].

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
        side = math.ceil(recipe.patch * recipe.scales[1])
        usable = [clip for clip in clips if min(clip.frames.shape[1:3]) >= side and clip.windows(recipe.windows[1])]
        if not usable:
            raise ValueError(f"no clip has {recipe.windows[1]} frames without a cut at {side}x{side} pixels or more")
        self.clips, self.recipe, self.size, self.seed, self.pictures = usable, recipe, size, seed, pictures
        lengths = range(recipe.windows[0], recipe.windows[1] + 1)
        self.windows = {length: [clip.windows(length) for clip in usable] for length in lengths}

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        low, high = self.recipe.scales
        side = round(self.recipe.patch * (low + (high - low) * rng.random()))
        examples = [self._example(rng, side) for _ in range(self.size)]
        return Batch(*(torch.stack(parts) for parts in zip(*examples, strict=True)))

    def _example(self, rng: np.random.Generator, side: int) -> Batch:
        """One example, without the axis B."""
        recipe = self.recipe
        if rng.random() < recipe.synthetic:
            return self._in_motion(rng, side)
        places = [self._place(rng, side) for _ in range(recipe.candidates)]
        patch = max(places, key=_interest) if len(places) > 1 else places[0]
        length = len(patch)
        order = rng.choice(length, min(recipe.targets, length), replace=False)
        patch = np.ascontiguousarray(_turn(patch[np.concatenate(([0, length - 1], order))], rng))
        if rng.random() < 0.5:  # time runs backwards
            patch[[0, 1]], order = patch[[1, 0]], length - 1 - order
        images = torch.from_numpy(patch).permute(0, 3, 1, 2).float() / 255
        times = torch.from_numpy(order / (length - 1)).float()
        unknown = torch.zeros(len(times), side, side, 4)
        return self._finish(rng, images, times, unknown, unknown[..., :2])

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

    def _in_motion(self, rng: np.random.Generator, side: int) -> Batch:
        """Times are those of a window of the greatest length. Half of the scenes are one picture without cut-outs."""
        recipe = self.recipe
        length = recipe.windows[1]
        times = (rng.choice(length, min(recipe.targets, length), replace=False) / (length - 1)).tolist()
        layers = [self._picture(rng) for _ in range(rng.choice((1, 2, 3), p=(0.5, 0.3, 0.2)))]
        largest = recipe.largest_motion * side / recipe.patch
        images, flow, visible = render_motion(layers, times, side, largest, rng)
        return self._finish(rng, images, torch.tensor(times), flow, visible)

    def _picture(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A still picture: one of those given, or a frame of a clip, flipped and turned."""
        if self.pictures and rng.random() < 0.5:
            picture = self.pictures[int(rng.integers(len(self.pictures)))]
        else:
            clip = self.clips[rng.integers(len(self.clips))]
            picture = clip.frames[rng.integers(len(clip.frames))]
        return _turn(picture[None], rng)[0]

    def _finish(self, rng: np.random.Generator, images: Tensor, times: Tensor, flow: Tensor, visible: Tensor) -> Batch:
        """images: the two inputs, then the targets, all at the targets' size."""
        if self.recipe.photometric:
            images = _photometric(images, rng)
        frames = degrade(images[:2], (self.recipe.patch, self.recipe.patch))
        return Batch(frames, times, images[2:], flow, visible)


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
