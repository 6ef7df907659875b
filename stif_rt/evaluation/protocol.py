"""Groups of neighbouring frames: the first and the last, made small, are the input, and all of them are predicted."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

import torch

from stif_rt.data.clips import Clip
from stif_rt.data.resize import degrade
from stif_rt.evaluation.methods import BASELINE, Group, Method, bicubic
from stif_rt.evaluation.metrics import Score, Window, score

SMOOTH = 40.0
"""dB. A group is smooth, not textured, where bicubic enlargement alone reaches this on its first and last frame."""

FRAMES = {
    "first and last": lambda n: [0, n - 1],
    "middle": lambda n: [(n - 1) // 2] if n % 2 else [n // 2 - 1, n // 2],
    "center": lambda n: sorted({0, (n - 1) // 2, n - 1}),
    "average": lambda n: list(range(n)),
}
"""Which frames of a group of n a mean is taken over. ``center`` and ``average`` are the paper's; of nine frames it
names the 1st, 4th and 9th, and here the one in the middle, the 5th, is taken instead of the 4th."""


@dataclass(frozen=True)
class Result:
    """scores: of each frame in order, by method. The baseline is one of them. length: frames of the group."""

    clip: str
    first: int
    scale: float
    scores: Mapping[str, list[Score]]

    @property
    def length(self) -> int:
        return len(self.scores[BASELINE])

    @property
    def textured(self) -> bool:
        baseline = self.scores[BASELINE]
        return (baseline[0].psnr + baseline[-1].psnr) / 2 < SMOOTH


@dataclass(frozen=True)
class Mean:
    """The means over some frames of some groups. windows: all, textured or smooth. clip: None for all clips.

    number: of groups. ssim: None where it was not computed.
    """

    length: int
    scale: float
    windows: str
    clip: str | None
    number: int
    frames: str
    method: str
    psnr: float
    luma: float
    ssim: float | None


def count_groups(clips: list[Clip], length: int, most: int | None) -> int:
    return sum(len(_firsts(clip, length, most)) for clip in clips)


def _firsts(clip: Clip, length: int, most: int | None) -> list[int]:
    """First frames of the groups: one after the other, sharing a frame; or at most so many, evenly spread."""
    if most is None:
        return clip.windows(length, length - 1)
    firsts = clip.windows(length)
    return firsts[:: max(1, -(-len(firsts) // most))]


def groups(clips: list[Clip], length: int, scale: float, most: int | None) -> Iterator[Group]:
    """The groups of ``length`` frames of the clips, at most ``most`` of each, or for None all that follow each other.

    The inputs are shrunk by ``scale`` with MATLAB's bicubic filter and rounded to 8 bits. For a whole number, frames
    are first cropped to a multiple of it at the right and the bottom.
    """
    for clip in clips:
        for first in _firsts(clip, length, most):
            truth = torch.tensor(clip.frames[first : first + length]).movedim(-1, 1).float() / 255
            H, W = truth.shape[-2:]
            if scale == int(scale):
                H, W = (max(side - side % int(scale), int(scale)) for side in (H, W))
                truth = truth[..., :H, :W]
                H, W = truth.shape[-2:]
            inputs = degrade(truth[[0, -1]], (max(1, round(H / scale)), max(1, round(W / scale))))
            yield Group(clip.name, first, scale, inputs, truth)


def evaluate(group: Group, methods: Mapping[str, Method], ssim: Window | None = None) -> Result:
    """The baseline and the methods on one group, each picture clamped and rounded to 8 bits as a file would hold it."""
    scores = {}
    for name, method in {BASELINE: bicubic, **methods}.items():
        pictures = method(group)
        if pictures.shape != group.truth.shape:
            raise ValueError(f"{name} returned {list(pictures.shape)} instead of {list(group.truth.shape)}")
        if not torch.isfinite(pictures).all():
            raise ValueError(f"{name} returned values that are not finite, for {group.clip} from frame {group.first}")
        pairs = zip((pictures.clamp(0, 1) * 255).round() / 255, group.truth, strict=True)
        scores[name] = [score(picture, truth, ssim) for picture, truth in pairs]
    return Result(group.clip, group.first, group.scale, scores)


def summarise(results: list[Result]) -> list[Mean]:
    """Means over all clips first, then by clip; for each the windows all together, then textured and smooth."""
    parts: dict[tuple[int, float, str, str | None], list[Result]] = defaultdict(list)
    for result in results:
        for clip in (None, result.clip):
            for windows in ("all", "textured" if result.textured else "smooth"):
                parts[result.length, result.scale, windows, clip].append(result)
    order = ["all", "textured", "smooth"]
    means = []
    for key in sorted(parts, key=lambda k: (k[1], k[0], k[3] is not None, k[3] or "", order.index(k[2]))):
        length, scale, windows, clip = key
        for frames, select in FRAMES.items():
            for method in parts[key][0].scores:
                scores = [result.scores[method][n] for result in parts[key] for n in select(length)]
                similar = [s.ssim for s in scores if s.ssim is not None]
                means.append(
                    Mean(
                        length,
                        scale,
                        windows,
                        clip,
                        len(parts[key]),
                        frames,
                        method,
                        fmean(s.psnr for s in scores),
                        fmean(s.luma for s in scores),
                        fmean(similar) if similar else None,
                    )
                )
    return means
