"""What the figures compare: each method makes the frames between two frames, four times larger.

All networks run in evaluation mode, channels last, in the same dtype, compiled or not, and with the same deformable
convolution (``stif_rt.ops.deform_conv``), the runtime's own included.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.interface import SCALE, Method, Setup, Size, Unsupported, check_size, pad_to
from benchmarks.two_stage import Stages, two_stage
from stif_rt.dtypes import dtype_name
from stif_rt.model.encoder import Features
from stif_rt.runtime import Runtime

SIDES = 4
"""Zooming SlowMo and TMNet take multiples of this."""
MOST_PASSES = 6
"""How often Zooming SlowMo is applied to its own result at most."""


class Ours(Method):
    """This runtime."""

    def __init__(self, setup: Setup) -> None:
        network: Any = setup.build("stif")
        name = dtype_name(setup.dtype)
        try:
            self.runtime = Runtime.from_model(network, device=str(setup.device), dtype=name, kernels=setup.kernels)
        except RuntimeError as error:
            raise Unsupported(str(error)) from error

    def encode(self, frames: Tensor) -> None:
        self.runtime.encode(frames[0, 0], frames[0, 1])

    def at(self, pair: None, times: Sequence[float], size: Size) -> Iterator[Tensor]:
        for t in times:
            yield self.runtime.render(t, size=size)


class PlainSTIF(Method):
    """The network in PyTorch as the paper writes it: features once per pair, then frame by frame."""

    def __init__(self, setup: Setup) -> None:
        network = setup.ready("stif")
        self.dtype, self.config = setup.dtype, network.config
        self.features = setup.compiled(network.encode)
        self.decode = setup.compiled(network.decode)

    def encode(self, frames: Tensor) -> tuple[Features, Tensor]:
        frames = frames.to(self.dtype)
        features = self.features(pad_to(frames, self.config.multiple))
        return features.cropped(frames.shape[-2:], self.config.feature_stride), frames

    def at(self, pair: tuple[Features, Tensor], times: Sequence[float], size: Size) -> Iterator[Tensor]:
        features, frames = pair
        for t in times:
            time = torch.full((1,), t, dtype=frames.dtype, device=frames.device)
            yield self.decode(features, frames, time, size).rgb


class ZoomingSlowMo(Method):
    """Makes the frame midway only, four times larger: applied again to its own result as often as needed, which is made
    small again unless a larger size is asked for."""

    streams = False

    def __init__(self, setup: Setup) -> None:
        self.network = setup.compiled(setup.ready("zooming_slowmo"))
        self.dtype = setup.dtype

    def encode(self, frames: Tensor) -> Tensor:
        return frames

    def at(self, pair: Tensor, times: Sequence[float], size: Size) -> Iterator[Tensor]:
        passes, enlargements = self.plan(times, (pair.shape[-2], pair.shape[-1]), size)
        small, made = pair, pair
        for step in range(passes):
            if step > 0:
                small = self.halfway(small, made) if step >= enlargements else made.float().clamp(0, 1)
            h, w = small.shape[-2:]
            made = self.network(pad_to(small, SIDES).to(self.dtype))[..., : SCALE * h, : SCALE * w]
        yield from (made[0, round(t * 2**passes)] for t in times)

    @staticmethod
    def plan(times: Sequence[float], inputs: Size, size: Size) -> tuple[int, int]:
        """How often to halve the interval, and how many of these times to enlarge. Raises Unsupported."""
        exact = [Fraction(t) * 2**MOST_PASSES for t in times]
        if any(t.denominator > 1 for t in exact):
            raise Unsupported("halves intervals only: the time scale must be a power of two")
        passes = next(n for n in range(1, MOST_PASSES + 1) if all(t % 2 ** (MOST_PASSES - n) == 0 for t in exact))
        for enlargements in range(1, passes + 1):
            if size == (SCALE**enlargements * inputs[0], SCALE**enlargements * inputs[1]):
                return passes, enlargements
        raise Unsupported(f"enlarges {SCALE} times only, or {SCALE} times again for each halving of the interval")

    @staticmethod
    def halfway(small: Tensor, made: Tensor) -> Tensor:
        """The input of the next pass, [1, 2N - 1, 3, h, w]: the middles that were made, small, between the frames."""
        middles = F.interpolate(made[0, 1::2].float(), size=small.shape[-2:], mode="bicubic", antialias=True)
        both = torch.stack((small[0, :-1], middles.clamp(0, 1)), 1).flatten(0, 1)
        return torch.cat((both, small[0, -1:]))[None]


class TMNet(Method):
    """All times of a pair go through the network together."""

    streams = False

    def __init__(self, setup: Setup) -> None:
        self.network = setup.compiled(setup.ready("tmnet"))
        self.dtype = setup.dtype

    def encode(self, frames: Tensor) -> Tensor:
        return frames.to(self.dtype)

    def at(self, pair: Tensor, times: Sequence[float], size: Size) -> Iterator[Tensor]:
        h, w = pair.shape[-2:]
        check_size((h, w), size)
        between = [t for t in times if 0 < t < 1]
        if not between:
            raise Unsupported("makes at least one frame between two")
        made = self.network(pad_to(pair, SIDES), torch.tensor([between], device=pair.device))
        sequence = [0, *between, 1]
        yield from (made[0, sequence.index(t), :, : SCALE * h, : SCALE * w] for t in times)


class Bicubic(Method):
    """The trivial peer: both frames enlarged by bicubic filtering, and blended."""

    def __init__(self, setup: Setup) -> None:
        self.dtype = setup.dtype

    def encode(self, frames: Tensor) -> Tensor:
        return frames.to(self.dtype)

    def at(self, pair: Tensor, times: Sequence[float], size: Size) -> Iterator[Tensor]:
        first, second = F.interpolate(pair[0], size=size, mode="bicubic")
        for t in times:
            yield torch.lerp(first, second, t)


class Entry(NamedTuple):
    label: str
    build: Callable[[Setup], Method]


METHODS: dict[str, Entry] = {
    "stif-rt": Entry("STIF, stif-rt", Ours),
    "stif": Entry("STIF, plain PyTorch", PlainSTIF),
    "zooming_slowmo": Entry("Zooming SlowMo", ZoomingSlowMo),
    "tmnet": Entry("TMNet", TMNet),
    "super_slomo+edvr": Entry("Super SloMo + EDVR", Stages("super_slomo", "edvr")),
    "bicubic": Entry("bicubic + blend", Bicubic),
}
"""The lines of the paper's figure, by name."""


def find_method(name: str) -> Entry:
    """One of METHODS, or any other two stages. Raises ValueError for an unknown name."""
    if name in METHODS:
        return METHODS[name]
    if "+" not in name:
        raise ValueError(f"unknown method {name!r}; there are: {', '.join(METHODS)}, and INTERPOLATOR+ENLARGER")
    stages = two_stage(name)
    return Entry(stages.label, stages)
