"""Load a model once, encode pairs of frames, render the pictures between them at any time and size."""

import logging
import threading
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from stif_rt.bundle import read_bundle
from stif_rt.dtypes import dtype_name
from stif_rt.engines import Engine, make_bundle_engine, make_engine
from stif_rt.engines.exported import refuse_velocity
from stif_rt.engines.torch_eager import Extracted, TorchEngine
from stif_rt.errors import explain_out_of_memory
from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.ops.implicit import make_kernels
from stif_rt.ops.implicit.interface import Kernels, Projections
from stif_rt.runtime.cuda_graphs import EncoderGraphs, FrameGraphs
from stif_rt.runtime.device import choose_device, choose_dtype, default_memory, parse_memory
from stif_rt.runtime.encoding import bytes_per_pixel, encode_in_tiles, pad, untileable_reason
from stif_rt.runtime.frames import Frame, Picture, check_frame, check_values, check_velocity, is_same, upload
from stif_rt.runtime.pair import Output, Pair, Renderer
from stif_rt.runtime.requests import Region, Scale, Size, Times
from stif_rt.runtime.weights import find_weights, name_of

log = logging.getLogger(__name__)


class _Encoded(NamedTuple):
    """A frame that the next pair of a video begins with.

    pixels: as it was given, [B, 3, h, w], to recognise it by. frame: float32 in [0, 1] on the device. extracted: what
    the encoder makes of the frame alone, where the engine gives that. matching: whether the velocity can be found from
    it.
    """

    pixels: Tensor
    frame: Tensor
    extracted: Extracted | None = None
    matching: bool = False


class _Last(threading.local):
    """The pair that a thread has encoded last."""

    tried: bool = False  # whether it has encoded at all, in vain or not
    warned: bool = False  # that it does not keep to the memory budget
    pair: Pair | None = None
    second: _Encoded | None = None


class Runtime:
    """A model on one device, made by ``Runtime.load``. Threads can share it.

    Attributes:
        config: The network's configuration.
        weights: What the weights were loaded from.
        device: Where it computes.
        dtype: What the implicit functions, and the encoder unless a bundle brings it, compute in.
        max_memory: Bytes, see ``load``.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        kernels: Kernels,
        device: torch.device,
        dtype: torch.dtype,
        max_memory: int,
        use_graph: bool | None = None,
        weights: str = "a network in memory",
    ) -> None:
        self.config = config
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.max_memory = max_memory
        self._engine = engine
        self._encoder_graphs: EncoderGraphs | None = None
        graphs, memory = None, max_memory
        if use_graph:
            graphs = FrameGraphs(kernels, max_memory // 2)
        if use_graph is not False and device.type == "cuda" and isinstance(engine, TorchEngine):
            self._encoder_graphs = EncoderGraphs(engine, max_memory // 4 // bytes_per_pixel(config, dtype))
            memory -= max_memory // 4  # which the graphs of the encoder keep
        self._renderer = Renderer(config, kernels, device, dtype, memory, graphs)
        self._last = _Last()
        self._last_of_all: Pair | None = None

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        kernels: str = "auto",
        encoder: str = "auto",
        max_memory: int | str | None = None,
        use_graph: bool | None = None,
    ) -> "Runtime":
        """Load a model from a file or a bundle.

        Args:
            weights: A published ``.pth`` or a ``.safetensors`` file; the name of bundled ones, such as ``stif-s``,
                which is what None means; or a bundle, the folder that ``stif-rt export bundle`` writes, whose encoder
                has an engine and a dtype of its own.
            device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, or PyTorch's own object.
            dtype: ``float32``, ``float16``, ``bfloat16``, PyTorch's own object, or ``auto``, what the device is
                fastest with: float16 on GPUs, bfloat16 on CPUs that have units for it, else float32.
            kernels: The backend of the implicit functions, a name that ``stif-rt info`` lists, or ``auto``.
            encoder: The encoder's engine, likewise.
            max_memory: Bytes, or words such as ``"1GB"``, of what the encoder and ``render`` work with; a quarter of
                the memory that is free, at most 2 GiB on a CPU and 4 on a GPU, if None. Frames, the encoded pair and
                results come on top. Larger frames are encoded in overlapping tiles and larger pictures rendered in
                tiles, with the same result. The smallest tiles are never split, even if they exceed it; the velocity
                is found on whole frames; and networks with the recurrent stage, and exported encoders, take whole
                frames.
            use_graph: Replay CUDA graphs, which is far less work for the host, at the price of memory. None: of the
                encoder, for frames that are not large, with up to a quarter of ``max_memory``; the network's 2,000
                small operations take an H200 five times as long otherwise. True: of whole pictures too, with up to
                half of it. False: of nothing.

        Returns:
            The runtime, ready to encode.

        Raises:
            FileNotFoundError, ValueError: The weights cannot be used, or a name is unknown.
            CannotRunError: The device or a backend cannot run here; the message has the reason.
        """
        options = _Options.check(device, dtype, max_memory, use_graph)
        if weights is not None and Path(weights).is_dir():
            bundle = read_bundle(Path(weights))
            if dtype == "auto" and bundle.manifest.dtype == "float32":
                options = options._replace(dtype=torch.float32)  # its encoder is exact, so the rest is too
            engine = make_bundle_engine(encoder, bundle, options.device)
            functions = make_kernels(kernels, bundle.functions(), options.device, options.dtype)
            return cls(bundle.manifest.config, engine, functions, *options, weights=str(weights))
        path = find_weights(weights)
        return cls._from_model(load_model(path), kernels, encoder, options, name_of(path))

    @classmethod
    def from_model(
        cls,
        model: STIF,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        kernels: str = "auto",
        encoder: str = "auto",
        max_memory: int | str | None = None,
        use_graph: bool | None = None,
    ) -> "Runtime":
        """Make a runtime of a network in memory.

        Args:
            model: The network. The runtime takes it over: it is moved to the device and converted.
            device, dtype, kernels, encoder, max_memory, use_graph: As for ``load``.

        Returns:
            The runtime, ready to encode.

        Raises:
            ValueError, CannotRunError: As from ``load``; or a parameter is not finite in the dtype.
        """
        options = _Options.check(device, dtype, max_memory, use_graph)
        return cls._from_model(model, kernels, encoder, options, "a network in memory")

    @classmethod
    def _from_model(cls, model: STIF, kernels: str, encoder: str, options: "_Options", weights: str) -> "Runtime":
        engine = make_engine(encoder, model.encoder, options.device, options.dtype)
        functions = make_kernels(kernels, model.implicit_functions, options.device, options.dtype)
        return cls(model.config, engine, functions, *options, weights=weights)

    @property
    def backend(self) -> str:
        """The name of the kernels that run the implicit functions."""
        return self._renderer.kernels.name

    @property
    def engine(self) -> str:
        """The name of what runs the encoder."""
        return self._engine.name

    def encode(self, frame0: Picture, frame1: Picture, *, velocity: Any = None) -> Pair:
        """Encode the pair of frames that pictures are to lie between.

        Frames are RGB or grey, of one size (h, w) from 1x1 up: uint8 arrays [h, w, 3] or [h, w]; uint8 tensors
        [3, h, w] or [h, w, 3]; floating-point arrays or tensors [3, h, w] or [h, w] in [0, 1]; PIL pictures. Arrays and
        tensors with channels may have a leading axis, a batch of B pairs. The frame that the pair before ended with is
        not encoded again.

        Args:
            frame0: The frame at t = 0, or a batch of them.
            frame1: The frame at t = 1, likewise.
            velocity: The motion from the first frame to the second, by any method, instead of what the network finds:
                a floating-point array or tensor [2, h, w], x and y in pixels of the frames, of what lies at each pixel
                midway between the two; of a batch [B, 2, h, w].

        Returns:
            The pair. It shares no memory with the frames.

        Raises:
            TypeError, ValueError: The frames or the velocity are something else, or the network takes no velocity; the
                message says what to write.
            OutOfMemoryError: The frames are too large for the memory.
        """
        last = self._last
        last.pair, last.tried, self._last_of_all = None, True, None
        first, second = check_frame(frame0, "frame0"), check_frame(frame1, "frame1")
        if first.pixels.shape != second.pixels.shape or first.batched != second.batched:
            sizes = " and ".join(_describe(frame) for frame in (first, second))
            raise ValueError(f"both frames must have one size (h, w), not {sizes}")
        B, _, h, w = first.pixels.shape
        known = None if velocity is None else self._check_velocity(velocity, first)
        work = f"encoding two frames of {w}x{h}{f' in a batch of {B}' if B > 1 else ''}"
        needed = B * h * w * bytes_per_pixel(self.config, self.dtype)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, enabled=False),
            explain_out_of_memory(work, needed, "give smaller frames or fewer at once, or dtype='bfloat16'"),
        ):
            projections = self._encode(first.pixels, second.pixels, known)
        pair = Pair((h, w), B if first.batched else None, projections, self._renderer)
        last.pair = self._last_of_all = pair
        return pair

    def render(
        self,
        t: Times,
        scale: Scale = None,
        *,
        size: Size = None,
        region: Region = None,
        output: Output = "float32",
    ) -> Tensor:
        """Render from the pair that was encoded last: ``Pair.render``.

        Where several threads share the runtime, each gets the pair that it has encoded last itself; a thread that has
        encoded none gets the last one of all.

        Args:
            t, scale, size, region, output: As for ``Pair.render``.

        Returns:
            What ``Pair.render`` returns.

        Raises:
            RuntimeError: Nothing has been encoded.
            ValueError, OutOfMemoryError: As from ``Pair.render``.
        """
        return self._last_pair().render(t, scale, size=size, region=region, output=output)

    def flow(self, t: Times, scale: Scale = None, *, size: Size = None, region: Region = None) -> Tensor:
        """The flow of the pair that was encoded last, the one that ``render`` renders: ``Pair.flow``.

        Args:
            t, scale, size, region: As for ``Pair.render``.

        Returns:
            What ``Pair.flow`` returns.

        Raises:
            RuntimeError: Nothing has been encoded.
            ValueError, OutOfMemoryError: As from ``Pair.flow``.
        """
        return self._last_pair().flow(t, scale, size=size, region=region)

    def __repr__(self) -> str:
        values = {"weights": self.weights, "engine": self.engine, "backend": self.backend}
        values |= {"dtype": dtype_name(self.dtype), "device": str(self.device)}
        return f"Runtime({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def __copy__(self) -> "Runtime":
        """A runtime that shares the network, which never changes, and has pairs of its own."""
        twin = object.__new__(Runtime)
        twin.__dict__.update(self.__dict__, _last=_Last(), _last_of_all=None)
        return twin

    def __deepcopy__(self, memo: object) -> "Runtime":
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Runtime cannot be pickled, nor handed to another process: it holds memory of the native code or of a "
            "GPU. Load it there with Runtime.load; threads can share one"
        )

    def _last_pair(self) -> Pair:
        pair = self._last.pair if self._last.tried else self._last_of_all
        if pair is None:
            raise RuntimeError("there is nothing to render yet: call encode(frame0, frame1) first")
        return pair

    def _check_velocity(self, velocity: Any, frames: Frame) -> Tensor:
        """It as float32 [B, 2, h, w] on the device."""
        if not self.config.motion:
            raise ValueError(
                f"the network of {self.weights} aligns the frames by itself and takes no velocity: it has no motion "
                "in its configuration"
            )
        if not isinstance(self._engine, TorchEngine):
            refuse_velocity(velocity)
        return check_velocity(velocity, frames).to(self.device)

    def _encode(self, pixels0: Tensor, pixels1: Tensor, velocity: Tensor | None) -> Projections:
        """The projections of two frames, [B, 3, h, w] as they were given. velocity: float32 [B, 2, h, w]."""
        first, self._last.second = self._last.second, None
        if first is None or not is_same(first.pixels, pixels0):
            first = self._prepare(pixels0, "frame0")
        second = self._prepare(pixels1, "frame1")
        kernels, multiple = self._renderer.kernels, self.config.multiple
        B, _, h, w = pixels0.shape
        pixels = self.max_memory // (B * bytes_per_pixel(self.config, self.dtype))
        if h * w > pixels and self._tileable():
            self._last.second = second
            frames = torch.stack([first.frame, second.frame], 1)
            assert isinstance(self._engine, TorchEngine)
            return encode_in_tiles(self._engine, kernels, self.config, frames, velocity, pixels)
        if isinstance(self._engine, TorchEngine):
            first, second = (self._extract(frame, self._engine, velocity is None) for frame in (first, second))
            given = None if velocity is None else pad(velocity, multiple)
            if self._encoder_graphs is None:
                features = self._engine.merge(first.extracted, second.extracted, given, kernels.reads_maps)
            else:
                shape = torch.Size((B, 3, h + -h % multiple, w + -w % multiple))
                features = self._encoder_graphs.merge(first.extracted, second.extracted, given, shape)
        else:
            features = self._engine(torch.stack([pad(x.frame, multiple) for x in (first, second)], 1))
        self._last.second = second
        # cropped again, so that coordinates are those of the frames
        features = features.cropped((h, w), self.config.feature_stride)
        return kernels.project(features, torch.stack([first.frame, second.frame], 1))

    def _tileable(self) -> bool:
        """Whether frames that are too large for the memory can be encoded in tiles; says it once if not."""
        reason = untileable_reason(self.config, self._engine)
        if reason is not None and not self._last.warned:
            self._last.warned = True
            log.warning("these frames are encoded in one piece, whatever max_memory says: %s", reason)
        return reason is None

    def _extract(self, frame: _Encoded, engine: TorchEngine, matching: bool) -> _Encoded:
        """The frame with the encoder's maps of it alone, which are computed if they are not there."""
        if frame.extracted is not None and (frame.matching or not matching):
            return frame
        padded = pad(frame.frame, self.config.multiple)
        graphs = self._encoder_graphs
        extracted = engine.extract(padded, matching) if graphs is None else graphs.extract(padded, matching)
        return frame._replace(extracted=extracted, matching=matching)

    def _prepare(self, pixels: Tensor, name: str) -> _Encoded:
        check_values(pixels, name)
        return _Encoded(*upload(pixels, self.device))


class _Options(NamedTuple):
    """Checked options, in the order in which ``Runtime`` takes them."""

    device: torch.device
    dtype: torch.dtype
    max_memory: int
    use_graph: bool | None

    @classmethod
    def check(
        cls, device: str | torch.device, dtype: str | torch.dtype, max_memory: int | str | None, use_graph: bool | None
    ) -> "_Options":
        memory = None if max_memory is None else parse_memory(max_memory)
        torch_device = choose_device(device)
        memory = default_memory(torch_device) if memory is None else memory
        if use_graph and torch_device.type != "cuda":
            raise ValueError(f"use_graph needs a CUDA GPU, and the device is {torch_device.type!r}")
        return cls(torch_device, choose_dtype(dtype, torch_device), memory, use_graph)


def _describe(frame: Frame) -> str:
    B, _, h, w = frame.pixels.shape
    return f"[{h}, {w}]" + (f" in a batch of {B}" if frame.batched else "")
