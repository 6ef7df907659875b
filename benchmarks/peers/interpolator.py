"""What all interpolators have in common: two inner frames, times between them, pictures of the frames' own size."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Call = Callable[..., Any]
"""Calls its first argument with the others, or returns what that gave before."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class Memory:
    """Calls functions and remembers what the last ones returned for the same tensors.

    Neighbouring pairs of a clip share frames and flows, and two-stage methods their first stage.
    """

    def __init__(self, most: int) -> None:
        self.known: deque[tuple[Callable[..., Any], tuple[Any, ...], Any]] = deque(maxlen=most)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        for index, (known, given, result) in enumerate(self.known):
            if known == function and len(given) == len(arguments) and all(map(_same, given, arguments)):
                del self.known[index]
                self.known.append((known, given, result))  # the last one to be forgotten
                return result
        result = function(*arguments)
        self.known.append((function, arguments, result))
        return result


def _same(a: Any, b: Any) -> bool:
    """Whether it is the same object, or an equal tensor."""
    return a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b))


class Pair(NamedTuple):
    """Two frames and what was computed of them, padded. padding: pixels at left, right, top, bottom."""

    first: Tensor
    second: Tensor
    prepared: Any
    padding: tuple[int, int, int, int]


class Interpolator(nn.Module):
    """Frames at any time between two frames, at their size.

    A network says how it pads (``padding``), what it computes once for a pair (``prepare``) and for a time
    (``render``), both on padded frames.
    """

    label = "an interpolator"
    counts: tuple[int, ...] = (2,)
    """How many frames it takes: the two, or with others around them."""
    remembered = 0
    """How many of its last calls the next pair of a clip may need again."""

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels to add at left, right, top and bottom, repeating the border."""
        return 0, 0, 0, 0

    def prepare(self, frames: Tensor, call: Call) -> Any:
        """What does not depend on the time. What depends on single frames goes through ``call``."""
        raise NotImplementedError

    def render(self, prepared: Any, t: Tensor) -> Tensor:
        """[B, 3, H, W] at times t, float64 [B, 1, 1, 1], in (0, 1)."""
        raise NotImplementedError

    def pair(self, frames: Tensor, call: Call = call) -> Pair:
        """What is computed once for the frames, [B, N, 3, h, w], RGB in [0, 1]; the inner two are the pair."""
        if frames.ndim != 5 or frames.shape[1] not in self.counts or frames.shape[2] != 3:
            counts = " or ".join(map(str, self.counts))
            raise ValueError(f"{self.label} takes {counts} frames [B, N, 3, h, w], not {list(frames.shape)}")
        padding = self.padding(frames.shape[-2], frames.shape[-1])
        padded = F.pad(frames.flatten(0, 1), padding, mode="replicate") if any(padding) else frames.flatten(0, 1)
        middle = frames.shape[1] // 2
        prepared = self.prepare(padded.unflatten(0, frames.shape[:2]), call)
        return Pair(frames[:, middle - 1], frames[:, middle], prepared, padding)

    def at(self, pair: Pair, t: Tensor) -> Tensor:
        """[B, 3, h, w] at times t [B]; the frames themselves at 0 and 1. Raises ValueError for other times.

        Times on the CPU spare a GPU the wait for their comparison.
        """
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"{self.label} makes frames from 0 to 1, not at {t.tolist()}")
        inside = bool(((t > 0) & (t < 1)).any())
        t = t.double().view(-1, 1, 1, 1).to(pair.first.device)
        ends = torch.where(t == 0, pair.first, pair.second)
        if not inside:
            return ends
        left, right, top, bottom = pair.padding
        picture = self.render(pair.prepared, t)
        picture = picture[..., top : picture.shape[-2] - bottom, left : picture.shape[-1] - right]
        return torch.where((t > 0) & (t < 1), picture, ends)

    def forward(self, frames: Tensor, times: Tensor | Sequence[float]) -> Tensor:
        """Frames between two frames.

        Args:
            frames: [B, N, 3, h, w], RGB in [0, 1].
            times: [B, T], or T times for the whole batch, each from 0 to 1.

        Returns:
            RGB [B, T, 3, h, w], not clamped.

        Raises:
            ValueError: For other shapes or times.
        """
        times = torch.as_tensor(times)
        times = times.expand(len(frames), -1) if times.ndim == 1 else times
        if times.ndim != 2 or len(times) != len(frames):
            raise ValueError(f"times are [B, T] for frames [B, N, 3, h, w], not {list(times.shape)}")
        pair = self.pair(frames)
        return torch.stack([self.at(pair, t) for t in times.unbind(1)], 1)
