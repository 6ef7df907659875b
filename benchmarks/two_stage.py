"""Two-stage methods: any interpolator at the input's size, then any enlarger. ``dain+basicvsr`` and the like.

The frames between are clamped to [0, 1] and not rounded before they are enlarged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.interface import SCALE, Method, Setup, Size, check_size, pad_to
from benchmarks.others import DIS, RIFE
from benchmarks.peers import PEERS
from benchmarks.peers.interpolator import Call, Memory, call
from stif_rt.data.resize import imresize

SIDES = 4
"""EDVR takes multiples of this."""


class Interpolation:
    """One of the interpolating networks. With ``setup.remember`` it keeps the pictures of a pair, for methods that
    enlarge them in different ways, and what the next pair of the clip needs."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.network = setup.ready(name)
        self.inputs: int = max(self.network.counts)
        self.network.prepare = setup.compiled(self.network.prepare)
        self.network.render = setup.compiled(self.network.render)
        self.of_frames: Call = Memory(self.network.remembered) if setup.remember else call
        self.of_pairs: Call = Memory(1) if setup.remember else call
        self.of_times: Call = Memory(32) if setup.remember else call

    def pair(self, frames: Tensor) -> Any:
        return self.of_pairs(self.network.pair, frames, self.of_frames)

    def at(self, pair: Any, t: float) -> Tensor:
        return self.of_times(self.network.at, pair, torch.tensor([t], dtype=torch.float64))


class Blend:
    """The trivial interpolator: a linear blend."""

    inputs = 2

    def __init__(self, name: str, setup: Setup) -> None:
        pass

    def pair(self, frames: Tensor) -> Tensor:
        return frames

    def at(self, pair: Tensor, t: float) -> Tensor:
        return torch.lerp(pair[:, 0], pair[:, 1], t)


class Enlarger(Protocol):
    """streams: whether it makes one frame after the other."""

    streams: bool

    def __init__(self, name: str, setup: Setup) -> None: ...

    def __call__(self, frames: list[Tensor], wanted: list[int], size: Size) -> Iterator[Tensor]:
        """The wanted ones of all frames [1, 3, h, w], which are neighbours in time, as [1, 3, H, W].

        Raises Unsupported for sizes that it does not know.
        """
        ...


class Bicubic:
    """The trivial enlarger, by MATLAB's filter."""

    streams = True

    def __init__(self, name: str, setup: Setup) -> None:
        pass

    def __call__(self, frames: list[Tensor], wanted: list[int], size: Size) -> Iterator[Tensor]:
        for n in wanted:
            yield imresize(frames[n], size)


class EDVR:
    """Each frame from a window of seven. Windows share their frames' pyramids; at the ends frames are repeated."""

    streams = True

    def __init__(self, name: str, setup: Setup) -> None:
        self.network = setup.ready(name)
        self.pyramid, self.fuse = setup.compiled(self.network.pyramid), setup.compiled(self.network.fuse)
        self.reconstruct = setup.compiled(self.network.reconstruct)

    def __call__(self, frames: list[Tensor], wanted: list[int], size: Size) -> Iterator[Tensor]:
        h, w = frames[0].shape[-2:]
        check_size((h, w), size)
        padded = [pad_to(frame, SIDES) for frame in frames]
        pyramids = [self.pyramid(frame) for frame in padded]
        half = self.network.frames // 2
        for n in wanted:
            window = [pyramids[min(max(n + k, 0), len(frames) - 1)] for k in range(-half, half + 1)]
            yield self.reconstruct(self.fuse(window), padded[n])[..., : SCALE * h, : SCALE * w]


class BasicVSR:
    """All frames together."""

    streams = False

    def __init__(self, name: str, setup: Setup) -> None:
        self.network = setup.compiled(setup.ready(name))

    def __call__(self, frames: list[Tensor], wanted: list[int], size: Size) -> Iterator[Tensor]:
        check_size((frames[0].shape[-2], frames[0].shape[-1]), size)
        made = self.network(torch.stack(frames, 1))
        yield from (made[:, n] for n in wanted)


class LIIF:
    """Each frame alone, at any size."""

    streams = True

    def __init__(self, name: str, setup: Setup) -> None:
        self.network = setup.compiled(setup.ready(name))

    def __call__(self, frames: list[Tensor], wanted: list[int], size: Size) -> Iterator[Tensor]:
        for n in wanted:
            yield self.network(frames[n], size)


INTERPOLATORS: dict[str, type[Interpolation] | type[Blend] | type[DIS] | type[RIFE]] = {
    "super_slomo": Interpolation,
    "qvi": Interpolation,
    "dain": Interpolation,
    "blend": Blend,
    "dis": DIS,
    "rife": RIFE,
}
ENLARGERS: dict[str, type[Enlarger]] = {
    "bicubic": Bicubic,
    "edvr": EDVR,
    "basicvsr": BasicVSR,
    "liif_edsr": LIIF,
    "liif_rdn": LIIF,
}


class TwoStage(Method):
    """An interpolator and an enlarger."""

    def __init__(self, interpolator: str, enlarger: str, setup: Setup) -> None:
        self.dtype = setup.dtype
        self.interpolation = setup.shared(interpolator, INTERPOLATORS[interpolator])
        self.enlarger = setup.shared(enlarger, ENLARGERS[enlarger])
        self.inputs, self.streams = self.interpolation.inputs, self.enlarger.streams

    def encode(self, frames: Tensor) -> Any:
        """frames: as in ``Method``; four where ``inputs`` says so and a clip has them."""
        return self.interpolation.pair(frames.to(self.dtype))

    def at(self, pair: Any, times: Sequence[float], size: Size) -> Iterator[Tensor]:
        """A size that stays is not enlarged."""
        sequence = sorted({0.0, *times, 1.0})
        small = [self.interpolation.at(pair, t).clamp(0, 1) for t in sequence]
        wanted = [sequence.index(t) for t in times]
        if size == tuple(small[0].shape[-2:]):
            yield from (small[n] for n in wanted)
        else:
            yield from self.enlarger(small, wanted, size)


@dataclass(frozen=True)
class Stages:
    """What ``TwoStage`` is built from."""

    interpolator: str
    enlarger: str

    def __call__(self, setup: Setup) -> TwoStage:
        return TwoStage(self.interpolator, self.enlarger, setup)

    @property
    def streams(self) -> bool:
        return ENLARGERS[self.enlarger].streams

    @property
    def label(self) -> str:
        return " + ".join(PEERS[name].label if name in PEERS else name for name in (self.interpolator, self.enlarger))


def two_stage(name: str) -> Stages:
    """The method ``INTERPOLATOR+ENLARGER``. Raises ValueError for an unknown name."""
    interpolator, _, enlarger = name.partition("+")
    if interpolator not in INTERPOLATORS or enlarger not in ENLARGERS:
        raise ValueError(
            f"unknown method {name!r}: two stages are one of {', '.join(INTERPOLATORS)}, then +, then one of "
            f"{', '.join(ENLARGERS)}"
        )
    return Stages(interpolator, enlarger)
