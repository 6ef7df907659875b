"""A pair of frames as a value: encoded once, rendered at any time and size, from any thread."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor

from stif_rt.errors import explain_out_of_memory, show
from stif_rt.geometry import Box
from stif_rt.model.config import CHANNELS, Config
from stif_rt.model.velocity import resize
from stif_rt.ops.implicit.interface import Kernels, Projections
from stif_rt.runtime.cuda_graphs import FrameGraphs
from stif_rt.runtime.requests import Region, Request, Scale, Size, Times, check_request
from stif_rt.runtime.tiling import SMALLEST_TILE, flow_within, render_within

Output = Literal["float32", "uint8"]
OUTPUTS: dict[str, torch.dtype] = {"float32": torch.float32, "uint8": torch.uint8}


@contextmanager
def ordinary_computation(device: torch.device) -> Iterator[None]:
    """Within, tensors are ordinary ones without gradients, whatever modes the caller is in; autocast has no effect."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@dataclass(frozen=True)
class Renderer:
    """The parts that all pairs of a runtime share. Only the graphs change; they have a lock of their own."""

    config: Config
    kernels: Kernels
    device: torch.device
    dtype: torch.dtype
    max_memory: int
    graphs: FrameGraphs | None

    @property
    def pixels(self) -> int:
        """Output pixels whose spatial feature and flow fit the memory budget; never less than a smallest tile."""
        free = self.max_memory - (0 if self.graphs is None else self.graphs.held_bytes)
        return max(free // (CHANNELS * self.dtype.itemsize + 16), SMALLEST_TILE)

    def render(self, projections: Projections, request: Request, output: torch.dtype) -> Tensor:
        """The pictures of a request; see ``Kernels.decode`` for their form."""
        times, geometry, region = request.times, request.geometry, request.region
        if self.graphs is not None and region == Box(0, 0, *geometry.outputs):
            pictures = self.graphs.render(projections, times, geometry, output)
            if pictures is not None:
                return pictures
        return render_within(self.pixels, self.kernels, projections, times, geometry, region, output)


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """Two encoded frames, which ``Runtime.encode`` returns; pictures between them are rendered from it.

    It never changes. Several may be held at once, and one may be rendered from several threads at once.

    Attributes:
        size: (h, w) of the frames.
        batch: How many pairs it holds, or None for one that was given without a batch axis.
    """

    size: tuple[int, int]
    batch: int | None
    _projections: Projections
    _renderer: Renderer

    @property
    def nbytes(self) -> int:
        """Memory that the pair holds."""
        return sum(x.nbytes for x in self._projections.tensors)

    def render(
        self,
        t: Times,
        scale: Scale = None,
        *,
        size: Size = None,
        region: Region = None,
        output: Output = "float32",
    ) -> Tensor:
        """Render the pictures at one or several times.

        Args:
            t: A number in [0, 1] (0 is the first frame, 1 the second), or a sequence of T of them; for a batch of B
                pairs also [B, T], times of each pair.
            scale: Output pixels per input pixel, any positive number, or two: (vertical, horizontal). Default 1.
            size: (H, W) instead, any two integers, which need not have the input's shape.
            region: (y, x, height, width) in output pixels: that part of the picture only, equal to the same part of
                the whole one.
            output: ``float32``, in [0, 1] and [3, H, W], or ``uint8``, in 0..255 and [H, W, 3].

        Returns:
            One picture, with a leading axis T where ``t`` is a sequence, and before that an axis B where the frames
            were a batch. On the runtime's device.

        Raises:
            ValueError: An argument is outside its range.
            OutOfMemoryError: The result, or ``max_memory``, does not fit into memory.
        """
        if not isinstance(output, str) or output not in OUTPUTS:
            raise ValueError(f"output must be 'float32' or 'uint8', not {show(output)}")
        with ordinary_computation(self._renderer.device):
            request = self._check(t, scale, size, region)
            bytes_per_pixel = 3 * OUTPUTS[output].itemsize
            with self._explain_out_of_memory("rendering", request, bytes_per_pixel):
                rgb = self._renderer.render(self._projections, request, OUTPUTS[output])
                return self._without_added_axes(rgb.clamp_(0, 1) if output == "float32" else rgb, request)

    def flow(self, t: Times, scale: Scale = None, *, size: Size = None, region: Region = None) -> Tensor:
        """Where the two frames are read for the pictures at one or several times.

        Args:
            t, scale, size, region: As for ``render``.

        Returns:
            float32 [4, H, W], (x0, y0, x1, y1) in output pixels, relative to each output pixel; with the leading axes
            that ``render`` gives.

        Raises:
            ValueError: The model predicts no flow, or an argument is outside its range.
            OutOfMemoryError: The result, or ``max_memory``, does not fit into memory.
        """
        renderer = self._renderer
        if not renderer.config.flow:
            raise ValueError("this model predicts no flow (the paper's '-f' variant)")
        with ordinary_computation(renderer.device):
            request = self._check(t, scale, size, region)
            with self._explain_out_of_memory("computing the flow of", request, 16):
                arguments = (self._projections, request.times, request.geometry, request.region)
                return self._without_added_axes(flow_within(renderer.pixels, renderer.kernels, *arguments), request)

    @property
    def velocity(self) -> Tensor | None:
        """The motion from the first frame to the second that pictures follow, found or given.

        float32 [2, h, w], x and y in pixels of the frames, of what lies at each pixel midway between the two; of a
        batch [B, 2, h, w]. None for networks without ``motion``.
        """
        velocity = self._projections.velocity
        if velocity is None:
            return None
        with ordinary_computation(self._renderer.device):
            (h, w), stride = self.size, self._renderer.config.feature_stride
            v = resize(velocity.movedim(-1, 1), stride)[..., :h, :w].clone(memory_format=torch.contiguous_format)
            return v if self.batch is not None else v[0]

    def __repr__(self) -> str:
        h, w = self.size
        return f"Pair({w}x{h}{'' if self.batch is None else f', batch of {self.batch}'})"

    def __copy__(self) -> "Pair":
        return self

    def __deepcopy__(self, memo: object) -> "Pair":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Pair cannot be pickled, nor handed to another process: encode the frames there")

    def _check(self, t: Times, scale: Scale, size: Size, region: Region) -> Request:
        return check_request(
            self._renderer.config, self.size, self.batch, self._renderer.device, t, scale, size, region
        )

    def _without_added_axes(self, x: Tensor, request: Request) -> Tensor:
        """[B, T, ...] with those of the two axes that the user has given."""
        x = x if request.several else x[:, 0]
        return x if self.batch is not None else x[0]

    def _explain_out_of_memory(self, verb: str, request: Request, bytes_per_pixel: int) -> AbstractContextManager[None]:
        count, (H, W) = request.times.numel(), (request.region.height, request.region.width)
        pixels = count * H * W
        working = min(pixels, self._renderer.pixels) * (CHANNELS * self._renderer.dtype.itemsize + 16)
        pictures = f"{verb} {count} picture{'s' if count > 1 else ''} of {W}x{H}"
        remedy = (
            "ask for fewer times at once, a region, or a smaller size; a smaller max_memory takes less to work with"
        )
        return explain_out_of_memory(pictures, pixels * bytes_per_pixel + working, remedy)
