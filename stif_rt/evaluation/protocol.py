"""Windows of neighbouring frames: the first and the last, made small, are the input, and all of them are predicted."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.data.clips import Clip
from stif_rt.data.resize import degrade
from stif_rt.evaluation.methods import BASELINE, Method, Window, bicubic
from stif_rt.evaluation.metrics import Score, SsimWindow, score

SMOOTH = 40.0
"""dB. A window is smooth, not textured, where bicubic enlargement alone reaches this on its first and last frame."""

Pictures = dict[int, Tensor]
"""[3, H, W], by the frame's number in the window."""

FRAMES = {
    "first and last": lambda n: [0, n - 1],
    "middle": lambda n: [(n - 1) // 2] if n % 2 else [n // 2 - 1, n // 2],
    "center": lambda n: sorted({0, (n - 1) // 2, n - 1}),
    "average": lambda n: list(range(n)),
}
"""Which frames of a window of n a mean is taken over. ``center`` and ``average`` are the paper's; of nine frames it
names the 1st, 4th and 9th, and here the one in the middle, the 5th, is taken instead of the 4th."""

TABLE_FRAMES = FRAMES | {"quarters": lambda n: sorted({round(k * (n - 1) / 4) for k in range(5)})}
"""These, and what the paper's Table 3 needs besides."""


@dataclass(frozen=True)
class Result:
    """scores: of each frame in order, by method, None for frames that it was not asked for. The baseline is one of the
    methods, and every method has the first and the last frame. length: frames of the window."""

    clip: str
    first: int
    scale: float
    scores: Mapping[str, Sequence[Score | None]]

    @property
    def length(self) -> int:
        return len(self.scores[BASELINE])

    @property
    def textured(self) -> bool:
        first, last = self.of(BASELINE, [0, self.length - 1])
        return (first.psnr + last.psnr) / 2 < SMOOTH

    def of(self, method: str, numbers: Sequence[int]) -> list[Score]:
        """The scores of these frames, or none where not all of them were asked for."""
        scores = [score for n in numbers if (score := self.scores[method][n]) is not None]
        return scores if len(scores) == len(numbers) else []


@dataclass(frozen=True)
class Mean:
    """The means over some frames of some windows. texture: all, textured or smooth. clip: None for all clips.

    number: of windows. ssim: None where it was not computed.
    """

    length: int
    scale: float
    texture: str
    clip: str | None
    number: int
    frames: str
    method: str
    psnr: float
    luma: float
    ssim: float | None


def count_windows(clips: list[Clip], length: int, most: int | None) -> int:
    """The number of windows that ``windows`` yields for the same arguments."""
    return sum(len(_firsts(clip, length, most)) for clip in clips)


def _firsts(clip: Clip, length: int, most: int | None) -> list[int]:
    """Numbers of the windows' first frames: neighbours share a frame; or at most ``most``, evenly spaced."""
    if most is None:
        return clip.windows(length, length - 1)
    firsts = clip.windows(length)
    return firsts[:: max(1, -(-len(firsts) // most))]


def windows(clips: list[Clip], length: int, scale: float, most: int | None) -> Iterator[Window]:
    """The windows of the clips with their inputs, which are shrunk with MATLAB's bicubic filter and rounded to 8 bits.

    Args:
        clips: where they are taken from, in order.
        length: frames of a window.
        scale: by which the inputs are shrunk. For a whole number, frames are first cropped to a multiple of it at the
            right and the bottom.
        most: windows of each clip, evenly spaced; None for all that follow each other, sharing a frame.
    """
    for clip in clips:
        for first in _firsts(clip, length, most):
            truth = _pictures(clip.frames[first : first + length])
            H, W = truth.shape[-2:]
            if scale == int(scale):
                H, W = (max(side - side % int(scale), int(scale)) for side in (H, W))
                truth = truth[..., :H, :W]
                H, W = truth.shape[-2:]
            size = max(1, round(H / scale)), max(1, round(W / scale))
            outer = _outer(clip, first, length)
            if outer is not None:
                outer = degrade(outer[..., :H, :W], size)
            yield Window(clip.name, first, scale, degrade(truth[[0, -1]], size), truth, outer)


def _pictures(frames: NDArray[np.uint8]) -> Tensor:
    return torch.tensor(frames).movedim(-1, 1).float() / 255


def _outer(clip: Clip, first: int, length: int) -> Tensor | None:
    """The frames as far before and after a window as its ends are apart, where they lie in the same shot."""
    before, after = first - (length - 1), first + 2 * (length - 1)
    if not any(start <= before and after < end for start, end in clip.shots):
        return None
    return _pictures(clip.frames[[before, after]])


def render(window: Window, method: Method, name: str, numbers: Sequence[int] | None = None) -> Pictures:
    """A method's pictures of a window, each clamped and rounded to 8 bits as a file would hold it.

    Args:
        window: All its frames.
        method: Called once.
        name: What a message calls it.
        numbers: The frames that it is asked for, the last among them; None for all.

    Raises:
        ValueError: Where it returns pictures of another number or size, or values that are not finite.
    """
    part = window if numbers is None or len(numbers) == len(window.truth) else window.only(numbers)
    pictures = method(part)
    if pictures.shape != part.truth.shape:
        raise ValueError(f"{name} returned {list(pictures.shape)} instead of {list(part.truth.shape)}")
    if not torch.isfinite(pictures).all():
        raise ValueError(f"{name} returned values that are not finite, for {window.clip} from frame {window.first}")
    return dict(zip(part.positions, (pictures.clamp(0, 1) * 255).round() / 255, strict=True))


def score_pictures(window: Window, pictures: Mapping[str, Pictures], ssim: SsimWindow | None = None) -> Result:
    """All pictures of a window, by method, against the truth."""
    scores = {
        name: [score(made[n], truth, ssim) if n in made else None for n, truth in enumerate(window.truth)]
        for name, made in pictures.items()
    }
    return Result(window.clip, window.first, window.scale, scores)


def evaluate(window: Window, methods: Mapping[str, Method], ssim: SsimWindow | None = None) -> Result:
    """The scores of the baseline and the methods on all frames of one window; errors as of ``render``."""
    all_methods = {BASELINE: bicubic, **methods}
    return score_pictures(window, {name: render(window, method, name) for name, method in all_methods.items()}, ssim)


def summarise(results: list[Result]) -> list[Mean]:
    """Means over all clips first, then by clip; for each all windows, then textured and smooth ones."""
    parts: dict[tuple[int, float, str, str | None], list[Result]] = defaultdict(list)
    for result in results:
        for clip in (None, result.clip):
            for texture in ("all", "textured" if result.textured else "smooth"):
                parts[result.length, result.scale, texture, clip].append(result)
    order = ["all", "textured", "smooth"]
    means = []
    for key in sorted(parts, key=lambda k: (k[1], k[0], k[3] is not None, k[3] or "", order.index(k[2]))):
        length, scale, texture, clip = key
        for frames, select in FRAMES.items():
            for method in dict.fromkeys(name for result in parts[key] for name in result.scores):
                made = [result for result in parts[key] if method in result.scores]
                scores = [score for result in made for score in result.of(method, select(length))]
                if not scores:
                    continue
                similar = [s.ssim for s in scores if s.ssim is not None]
                means.append(
                    Mean(
                        length,
                        scale,
                        texture,
                        clip,
                        len(made),
                        frames,
                        method,
                        fmean(s.psnr for s in scores),
                        fmean(s.luma for s in scores),
                        fmean(similar) if similar else None,
                    )
                )
    return means
