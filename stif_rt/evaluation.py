"""How close rendered frames come to the true ones, beside bicubic up-scaling with linear blending."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stif_rt.runtime import Runtime
from stif_rt.training.data import Clip
from stif_rt.training.degradation import degrade, imresize

IDENTICAL = 100.0
"""dB. Reported for pictures that differ less than this tells, such as black ones."""
SMOOTH = 40.0
"""dB. A window is smooth, not textured, where bicubic up-scaling alone reaches this on its first and last frame."""


@dataclass(frozen=True)
class Window:
    """PSNR of one window's frames, in order, in dB."""

    clip: str
    ours: list[float]
    bicubic: list[float]

    @property
    def textured(self) -> bool:
        return (self.bicubic[0] + self.bicubic[-1]) / 2 < SMOOTH


def psnr(output: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio over all RGB values, dB, at most IDENTICAL; both in [0, 1]."""
    return min(float(-10 * torch.log10(((output - truth).double() ** 2).mean())), IDENTICAL)


def evaluate(runtime: Runtime, clips: list[Clip], length: int, scale: float, most: int) -> Iterator[Window]:
    """Windows of ``length`` frames, at most ``most`` of each clip, evenly spread.

    The first and last frame of a window, shrunk by ``scale`` with MATLAB's bicubic filter and rounded to 8 bits, are
    the input; all of its frames are predicted.
    """
    for clip in clips:
        firsts = clip.windows(length)
        for first in firsts[:: max(1, -(-len(firsts) // most))]:
            truth = torch.tensor(clip.frames[first : first + length]).movedim(-1, 1).float() / 255
            H, W = truth.shape[-2:]
            inputs = degrade(truth[[0, -1]], (round(H / scale), round(W / scale))).to(runtime.device)
            times = [n / (length - 1) for n in range(length)]
            runtime.encode(inputs[0], inputs[1])
            before, after = imresize(inputs, (H, W)).clamp(0, 1).cpu()
            ours, bicubic = [], []
            for t, frame in zip(times, truth, strict=True):
                ours.append(psnr(runtime.render(t, size=(H, W)).cpu(), frame))
                bicubic.append(psnr((1 - t) * before + t * after, frame))
            yield Window(clip.name, ours, bicubic)


def summarise(windows: list[Window]) -> list[tuple[str, int, dict[str, tuple[float, float]]]]:
    """Rows of (kind of window and clip, windows, {frames: (ours, bicubic)}), means in dB.

    Frames are ``ends`` (the inputs' own times), ``between`` and ``all``.
    """
    groups: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        kind = "textured" if window.textured else "smooth"
        groups[kind].append(window)
        groups[f"{kind}, {window.clip}"].append(window)
    rows = []
    for name in sorted(groups, reverse=True):
        means = {}
        last = len(groups[name][0].ours) - 1
        for frames, part in (("ends", slice(None, None, last)), ("between", slice(1, -1)), ("all", slice(None))):
            pairs = [pair for w in groups[name] for pair in zip(w.ours[part], w.bicubic[part], strict=True)]
            if pairs:
                ours, bicubic = zip(*pairs, strict=True)
                means[frames] = (sum(ours) / len(ours), sum(bicubic) / len(bicubic))
        rows.append((name, len(groups[name]), means))
    return rows
