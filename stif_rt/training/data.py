"""Clips as memory-mapped frames, and the training windows cut from them.

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

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stif_rt.training.degradation import degrade
from stif_rt.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES, open_reader
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
    window, drawn at random, that are to be predicted. photometric: random gain, gamma and channel order.
    """

    patch: int = 32
    scales: tuple[float, float] = (4.0, 4.0)
    windows: tuple[int, int] = (9, 9)
    targets: int = 3
    photometric: bool = False


@dataclass(frozen=True)
class Batch:
    """frames: [B, 2, 3, h, w] low-resolution inputs. times: [B, T]. truth: [B, T, 3, H, W]. All float32 in [0, 1]."""

    frames: Tensor
    times: Tensor
    truth: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.frames.to(device), self.times.to(device), self.truth.to(device))


class Batches(Dataset[Batch]):
    """Batch number n, wholly determined by (seed, n): a resumed run sees what an unbroken one would have seen."""

    def __init__(self, clips: Sequence[Clip], recipe: Recipe, size: int, seed: int) -> None:
        side = math.ceil(recipe.patch * recipe.scales[1])
        usable = [clip for clip in clips if min(clip.frames.shape[1:3]) >= side and clip.windows(recipe.windows[1])]
        if not usable:
            raise ValueError(f"no clip has {recipe.windows[1]} frames without a cut at {side}x{side} pixels or more")
        self.clips, self.recipe, self.size, self.seed = usable, recipe, size, seed
        lengths = range(recipe.windows[0], recipe.windows[1] + 1)
        self.windows = {length: [clip.windows(length) for clip in usable] for length in lengths}

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        low, high = self.recipe.scales
        side = round(self.recipe.patch * (low + (high - low) * rng.random()))
        examples = [self._example(rng, side) for _ in range(self.size)]
        return Batch(*(torch.stack(parts) for parts in zip(*examples, strict=True)))

    def _example(self, rng: np.random.Generator, side: int) -> tuple[Tensor, Tensor, Tensor]:
        recipe = self.recipe
        length = int(rng.integers(recipe.windows[0], recipe.windows[1] + 1))
        counts = np.array([len(firsts) for firsts in self.windows[length]])
        share = np.sqrt(counts)  # a long film must not crowd out short clips
        chosen = int(rng.choice(len(counts), p=share / share.sum()))
        clip = self.clips[chosen]
        first = self.windows[length][chosen][rng.integers(counts[chosen])]
        _, H, W, _ = clip.frames.shape
        y, x = rng.integers(H - side + 1), rng.integers(W - side + 1)
        order = rng.choice(length, min(recipe.targets, length), replace=False)
        indices = first + np.concatenate(([0, length - 1], order))
        patch = np.stack([clip.frames[index, y : y + side, x : x + side] for index in indices])
        patch = _flip(patch, rng)
        if rng.random() < 0.5:  # time runs backwards
            patch[[0, 1]], order = patch[[1, 0]], length - 1 - order
        images = torch.from_numpy(patch).permute(0, 3, 1, 2).float() / 255
        if recipe.photometric:
            images = _photometric(images, rng)
        times = torch.from_numpy(order / (length - 1)).float()
        return degrade(images[:2], (recipe.patch, recipe.patch)), times, images[2:]


def _flip(patch: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Flips and rotations by right angles of [n, side, side, 3]."""
    patch = np.rot90(patch, int(rng.integers(4)), axes=(1, 2))
    return np.ascontiguousarray(patch[:, :, ::-1] if rng.random() < 0.5 else patch)


def _photometric(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One gain, gamma and channel order for all frames of an example."""
    gamma, gain = np.exp(rng.uniform(-0.4, 0.4)), rng.uniform(0.5, 1.1)
    return (images[:, rng.permutation(3).tolist()] ** gamma * gain).clamp(0, 1)
