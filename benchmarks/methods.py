"""What the figures compare: each method makes the frames between two frames, four times larger.

``encode`` does what is done once per pair, ``frames`` the rest, one frame after another where the method works so.
All networks run in evaluation mode, channels last, in the same dtype, compiled or not, and with the same deformable
convolution (``stif_rt.ops.deform_conv``), the runtime's own included.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import PEERS, load_peer
from benchmarks.peers.super_slomo import SIDES
from stif_rt.dtypes import dtype_name
from stif_rt.model.checkpoints import load_model
from stif_rt.model.encoder import DeformableConv
from stif_rt.runtime import Runtime

SCALE = 4
"""The spatial scale of all peers."""

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
Size = tuple[int, int]


class Unsupported(Exception):
    """What a method cannot do, and why: a mark on the figure."""


@dataclass(frozen=True)
class Setup:
    """How networks run. kernels: the runtime's backend. weights: files by network; random weights for the others."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    kernels: str = "auto"
    compile: bool = False
    weights: dict[str, Path] = field(default_factory=dict)

    def build(self, name: str) -> nn.Module:
        """One of PEERS, on the CPU in float32."""
        if name in self.weights:
            path = self.weights[name]
            return load_model(path) if name == "stif" else load_peer(name, path)
        torch.manual_seed(0)
        network = PEERS[name].build()
        for module in network.modules():  # untrained ones would read at whole pixels, which trained ones do not
            if isinstance(module, DeformableConv):
                nn.init.uniform_(module.conv_offset_mask.bias, -1, 1)
        return network

    def ready(self, name: str) -> Any:
        """The same, ready to run."""
        return self.build(name).to(self.device, self.dtype).to(memory_format=torch.channels_last).eval()

    def compiled(self, function: Compiled) -> Compiled:
        return torch.compile(function) if self.compile else function


class Method(Protocol):
    """streams: whether frames are made one by one, so that the cost of a pair and of a frame can be told apart.

    frames: RGB in [0, 1], float32 [1, 2, 3, h, w] on the device, h and w multiples of 4.
    """

    streams: bool

    def __init__(self, setup: Setup) -> None: ...

    def encode(self, frames: Tensor) -> Any:
        """What is done once per pair."""
        ...

    def frames(self, pair: Any, time_scale: int, size: Size) -> Iterator[Tensor]:
        """RGB of ``size`` (H, W) at t = 0, 1/s, ..., (s - 1)/s; the frame at t = 1 is the next pair's.

        Raises Unsupported for time scales or sizes that the method does not know.
        """
        ...


def check_size(inputs: Size, size: Size) -> None:
    if size != (SCALE * inputs[0], SCALE * inputs[1]):
        raise Unsupported(f"enlarges {SCALE} times only")


class Ours:
    """This runtime."""

    streams = True

    def __init__(self, setup: Setup) -> None:
        network: Any = setup.build("stif")
        name = dtype_name(setup.dtype)
        try:
            self.runtime = Runtime.from_model(network, device=str(setup.device), dtype=name, kernels=setup.kernels)
        except RuntimeError as error:
            raise Unsupported(str(error)) from error

    def encode(self, frames: Tensor) -> None:
        self.runtime.encode(frames[0, 0], frames[0, 1])

    def frames(self, pair: None, time_scale: int, size: Size) -> Iterator[Tensor]:
        for n in range(time_scale):
            yield self.runtime.render(n / time_scale, size=size)


class PlainSTIF:
    """The network in PyTorch as the paper writes it: features once per pair, then frame by frame."""

    streams = True

    def __init__(self, setup: Setup) -> None:
        network = setup.ready("stif")
        self.dtype = setup.dtype
        self.features = setup.compiled(network.encode)
        self.decode = setup.compiled(network.decode)

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        frames = frames.to(self.dtype)
        return self.features(frames), frames

    def frames(self, pair: tuple[Tensor, Tensor], time_scale: int, size: Size) -> Iterator[Tensor]:
        features, frames = pair
        for n in range(time_scale):
            time = torch.full((1,), n / time_scale, dtype=frames.dtype, device=frames.device)
            yield self.decode(features, frames, time, size).rgb


class ZoomingSlowMo:
    """Makes the frame midway only. So it is applied again to its own result, made small again, as often as needed."""

    streams = False

    def __init__(self, setup: Setup) -> None:
        self.network = setup.compiled(setup.ready("zooming_slowmo"))
        self.dtype = setup.dtype

    def encode(self, frames: Tensor) -> Tensor:
        return frames

    def frames(self, pair: Tensor, time_scale: int, size: Size) -> Iterator[Tensor]:
        check_size((pair.shape[-2], pair.shape[-1]), size)
        if time_scale < 2 or time_scale & (time_scale - 1):
            raise Unsupported("halves intervals only: the time scale must be a power of two")
        small, made = pair, pair
        for step in range(time_scale.bit_length() - 1):
            if step > 0:
                middles = made[0, 1::2].float()
                middles = F.interpolate(middles, size=small.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
                both = torch.stack((small[0, :-1], middles), 1).flatten(0, 1)
                small = torch.cat((both, small[0, -1:]))[None]
            made = self.network(small.to(self.dtype))
        yield from made[0, :-1]


class TMNet:
    """All times of a pair go through the network together."""

    streams = False

    def __init__(self, setup: Setup) -> None:
        self.network = setup.compiled(setup.ready("tmnet"))
        self.dtype = setup.dtype

    def encode(self, frames: Tensor) -> Tensor:
        return frames.to(self.dtype)

    def frames(self, pair: Tensor, time_scale: int, size: Size) -> Iterator[Tensor]:
        check_size((pair.shape[-2], pair.shape[-1]), size)
        if time_scale < 2:
            raise Unsupported("makes at least one frame between two")
        times = torch.arange(1, time_scale, device=pair.device)[None] / time_scale
        yield from self.network(pair, times)[0, :-1]


class SuperSloMoEDVR:
    """Every frame between the two at their size, then each enlarged with the three on either side.

    Windows share their frames' feature pyramids. At the ends the first and the last frame are repeated.
    """

    streams = True

    def __init__(self, setup: Setup) -> None:
        self.slomo = setup.ready("super_slomo")
        self.edvr = setup.ready("edvr")
        self.flows, self.between = setup.compiled(self.slomo.flows), setup.compiled(self.slomo.frame)
        self.pyramid, self.fuse = setup.compiled(self.edvr.pyramid), setup.compiled(self.edvr.fuse)
        self.reconstruct = setup.compiled(self.edvr.reconstruct)
        self.dtype = setup.dtype

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor, Any]:
        padded = F.pad(frames[0], (0, -frames.shape[-1] % SIDES, 0, -frames.shape[-2] % SIDES), mode="replicate")[None]
        padded = padded.to(self.dtype)
        return frames.to(self.dtype), padded, self.flows(padded)

    def frames(self, pair: tuple[Tensor, Tensor, Any], time_scale: int, size: Size) -> Iterator[Tensor]:
        frames, padded, flows = pair
        h, w = frames.shape[-2:]
        check_size((h, w), size)
        between = [self.between(padded, flows, n / time_scale)[0][..., :h, :w] for n in range(1, time_scale)]
        small = [frames[:, 0], *between, frames[:, 1]]
        pyramids = [self.pyramid(frame) for frame in small]
        half = self.edvr.frames // 2
        for n in range(time_scale):
            window = [pyramids[min(max(n + k, 0), time_scale)] for k in range(-half, half + 1)]
            yield self.reconstruct(self.fuse(window), small[n])


class Bicubic:
    """The trivial peer: both frames enlarged by bicubic filtering, and blended."""

    streams = True

    def __init__(self, setup: Setup) -> None:
        self.dtype = setup.dtype

    def encode(self, frames: Tensor) -> Tensor:
        return frames.to(self.dtype)

    def frames(self, pair: Tensor, time_scale: int, size: Size) -> Iterator[Tensor]:
        first, second = F.interpolate(pair[0], size=size, mode="bicubic")
        for n in range(time_scale):
            yield torch.lerp(first, second, n / time_scale)


METHODS: dict[str, tuple[str, type[Method]]] = {
    "stif-rt": ("STIF, stif-rt", Ours),
    "stif": ("STIF, plain PyTorch", PlainSTIF),
    "zooming_slowmo": ("Zooming SlowMo", ZoomingSlowMo),
    "tmnet": ("TMNet", TMNet),
    "super_slomo+edvr": ("Super SloMo + EDVR", SuperSloMoEDVR),
    "bicubic": ("bicubic + blend", Bicubic),
}
"""By name: label and class."""
