"""Clips as memory-mapped frames, and the training examples made of them.

A clip is a video file or a folder of frames. The first use of one decodes it, shrunk by ``downscale``, into the cache
folder as one ``.npy`` of uint8 [frames, H, W, 3]; from then on windows are read straight from the page cache.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stif_rt.training.degradation import degrade
from stif_rt.training.motion import render_motion
from stif_rt.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES, open_reader, read_image
from stif_rt.video.scenes import is_cut, thumbnail


@dataclass(frozen=True)
class Clip:
    """name; frames: uint8 [n, H, W, 3]; shots: [first, end) ranges of frames without a scene cut inside."""

    name: str
    frames: NDArray[np.uint8]
    shots: list[tuple[int, int]]

    def windows(self, length: int, step: int = 1) -> list[int]:
        """First frames of all windows of ``length`` frames that lie within one shot."""
        return [first for start, end in self.shots for first in range(start, end - length + 1, step)]


def find_clips(path: Path) -> list[Path]:
    """Clips below a path: video files, and folders that hold images directly.

    So the published layouts need no configuration: Adobe240 (folder/clip/frame.png or videos), GoPro
    (train/GOPR.../frame.png; of its sharp/blur pairs only the sharp ones) and Vid4 (clip/frame.png).
    Raises FileNotFoundError where there is none.
    """
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file() and "blur" not in p.parent.name)
    clips = {p.parent for p in files if p.suffix.lower() in IMAGE_SUFFIXES}
    clips |= {p for p in files if p.suffix.lower() in VIDEO_SUFFIXES}
    if not clips:
        raise FileNotFoundError(f"no videos and no folders of images below {path}")
    return sorted(clips)


def load_pictures(path: Path) -> list[NDArray[np.uint8]]:
    """The image files below a path, uint8 [H, W, 3] each. Raises FileNotFoundError where there is none."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no images below {path}")
    return [read_image(file) for file in files]


def load_clip(path: Path, cache: Path, downscale: float) -> Clip:
    """The clip from the cache, decoded into it where it is not there yet."""
    key = hashlib.sha256(f"{path.resolve()} {path.stat().st_mtime_ns} {downscale}".encode()).hexdigest()[:16]
    target, index = cache / f"{path.stem}-{key}.npy", cache / f"{path.stem}-{key}.json"
    if not index.exists():  # written last: its presence says that both are complete
        cache.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}.part")  # several processes may be at it
        try:
            shots = _decode(path, part, downscale)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        part.write_text(json.dumps({"shots": shots}))
        part.replace(index)
    shots = [(first, end) for first, end in json.loads(index.read_text())["shots"]]
    return Clip(path.stem, np.load(target, mmap_mode="r"), shots)


def _decode(path: Path, target: Path, downscale: float) -> list[tuple[int, int]]:
    """Writes the frames one by one behind a header for their final number, and returns the shots."""
    with contextlib.closing(open_reader(path)) as reader, target.open("wb+") as file:
        size = (round(reader.height / downscale), round(reader.width / downscale))
        cuts, count, before = [0], 0, None
        _write_header(file, (0, *size, 3))
        for _, _, frame in reader:
            after = thumbnail(frame)
            if before is not None and is_cut(before, after):
                cuts.append(count)
            before = after
            if frame.shape[:2] != size:
                picture = torch.from_numpy(frame).permute(2, 0, 1)[None]
                small = F.interpolate(picture, size, mode="bicubic", antialias=True)
                frame = small[0].permute(1, 2, 0).numpy()
            file.write(np.ascontiguousarray(frame).data)
            count += 1
        _write_header(file, (count, *size, 3))
    return list(zip(cuts, [*cuts[1:], count], strict=True))


def _write_header(file, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


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
