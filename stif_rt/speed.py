"""How fast this machine is: ``stif-rt bench quick``."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stif_rt.dtypes import dtype_name
from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.stif import STIF
from stif_rt.ops.implicit import choose_backend
from stif_rt.runtime import Runtime, bundled_weights, output_size
from stif_rt.timing import time_steps

MODELS = ("stif-s", "stif")
"""The configuration of the bundled weights, and the paper's network."""
SECONDS_PER_MODEL = 15.0
SMALLEST_SIDE = 16


def backend_of(name: str, config: Config, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel backend that ``name`` means: ``auto`` is the first that can run."""
    if name != "auto":
        return name
    return choose_backend(config, device, dtype)


@dataclass(frozen=True)
class Speed:
    """One model's speed. kernels, dtype: what ``auto`` has become. encode: seconds for a pair of frames of size
    ``inputs`` (h, w). render: seconds for one frame of size ``outputs`` (H, W).
    """

    model: str
    kernels: str
    dtype: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    encode: float
    render: float

    def scaled_to(self, inputs: tuple[int, int], outputs: tuple[int, int]) -> "Speed":
        """The expectation for other sizes: both costs grow with the number of pixels."""
        return Speed(
            self.model,
            self.kernels,
            self.dtype,
            inputs,
            outputs,
            self.encode * area(inputs) / area(self.inputs),
            self.render * area(outputs) / area(self.outputs),
        )

    def frames_per_second(self, time_scale: float) -> float:
        """Output frames per second, for ``time_scale`` of them between two input frames."""
        return time_scale / (self.encode + time_scale * self.render)

    def megapixels_per_second(self, time_scale: float) -> float:
        """Output pixels per second, in millions."""
        return self.frames_per_second(time_scale) * area(self.outputs) / 1e6


def area(size: tuple[int, int]) -> int:
    """The number of pixels."""
    return size[0] * size[1]


def measure(
    model: str,
    inputs: tuple[int, int],
    scale: float,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kernels: str = "auto",
    encoder: str = "auto",
    seconds: float | None = None,
) -> Speed:
    """Measures the speed of a model at the largest size that takes about ``seconds``.

    Args:
        model: one of MODELS.
        inputs: the largest size of frames, (h, w).
        scale: output pixels per input pixel.
        device, dtype, kernels, encoder: as of ``Runtime.load``, with its errors.
        seconds: SECONDS_PER_MODEL if None.
    """
    torch.manual_seed(0)
    network = load_model(bundled_weights()) if model == "stif-s" else STIF(CONFIGS["stif"])
    runtime = Runtime.from_model(network, device=device, dtype=dtype, kernels=kernels, encoder=encoder)
    backend = backend_of(kernels, runtime.config, runtime.device, runtime.dtype)

    end = time.perf_counter() + (SECONDS_PER_MODEL if seconds is None else seconds)
    sizes = sorted({scaled_size(inputs, divisor) for divisor in (8, 4, 2, 1)}, key=area)
    speed = measure_once(
        model, backend, runtime, sizes[0], scale
    )  # not counted: the first call loads libraries and compiles
    for index, small in enumerate(sizes):
        start = time.perf_counter()
        speed = measure_once(model, backend, runtime, small, scale)
        spent = time.perf_counter() - start
        if index + 1 < len(sizes) and 2 * spent * area(sizes[index + 1]) / area(small) > end - time.perf_counter():
            break
    return speed


def scaled_size(inputs: tuple[int, int], divisor: int) -> tuple[int, int]:
    """A size divided by a number, but no side below SMALLEST_SIDE unless it was before."""
    height, width = (min(side, max(SMALLEST_SIDE, round(side / divisor))) for side in inputs)
    return height, width


def measure_once(model: str, backend: str, runtime: Runtime, inputs: tuple[int, int], scale: float) -> Speed:
    """The fastest of two passes: a machine's other work only ever adds time."""
    outputs = output_size(inputs, scale, None)
    frames = torch.rand(2, 3, *inputs, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    work: list[Callable[[], object]] = [
        lambda: runtime.encode(frames[0], frames[1]),
        lambda: runtime.render(0.5, size=outputs),
    ]
    encode, render = (min(time_steps((step() for _ in range(2)), runtime.device)) for step in work)
    return Speed(model, backend, dtype_name(runtime.dtype), inputs, outputs, encode, render)
