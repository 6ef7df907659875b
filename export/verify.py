"""Runs a bundle's encoder by everything on this machine that can, beside PyTorch."""

import time
from dataclasses import dataclass

import torch

from stif_rt.bundle import WEIGHTS, Bundle, Size
from stif_rt.engines import make_bundle_engine, ort, trt
from stif_rt.model.checkpoints import load_model

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.15}
"""Largest error of a feature, as a share of the largest feature of float32 (or of 1, where that is larger)."""
TRIALS = 3


@dataclass(frozen=True)
class Result:
    """engine: a name for ``Runtime.load``. seconds: of the fastest of a few calls. reason: why it could not run.

    largest, mean: error of the features, relative to the largest one.
    """

    engine: str
    device: str
    size: Size
    tolerance: float
    largest: float = 0.0
    mean: float = 0.0
    seconds: float = 0.0
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.reason is None and self.largest <= self.tolerance


def engines(bundle: Bundle) -> list[str]:
    """Everything that could run the bundle's encoder somewhere; the engine that it was made for comes first."""
    manifest = bundle.manifest
    names = [manifest.engine] if manifest.engine in trt.MODULES else []
    if manifest.sizes is not None and manifest.form != "plugin":
        names += [f"onnx:{provider}" for provider in ort.PROVIDERS]
    return [*names, "torch"]


def verify(bundle: Bundle, names: list[str] | None = None, tolerance: float | None = None) -> list[Result]:
    """One result for each engine, device and size: the typical size, and the limits where they are small.

    names: engines to run; all that the bundle allows if None. The reference is PyTorch in float32 on the CPU.
    """
    manifest = bundle.manifest
    tolerance = TOLERANCES[manifest.dtype] if tolerance is None else tolerance
    sizes = [Size(1, 64, 96)] if manifest.sizes is None else [manifest.sizes.typical, manifest.sizes.smallest]
    sizes = [size for index, size in enumerate(sizes) if size not in sizes[:index]]
    encoder = load_model(bundle.folder / WEIGHTS).encoder.eval()
    results = []
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for size in sizes:
        torch.manual_seed(0)
        frames = torch.rand(size.batch, 2, 3, size.height, size.width)
        with torch.inference_mode():
            expected = encoder(frames)
        for name in engines(bundle) if names is None else names:
            for device in devices:
                results.append(_run(bundle, name, torch.device(device), frames, expected, size, tolerance))
    return results


def _run(
    bundle: Bundle,
    name: str,
    device: torch.device,
    frames: torch.Tensor,
    expected: torch.Tensor,
    size: Size,
    tolerance: float,
) -> Result:
    try:
        engine = make_bundle_engine(name, bundle, device)
        found = engine(frames.to(device)).float().cpu()
        times = []
        given = frames.to(device)
        for _ in range(TRIALS):
            start = time.perf_counter()
            engine(given)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    except RuntimeError as error:
        return Result(name, str(device), size, tolerance, reason=str(error))
    error_ = (found - expected).abs() / max(1.0, float(expected.abs().max()))
    largest = float("inf") if not torch.isfinite(found).all() else float(error_.max())
    return Result(name, str(device), size, tolerance, largest, float(error_.mean()), min(times))
