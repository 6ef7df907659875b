"""What every method that is compared has in common: how it is set up, what it is asked for, and what it may refuse."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import PEERS, load_peer
from stif_rt.evaluation.published import WEIGHTS
from stif_rt.model.checkpoints import load_model
from stif_rt.model.encoder import DeformableConv

SCALE = 4
"""The spatial scale of most peers."""

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
Size = tuple[int, int]


class Unsupported(ValueError):
    """A method cannot do what is measured; the message says why, and a mark on a figure says so."""


@dataclass(frozen=True)
class Setup:
    """How networks run.

    kernels: the runtime's backend. weights: files by network. random: whether networks without a file get random
    weights. remember: whether what neighbouring pairs of a clip share is kept from one to the next. Methods of one
    setup share their networks.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    kernels: str = "auto"
    compile: bool = False
    weights: dict[str, Path] = field(default_factory=dict)
    random: bool = True
    remember: bool = False
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def build(self, name: str) -> nn.Module:
        """One of PEERS, on the CPU in float32. Raises ValueError where its weights are missing or do not fit."""
        if name in self.weights:
            path = self.weights[name]
            return load_model(path) if name == "stif" else load_peer(name, path)
        if not self.random:
            label, file = PEERS[name].label, WEIGHTS[name]
            raise ValueError(f"{label} needs weights: give --weights {name}=FILE, published as {file}")
        torch.manual_seed(0)
        network = PEERS[name].build()
        for module in network.modules():  # untrained ones would read at whole pixels, which trained ones do not
            if isinstance(module, DeformableConv):
                assert module.conv_offset_mask.bias is not None
                nn.init.uniform_(module.conv_offset_mask.bias, -1, 1)
        return network

    def ready(self, name: str) -> Any:
        """The same, ready to run."""
        return self.shared(name, _ready)

    def shared(self, name: str, make: Callable[[str, "Setup"], Any]) -> Any:
        """What ``make`` returns, made once for all methods of this setup."""
        if (name, make) not in self._made:
            self._made[name, make] = make(name, self)
        return self._made[name, make]

    def compiled(self, function: Compiled) -> Compiled:
        return cast(Compiled, torch.compile(function)) if self.compile else function


def _ready(name: str, setup: Setup) -> nn.Module:
    return setup.build(name).to(setup.device, setup.dtype).to(memory_format=torch.channels_last).eval()


class Method:
    """Makes frames between two frames.

    streams: whether frames are made one by one, so that the cost of a pair and of a frame can be told apart.
    inputs: how many frames it can use: the two, or four of which the inner two are the pair.
    """

    streams = True
    inputs = 2

    def encode(self, frames: Tensor) -> Any:
        """What is done once per pair. frames: RGB in [0, 1], float32 [1, 2, 3, h, w] on the device."""
        raise NotImplementedError

    def at(self, pair: Any, times: Sequence[float], size: Size) -> Iterator[Tensor]:
        """RGB of ``size`` (H, W) at times in [0, 1], ascending, not clamped.

        Raises Unsupported for times or sizes that the method does not know.
        """
        raise NotImplementedError

    def frames(self, pair: Any, time_scale: int, size: Size) -> Iterator[Tensor]:
        """RGB of ``size`` at t = 0, 1/s, ..., (s - 1)/s; the frame at t = 1 is the next pair's."""
        yield from self.at(pair, [n / time_scale for n in range(time_scale)], size)


def check_size(inputs: Size, size: Size) -> None:
    if size != (SCALE * inputs[0], SCALE * inputs[1]):
        raise Unsupported(
            f"enlarges {SCALE} times only, not from {inputs[1]}x{inputs[0]} to {size[1]}x{size[0]} pixels"
        )


def pad_to(frames: Tensor, multiple: int) -> Tensor:
    """[..., 3, H, W]: the border repeated at right and bottom up to multiples of that."""
    h, w = frames.shape[-2:]
    if h % multiple == 0 and w % multiple == 0:
        return frames
    flat = F.pad(frames.reshape(-1, *frames.shape[-3:]), (0, -w % multiple, 0, -h % multiple), mode="replicate")
    return flat.view(*frames.shape[:-2], *flat.shape[-2:])
