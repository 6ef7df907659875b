"""Load a model once, encode a pair of frames, render the picture between them at any time and size."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.bundle import read_bundle
from stif_rt.dtypes import parse_dtype
from stif_rt.engines import Engine, make_bundle_engine, make_engine
from stif_rt.geometry import Box, Geometry, make_geometry, to_pixels, warp_coordinates
from stif_rt.graphs import FrameGraphs
from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.implicit_functions import check_time
from stif_rt.model.stif import STIF
from stif_rt.ops import native
from stif_rt.ops.implicit import make_kernels
from stif_rt.ops.implicit.interface import Kernels, Projections

LARGEST_SIDE = 1 << 16
BUNDLED = "stif-s.safetensors"
SMALLEST_PIECE = 256
"""Output pixels below which a frame is not split further, whatever the memory budget."""

Picture = NDArray[np.uint8] | NDArray[np.float32] | Tensor
Times = float | Sequence[float] | NDArray[np.floating] | Tensor
Scale = float | None
Size = tuple[int, int] | None


@dataclass(frozen=True)
class _Pair:
    projections: Projections
    size: tuple[int, int]


class Runtime:
    """A model on one device. Not for several threads at once: it holds the current pair of frames.

    Made by ``Runtime.load``. ``max_memory``: bytes for the spatial feature and flow of the output pixels that are
    worked on at a time, which is nearly all that ``render`` needs besides its result; larger frames are rendered in
    pieces, with the same result. Only a piece of 256 pixels is never split, however far its flow reads.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        kernels: Kernels,
        device: torch.device,
        dtype: torch.dtype,
        max_memory: int,
        use_graph: bool = False,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.max_memory = max_memory
        self._engine = engine
        self._kernels = kernels
        self._pair: _Pair | None = None
        self._margin = 0  # output pixels around a piece that its flow is expected to read
        self._graphs = FrameGraphs(kernels) if use_graph else None

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        kernels: str = "auto",
        encoder: str = "auto",
        max_memory: int = 1 << 30,
        use_graph: bool = False,
    ) -> "Runtime":
        """A runtime with the given weights.

        weights: a published ``.pth`` or a ``.safetensors`` file; None for the bundled ones; or a bundle, the folder
        that ``stif-rt export bundle`` writes, whose encoder has an engine and a dtype of its own. device: ``auto`` (a
        GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``. dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto``:
        what the device is fastest with, float16 on GPUs, bfloat16 on CPUs that have units for it, else float32.
        kernels, encoder: names that ``stif-rt info`` lists, or ``auto``. use_graph: replay whole frames that fit
        ``max_memory`` as a CUDA graph: less work for the host, at the price of one copy of the pair's maps and of the
        picture.

        Raises FileNotFoundError or ValueError for weights that cannot be used, ValueError for unknown names, and
        RuntimeError, with the reason, for a device or backend that cannot run here.
        """
        if weights is not None and Path(weights).is_dir():
            place, precision = _choose(device, dtype, max_memory, use_graph)
            bundle = read_bundle(Path(weights))
            if dtype == "auto" and bundle.manifest.dtype == "float32":
                precision = torch.float32  # its encoder is exact, so the rest is too
            engine = make_bundle_engine(encoder, bundle, place)
            functions = make_kernels(kernels, bundle.functions(), place, precision)
            return cls(bundle.manifest.config, engine, functions, place, precision, max_memory, use_graph)
        model = load_model(bundled_weights() if weights is None else Path(weights))
        return cls.from_model(
            model,
            device=device,
            dtype=dtype,
            kernels=kernels,
            encoder=encoder,
            max_memory=max_memory,
            use_graph=use_graph,
        )

    @classmethod
    def from_model(
        cls,
        model: STIF,
        *,
        device: str = "auto",
        dtype: str = "auto",
        kernels: str = "auto",
        encoder: str = "auto",
        max_memory: int = 1 << 30,
        use_graph: bool = False,
    ) -> "Runtime":
        """A runtime of a network in memory, which it takes over: it is moved and converted. As ``load`` otherwise."""
        place, precision = _choose(device, dtype, max_memory, use_graph)
        return cls(
            model.config,
            make_engine(encoder, model.encoder, place, precision),
            make_kernels(kernels, model.implicit_functions, place, precision),
            place,
            precision,
            max_memory,
            use_graph,
        )

    @torch.inference_mode()
    def encode(self, frame0: Picture, frame1: Picture) -> None:
        """Takes the pair of frames that following calls of ``render`` lie between.

        frame0 (t = 0), frame1 (t = 1): RGB of one size, from 1x1 up: uint8 [h, w, 3] or floating-point [3, h, w] in
        [0, 1], arrays or tensors. Raises TypeError or ValueError for anything else.
        """
        self._pair = None
        pair = [_frame(frame0, "frame0"), _frame(frame1, "frame1")]
        if pair[0].shape != pair[1].shape:
            sizes = " and ".join(f"{list(frame.shape[1:])}" for frame in pair)
            raise ValueError(f"both frames must have one size (h, w), not {sizes}")
        frames = torch.stack([frame.to(self.device) for frame in pair])[None]
        h, w = frames.shape[-2:]
        unit = self.config.multiple
        padded = F.pad(frames.flatten(0, 1), (0, -w % unit, 0, -h % unit), mode="replicate")[None]
        # cropped again, so that coordinates are those of the frames
        features = self._engine(padded).cropped((h, w), self.config.feature_stride)
        projections = self._kernels.project(features, frames)
        self._pair = _Pair(projections if self._graphs is None else self._graphs.take(projections), (h, w))

    @torch.inference_mode()
    def render(
        self,
        t: Times,
        scale: Scale = None,
        *,
        size: Size = None,
        region: tuple[int, int, int, int] | None = None,
        output: Literal["float32", "uint8"] = "float32",
    ) -> Tensor:
        """The picture at time ``t``, between the two encoded frames.

        t: a number in [0, 1], or a sequence of T of them. scale: output pixels per input pixel, any positive number
        (default 1); or size: (H, W), any two integers, which need not have the input's shape.
        region: (y, x, height, width) in output pixels; that part of the picture only, equal to the same part of the
        whole one.

        Returns float32 [3, H, W] in [0, 1], or for ``output="uint8"`` uint8 [H, W, 3]; with a leading axis T where t
        is a sequence. On the runtime's device.
        Raises RuntimeError before ``encode``, and ValueError for values outside these ranges.
        """
        if output not in ("float32", "uint8"):
            raise ValueError(f"output must be 'float32' or 'uint8', not {output!r}")
        times, several, geometry, box = self._request(t, scale, size, region)
        rgb = torch.empty(len(times), 3, box.height, box.width, dtype=torch.float32, device=self.device)
        for index in range(len(times)):
            time = times[None, index : index + 1]
            if self._graphs and box == Box(0, 0, *geometry.outputs) and box.pixels <= self._affordable_pixels():
                rgb[index] = self._graphs.render(time, geometry)
            else:
                self._render(rgb[index], time, geometry, box, box)
        if output == "uint8":
            result = (rgb.clamp_(0, 1) * 255).round_().byte().movedim(1, -1)
        else:
            result = rgb.clamp_(0, 1)
        return result if several else result[0]

    @torch.inference_mode()
    def flow(self, t: float, scale: Scale = None, *, size: Size = None) -> Tensor:
        """Where the two frames are read for the picture at time ``t``: float32 [4, H, W], (x0, y0, x1, y1).

        In output pixels, relative to each output pixel. Arguments and errors as for ``render``; ValueError for a
        model without flow.
        """
        if not self.config.flow:
            raise ValueError("this model predicts no flow (the paper's '-f' variant)")
        times, several, geometry, box = self._request(t, scale, size, None)
        if several:
            raise ValueError("flow takes one time, not a sequence")
        assert self._pair is not None
        flow = torch.empty(4, box.height, box.width, dtype=torch.float32, device=self.device)
        for part in _split(box, self._affordable_pixels()):
            _, piece = self._kernels.implicit(self._pair.projections, times[None], geometry, part)
            assert piece is not None
            flow[:, part.top : part.top + part.height, part.left : part.left + part.width] = piece[0, 0].movedim(-1, 0)
        return flow

    def _request(
        self, t: Times, scale: Scale, size: Size, region: tuple[int, int, int, int] | None
    ) -> tuple[Tensor, bool, Geometry, Box]:
        """Checked arguments: times [T], whether they were a sequence, geometry and the box to render."""
        if self._pair is None:
            raise RuntimeError("there is nothing to render yet: call encode(frame0, frame1) first")
        given = torch.as_tensor(t, dtype=torch.float32)
        times = given.reshape(-1)  # checked where it is, so that the host does not wait for the GPU
        if given.ndim > 1 or not len(times):
            raise ValueError(f"t must be a number or a sequence of at least one, not of shape {list(given.shape)}")
        outside = times[~((times >= 0) & (times <= 1))]
        if len(outside):
            raise ValueError(f"t must lie in [0, 1], between the two frames; got {outside[0].item():g}")
        check_time(self.config, times)
        H, W = output_size(self._pair.size, scale, size)
        box = Box(0, 0, H, W)
        if region is not None:
            box = Box(*_integers(region, 4, "region (y, x, height, width)"))
            if box.height < 1 or box.width < 1 or not Box(0, 0, H, W).contains(box):
                raise ValueError(f"region (y, x, height, width) {tuple(region)} does not lie in the {H}x{W} picture")
        geometry = _geometry(self.config, self._pair.size, (H, W), self.device)
        return times.to(self.device), given.ndim > 0, geometry, box

    def _affordable_pixels(self) -> int:
        """Output pixels whose spatial feature and flow fit the memory budget; never less than a small piece."""
        return max(self.max_memory // (CHANNELS * self.dtype.itemsize + 16), SMALLEST_PIECE)

    def _render(self, rgb: Tensor, times: Tensor, geometry: Geometry, region: Box, whole: Box) -> None:
        """Renders ``region`` into its place in ``rgb``, [3, ...] over the box ``whole``; in halves where it is large.

        A pixel reads the spatial feature where its flow points, which may lie outside the region. So the feature is
        computed over a box that is wider by what the pieces before needed, and again where that is not enough.
        """
        assert self._pair is not None
        feature: Tensor | None = None
        box = _grow(region, self._margin, geometry)
        if box.pixels > self._affordable_pixels():
            box = region  # no room for a guess
        while True:
            if box.pixels > self._affordable_pixels() and region.pixels > SMALLEST_PIECE:
                feature = flow = None  # they make room
                for half in _halves(region):
                    self._render(rgb, times, geometry, half, whole)
                return
            feature = flow = None
            feature, flow = self._kernels.implicit(self._pair.projections, times, geometry, box)
            if flow is not None and box != region:
                top, left = region.top - box.top, region.left - box.left
                flow = flow[:, :, top : top + region.height, left : left + region.width]
            reach = region if feature is None else _reach(region, flow, geometry)
            if box.contains(reach):
                break
            box = reach
        sides = (region.top - reach.top, region.left - reach.left)
        needed = max(*sides, reach.height - region.height - sides[0], reach.width - region.width - sides[1])
        # with some room: a wider box costs a few rows, one too narrow costs the whole of pass 1
        self._margin = max(needed + needed // 4, self._margin * 3 // 4)
        top, left = region.top - whole.top, region.left - whole.left
        decoded = self._kernels.decode(self._pair.projections, feature, flow, times, geometry, region, box)
        rgb[:, top : top + region.height, left : left + region.width] = decoded[0, 0]


@functools.lru_cache(maxsize=8)
def _geometry(config: Config, inputs: tuple[int, int], outputs: tuple[int, int], device: torch.device) -> Geometry:
    return make_geometry(config, inputs, outputs).to(device)


def _choose(device: str, dtype: str, max_memory: int, use_graph: bool) -> tuple[torch.device, torch.dtype]:
    if max_memory <= 0:
        raise ValueError(f"max_memory must be a positive number of bytes, not {max_memory}")
    place = choose_device(device)
    if use_graph and place.type != "cuda":
        raise ValueError(f"use_graph needs a CUDA GPU, and the device is {place.type!r}")
    return place, choose_dtype(place) if dtype == "auto" else parse_dtype(dtype)


def bundled_weights() -> Path:
    """The weights that come with the package."""
    return Path(str(files("stif_rt") / "weights" / BUNDLED))


def output_size(inputs: tuple[int, int], scale: Scale, size: Size) -> tuple[int, int]:
    """(H, W) for a scale or a size; scale 1 for neither. Raises ValueError where both are given or one is unusable."""
    if scale is not None and size is not None:
        raise ValueError("give either scale or size, not both")
    if size is not None:
        H, W = _integers(size, 2, "size (H, W)")
    else:
        factor = 1.0 if scale is None else float(scale)
        if not (factor > 0 and math.isfinite(factor)):
            raise ValueError(f"scale must be a positive number, not {scale}")
        H, W = (max(1, round(n * factor)) for n in inputs)
    if not (1 <= H <= LARGEST_SIDE and 1 <= W <= LARGEST_SIDE):
        raise ValueError(f"size (H, W) must be from 1x1 to {LARGEST_SIDE}x{LARGEST_SIDE}, not {H}x{W}")
    return H, W


def _integers(values: Sequence[int], count: int, name: str) -> list[int]:
    given = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(given) != count or not np.array_equal(given, np.rint(given)) or not np.isfinite(given).all():
        raise ValueError(f"{name} must be {count} numbers of whole pixels, not {values}")
    return [int(value) for value in given]


def choose_device(name: str) -> torch.device:
    """The device of that name. ValueError for an unknown one, RuntimeError for one that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {name!r} cannot be used: PyTorch sees no CUDA GPU on this machine")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f"device {name!r} cannot be used: this machine has {torch.cuda.device_count()} CUDA GPUs")
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """What the device is fastest with."""
    if device.type == "cuda":
        return torch.float16
    both = native.has_bfloat16() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # kernels and encoder
    return torch.bfloat16 if both else torch.float32


def _frame(picture: Picture, name: str) -> Tensor:
    """float32 [3, h, w] in [0, 1] from either form of input."""
    if not isinstance(picture, (np.ndarray, Tensor)):
        raise TypeError(f"{name} is a {type(picture).__name__}; frames are NumPy arrays or PyTorch tensors")
    x = torch.from_numpy(np.ascontiguousarray(picture)) if isinstance(picture, np.ndarray) else picture
    if x.ndim != 3:
        raise ValueError(f"{name} has shape {list(x.shape)}; it must be uint8 [h, w, 3] or floating-point [3, h, w]")
    if x.dtype == torch.uint8:
        if x.shape[2] != 3:
            raise ValueError(f"{name} is uint8 {list(x.shape)}; uint8 frames are [h, w, 3], RGB")
        x = x.movedim(-1, 0).float() / 255
    elif not x.is_floating_point():
        raise TypeError(f"{name} is {x.dtype}; frames are uint8 in 0..255 or floating-point in [0, 1]")
    elif x.shape[0] != 3:
        raise ValueError(f"{name} is {x.dtype} {list(x.shape)}; floating-point frames are [3, h, w], RGB")
    if x.numel() == 0:
        raise ValueError(f"{name} is empty: {list(x.shape)}")
    x = x.float()
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds values that are not finite")
    low, high = x.aminmax()
    if low < 0 or high > 1:
        raise ValueError(f"{name} has values from {low:g} to {high:g}; floating-point frames must lie in [0, 1]")
    return x


def _reach(region: Box, flow: Tensor | None, geometry: Geometry) -> Box:
    """The smallest box that holds ``region`` and every pixel of the spatial feature that its flow reads.

    One pixel wider than computed, for backends that round positions differently.
    """
    H, W = geometry.outputs
    ranges = []
    for axis, component, dim, first, count, size in (
        (geometry.vertical, 1, 2, region.top, region.height, H),
        (geometry.horizontal, 0, 3, region.left, region.width, W),
    ):
        low, high = first, first + count - 1
        for k in (0, 2):
            moved = torch.zeros((), device=axis.cells.device).expand(1, 1, region.height, region.width)
            if flow is not None:
                moved = flow[..., k + component]
            near, far = to_pixels(warp_coordinates(moved, axis, first, dim), size).aminmax()
            low, high = min(low, math.floor(near) - 1), max(high, math.floor(far) + 2)
        low, high = max(low, 0), min(high, size - 1)
        ranges.append((low, high - low + 1))
    (top, height), (left, width) = ranges
    return Box(top, left, height, width)


def _grow(region: Box, margin: int, geometry: Geometry) -> Box:
    """The region and ``margin`` pixels around it, as far as the picture goes."""
    H, W = geometry.outputs
    top, left = max(region.top - margin, 0), max(region.left - margin, 0)
    bottom, right = min(region.top + region.height + margin, H), min(region.left + region.width + margin, W)
    return Box(top, left, bottom - top, right - left)


def _halves(box: Box) -> tuple[Box, Box]:
    """Split across the longer side."""
    top, left, height, width = box
    if height >= width:
        half = height // 2
        return Box(top, left, half, width), Box(top + half, left, height - half, width)
    half = width // 2
    return Box(top, left, height, half), Box(top, left + half, height, width - half)


def _split(box: Box, pixels: int) -> list[Box]:
    """Pieces of at most that many pixels, or of one."""
    if box.pixels <= max(pixels, 1):
        return [box]
    return [piece for half in _halves(box) for piece in _split(half, pixels)]
