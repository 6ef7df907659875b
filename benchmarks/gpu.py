"""Times of the GPU kernels on the GPU at hand, beside PyTorch and the roofline of ``benchmarks.kernel_report``.

``python -m benchmarks.gpu`` first checks each kernel against the reference, then times a pair's projections and both
passes of a 720p frame from 320x180, the encoder, the deformable convolution, a whole frame with and without a CUDA
graph, and a pair of a clip with eight frames, from bytes to bytes. It writes ``benchmarks/results/GPU-NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import kernel_report
from benchmarks.clip_report import FRAMES, INPUTS, OUTPUTS
from stif_rt.dtypes import DTYPES, parse_dtype
from stif_rt.engines import make_engine
from stif_rt.geometry import make_geometry
from stif_rt.model.config import CONFIGS
from stif_rt.model.encoder import Features
from stif_rt.model.stif import STIF
from stif_rt.ops.deform_conv import cuda as deform_conv_cuda
from stif_rt.ops.deform_conv import deform_conv2d_reference
from stif_rt.ops.implicit import make_kernels, triton_backend
from stif_rt.ops.implicit.interface import View
from stif_rt.runtime import Runtime
from stif_rt.runtime.encoding import pad
from stif_rt.timing import time_steps

RESULTS = Path(__file__).parent / "results"


def milliseconds(run: Callable[[], object], rounds: int = 30) -> float:
    """Median time of a call, after three to warm up."""
    return 1000 * statistics.median(time_steps((run() for _ in range(3 + rounds)), torch.device("cuda"))[3:])


@torch.inference_mode()
def passes(model: STIF, dtype: torch.dtype, device: torch.device, eager: bool) -> dict[str, Any]:
    """Times of projections and both passes; and how far the picture is from the float32 reference's."""
    generator = torch.Generator(device).manual_seed(0)
    features = Features(torch.rand(1, 3, 64, *INPUTS, device=device, generator=generator) - 0.5)
    frames = torch.rand(1, 2, 3, *INPUTS, device=device, generator=generator)
    times = torch.tensor([[0.5]], device=device)
    view = View.whole(times, make_geometry(model.config, INPUTS, OUTPUTS).to(device))
    timings: dict[str, Any] = {}
    pictures = []
    for name, kind in (("triton", dtype), ("reference", torch.float32), ("reference", dtype)):
        kernels = make_kernels(name, model.implicit_functions, device, kind)
        projections = kernels.project(features.to(kind), frames)
        feature, flow = kernels.implicit(projections, view)
        pictures.append(kernels.decode(projections, view, feature, flow))
        if name == "triton" or (eager and kind == dtype and len(pictures) == 3):
            timings[name] = {
                "project": milliseconds(partial(kernels.project, features, frames)),
                "implicit": milliseconds(partial(kernels.implicit, projections, view)),
                "decode": milliseconds(partial(kernels.decode, projections, view, feature, flow)),
            }
    picture, exact, plain = pictures
    error, allowed = ((x - exact).square().mean().sqrt().item() for x in (picture, plain))
    timings["error"] = {"triton": error, "reference": allowed}
    if dtype != torch.float32 and error > 2 * allowed:
        sys.exit(f"the picture is wrong: error {error:.2e}, the reference's in the same dtype {allowed:.2e}")
    return timings


@torch.inference_mode()
def encoder(model: STIF, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    frames = pad(torch.rand(2, 3, *INPUTS, device=device), model.config.multiple)[None]
    engines = {name: make_engine(name, model.encoder, device, dtype) for name in ("torch", "compiled")}
    timings = {f"encoder, {name}": milliseconds(partial(engine, frames), 10) for name, engine in engines.items()}
    x = torch.rand(1, 64, *INPUTS, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    offset, mask = (torch.rand(1, n, *INPUTS, device=device, dtype=dtype) for n in (144, 72))
    given = (x, offset, mask, torch.rand(64, 64, 3, 3, device=device, dtype=dtype), None)
    timings["deformable convolution"] = milliseconds(lambda: deform_conv_cuda.deform_conv2d(*given))
    timings["deformable convolution, PyTorch"] = milliseconds(lambda: deform_conv2d_reference(*given))
    return timings


def frame(model: STIF, dtype: str) -> dict[str, float]:
    timings = {}
    for name, use_graph in (("frame", False), ("frame, graph", True)):
        runtime = Runtime.from_model(model, device="cuda", dtype=dtype, use_graph=use_graph)
        runtime.encode(torch.rand(3, *INPUTS), torch.rand(3, *INPUTS))
        timings[name] = milliseconds(partial(runtime.render, 0.5, size=OUTPUTS, output="uint8"))
    return timings


def clip(model: STIF, dtype: str) -> dict[str, float]:
    """A pair of a clip and its frames, as ``benchmarks.clip_report`` models it: the first is known from before."""
    runtime = Runtime.from_model(model, device="cuda", dtype=dtype)
    frames = [torch.randint(0, 256, (3, *INPUTS), dtype=torch.uint8) for _ in range(2)]
    times = [n / FRAMES for n in range(FRAMES)]

    def pair() -> None:
        frames.reverse()  # what the pair before ended with
        runtime.encode(*frames).render(times, size=OUTPUTS, output="uint8").cpu()

    return {f"pair with {FRAMES} frames": milliseconds(pair)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(CONFIGS), default="stif-s")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: all that the GPU has")
    parser.add_argument("--no-eager", action="store_true", help="do not time the reference, which is slow")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this needs an NVIDIA GPU that PyTorch can use")
    device = torch.device("cuda", torch.cuda.current_device())
    config = CONFIGS[options.model]
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "model": options.model,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }
    gpu = next((g for g in kernel_report.GPUS if re.search(rf"\b{g.name}\b", results["gpu"])), None)
    for name in options.dtype or DTYPES:
        if reason := triton_backend.unavailable_reason(config, device, parse_dtype(name)):
            print(f"{name}: {reason}")
            continue
        torch.manual_seed(0)
        model = STIF(config).eval()
        row: dict[str, Any] = passes(model, parse_dtype(name), device, not options.no_eager)
        row |= encoder(model, parse_dtype(name), device) | frame(model, name) | clip(model, name)
        if gpu is not None:
            network = options.model if options.model in kernel_report.NETWORKS else "stif"
            reports = [
                kernel_report.compile_triton(kernel, gpu.capability, name, network) for kernel in kernel_report.KERNELS
            ]
            row["roofline"] = {
                report.kernel.removesuffix("_kernel"): max(kernel_report.roofline(report, gpu).values())
                for report in reports
            }
        results[name] = row
        print(json.dumps({name: row}, indent=2))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '-', results['gpu'])}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
