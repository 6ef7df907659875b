"""Runs a bundle's encoder by everything on this machine that can, beside PyTorch."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stif_rt.bundle import Bundle, Size
from stif_rt.engines import Engine, make_bundle_engine, onnxruntime_engine, tensorrt_engine
from stif_rt.errors import CannotRunError
from stif_rt.model.encoder import Features
from stif_rt.timing import time_steps

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.15}
"""Largest error of a feature or velocity, as a share of the largest one of float32 (or of 1, where that is larger)."""
TRIALS = 3


@dataclass(frozen=True)
class Result:
    """engine: a name for ``Runtime.load``. reason: why it could not run; the rest then means nothing.

    largest, mean: error of the features or the velocity, whichever is larger, relative to the largest value.
    seconds: of the fastest of a few calls.
    """

    engine: str
    size: Size | None = None
    largest: float = math.inf
    mean: float = math.inf
    seconds: float = math.inf
    tolerance: float = 0
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.largest <= self.tolerance


def engines(bundle: Bundle) -> list[str]:
    """Everything that could run the bundle's encoder somewhere; the engine that it was made for comes first."""
    manifest = bundle.manifest
    names = [manifest.engine] if manifest.engine in tensorrt_engine.MODULES else []
    if manifest.sizes is not None and manifest.form != "plugin":
        names += [f"onnx:{provider}" for provider in onnxruntime_engine.PROVIDERS]
    return [*names, "torch"]


def verify(bundle: Bundle, names: list[str] | None = None, tolerance: float | None = None) -> list[Result]:
    """One result for each engine and size: the typical size and the smallest; one alone for what cannot run.

    names: engines to run; all that the bundle allows if None. The reference is PyTorch in float32 on the CPU.
    """
    manifest = bundle.manifest
    tolerance = TOLERANCES[manifest.dtype] if tolerance is None else tolerance
    sizes = [Size(1, 64, 96)] if manifest.sizes is None else [manifest.sizes.typical, manifest.sizes.smallest]
    encoder = bundle.encoder().eval()
    cases = []
    for size in dict.fromkeys(sizes):
        frames = moving_frames(size)
        with torch.inference_mode():
            cases.append((frames, encoder(frames)))

    results = []
    for name in engines(bundle) if names is None else names:
        on_cpu = name in ("onnx:cpu", "torch") or (name == "onnx" and not torch.cuda.is_available())
        device = torch.device("cpu" if on_cpu else "cuda")
        try:
            if device.type == "cuda" and not torch.cuda.is_available():
                raise CannotRunError("PyTorch sees no NVIDIA GPU here")
            engine = make_bundle_engine(name, bundle, device)
        except RuntimeError as error:
            results.append(Result(name, reason=str(error)))
            continue
        results += [_compare(name, engine, device, *case, tolerance) for case in cases]
    return results


def moving_frames(size: Size) -> Tensor:
    """A smooth random picture that moves by a few pixels, [B, 2, 3, h, w].

    Of noise without motion, networks that look for motion choose what matches best by a hair, and rounding decides.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(size.batch, 3, -(-size.height // 4), -(-size.width // 4), generator=generator)
    first = F.interpolate(coarse, size=(size.height, size.width), mode="bicubic", align_corners=False).clamp(0, 1)
    return torch.stack((first, first.roll((1, 2), (-2, -1))), 1)


def _compare(
    name: str, engine: Engine, device: torch.device, frames: Tensor, expected: Features, tolerance: float
) -> Result:
    given = frames.to(device)
    made = [None if x is None else x.float().cpu() for x in engine(given)]
    times = time_steps((engine(given) for _ in range(TRIALS)), device)
    errors = [_errors(x, right) for x, right in zip(made, expected, strict=True) if right is not None]
    size = Size(frames.shape[0], *frames.shape[-2:])
    largest, mean = (max(float(number) for number in numbers) for numbers in zip(*errors, strict=True))
    return Result(name, size, largest, mean, min(times), tolerance)


def _errors(x: Tensor | None, right: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and mean error of features or of a velocity, as a share of the largest value, or of 1."""
    if x is None:
        return torch.tensor(math.inf), torch.tensor(math.inf)
    error = ((x - right).abs() / max(1.0, float(right.abs().max()))).nan_to_num(nan=math.inf)
    return error.max(), error.mean()
