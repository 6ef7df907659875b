"""Times of the GPU kernels on the GPU at hand, beside PyTorch and the roofline of ``benchmarks.kernel_report``.

``python -m benchmarks.gpu`` first checks each backend against the reference, then times a pair's projections and both
passes of a 720p frame from 320x180, the encoder and the deformable convolution; and through ``Runtime`` with no, some
and all CUDA graphs a pair, a frame, and a pair of a clip with eight frames, from bytes to bytes; with ``--compiled``
also by the engine of that name. It writes ``benchmarks/results/GPU-NAME.json``, anew after each network and dtype.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import kernel_report
from benchmarks.clip_report import FRAMES, INPUTS, OUTPUTS
from stif_rt.dtypes import DTYPES, parse_dtype
from stif_rt.engines import make_engine
from stif_rt.geometry import cell_count, make_geometry
from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import CHANNELS, CONFIGS
from stif_rt.model.encoder import Features
from stif_rt.model.stif import STIF
from stif_rt.ops.deform_conv import cuda as deform_conv_cuda
from stif_rt.ops.deform_conv import deform_conv2d_reference
from stif_rt.ops.implicit import BACKENDS, cuda_backend, make_kernels, triton_backend
from stif_rt.ops.implicit.interface import Kernels, View
from stif_rt.runtime import Runtime
from stif_rt.runtime.encoding import pad
from stif_rt.runtime.pair import Pair
from stif_rt.runtime.weights import bundled_weights, is_bundled
from stif_rt.timing import time_steps

RESULTS = Path(__file__).parent / "results"


def milliseconds(run: Callable[[], object], rounds: int = 30) -> float:
    """Median time of a call, after three to warm up."""
    return 1000 * statistics.median(time_steps((run() for _ in range(3 + rounds)), torch.device("cuda"))[3:])


@torch.inference_mode()
def passes(model: STIF, dtype: torch.dtype, device: torch.device, eager: bool) -> dict[str, Any]:
    """Of each backend the times of projections and both passes, of a frame as one of eight at once, and the error.

    The error is that of the picture against the float32 reference's; the reference's own under the dtype is beside it.
    """
    generator = torch.Generator(device).manual_seed(0)
    cells = [cell_count(side, model.config.feature_stride) for side in INPUTS]
    velocity = 8 * torch.rand(1, 2, *cells, device=device, generator=generator) - 4
    maps = torch.rand(1, 3, CHANNELS, *cells, device=device, generator=generator) - 0.5
    features = Features(maps, velocity if model.config.motion else None)
    frames = torch.rand(1, 2, 3, *INPUTS, device=device, generator=generator)
    geometry = make_geometry(model.config, INPUTS, OUTPUTS).to(device)
    view, eight = (View.whole(torch.linspace(0.5, 0.9, count, device=device)[None], geometry) for count in (1, FRAMES))

    def picture(kernels: Kernels, view: View) -> Tensor:
        projections = kernels.project(features.to(kernels.dtype), frames)
        return kernels.decode(projections, view, *kernels.implicit(projections, view))

    exact, plain = (
        picture(make_kernels("reference", model.implicit_functions, device, kind), view)
        for kind in (torch.float32, dtype)
    )
    allowed = rms(plain - exact)
    timings: dict[str, Any] = {"error of the reference": allowed}
    for name in ("cuda", "triton", "reference"):
        if (reason := BACKENDS[name].unavailable_reason(model.config, device, dtype)) is not None:
            timings[name] = reason
            continue
        if name == "reference" and not eager:
            continue
        kernels = make_kernels(name, model.implicit_functions, device, dtype)
        projections = kernels.project(features.to(dtype), frames)
        feature, flow = kernels.implicit(projections, view)
        timings[name] = {
            "error": rms(picture(kernels, view) - exact),
            "project": milliseconds(partial(kernels.project, features.to(dtype), frames)),
            "implicit": milliseconds(partial(kernels.implicit, projections, view)),
            "decode": milliseconds(partial(kernels.decode, projections, view, feature, flow)),
        }
        if name != "reference":
            timings[name][f"each of {FRAMES} at once"] = milliseconds(partial(picture, kernels, eight), 10) / FRAMES
            if dtype != torch.float32 and timings[name]["error"] > max(2 * allowed, 1e-5):
                sys.exit(f"{name}: the picture is wrong: error {timings[name]['error']:.2e}, allowed {2 * allowed:.2e}")
    return timings


def rms(x: Tensor) -> float:
    return x.float().square().mean().sqrt().item()


@torch.inference_mode()
def encoder(model: STIF, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    frames = pad(torch.rand(2, 3, *INPUTS, device=device), model.config.multiple)[None]
    engine = make_engine("torch", copy.deepcopy(model.encoder), device, dtype)
    timings = {"encoder": milliseconds(partial(engine, frames), 10)}
    x = torch.rand(1, 64, *INPUTS, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    offset, mask = (torch.rand(1, n, *INPUTS, device=device, dtype=dtype) for n in (144, 72))
    given = (x, offset, mask, torch.rand(64, 64, 3, 3, device=device, dtype=dtype), None)
    timings["deformable convolution"] = milliseconds(lambda: deform_conv_cuda.deform_conv2d(*given))
    timings["deformable convolution, PyTorch"] = milliseconds(lambda: deform_conv2d_reference(*given))
    return timings


def whole(model: STIF, dtype: str, use_graph: bool | None, engine: str = "torch") -> dict[str, Any]:
    """Through ``Runtime``: a frame, a pair of a clip, and that pair with its frames.

    Of a pair the first frame is known from the pair before, as ``benchmarks.clip_report`` models it.
    """
    runtime = Runtime.from_model(copy.deepcopy(model), device="cuda", dtype=dtype, encoder=engine, use_graph=use_graph)
    frames = [torch.randint(0, 256, (3, *INPUTS), dtype=torch.uint8) for _ in range(2)]
    times = [n / FRAMES for n in range(FRAMES)]

    def encode() -> Pair:
        frames.reverse()  # what the pair before ended with
        return runtime.encode(*frames)

    def clip() -> Tensor:
        return encode().render(times, size=OUTPUTS, output="uint8").cpu()

    encode()
    return {
        "kernels": runtime.backend,
        "encode": milliseconds(encode),
        "frame": milliseconds(partial(runtime.render, 0.5, size=OUTPUTS, output="uint8")),
        f"pair with {FRAMES} frames": milliseconds(clip),
    }


def load(name: str) -> STIF:
    """The bundled network of that name; else one of random weights, the last layers' too, with which training has 0."""
    if is_bundled(name):
        return load_model(bundled_weights(name))
    torch.manual_seed(0)
    model = STIF(CONFIGS[name]).eval()
    cuda_backend.draw_outputs(model.implicit_functions)
    return model


@torch.no_grad()
def measure(name: str, dtype: str, device: torch.device, eager: bool, compiled: bool) -> dict[str, Any]:
    """All that is timed of a network under a dtype."""
    model = load(name)
    row: dict[str, Any] = passes(model, parse_dtype(dtype), device, eager)
    row |= encoder(model, parse_dtype(dtype), device)
    graphs = {"no graphs": False, "the encoder's graphs": None, "all graphs": True}
    row |= {key: whole(model, dtype, use_graph) for key, use_graph in graphs.items()}
    if compiled:
        row["the encoder compiled, and its graphs"] = whole(model, dtype, None, "compiled")
    gpu = next((g for g in kernel_report.GPUS if re.search(rf"\b{g.name}\b", torch.cuda.get_device_name(device))), None)
    if gpu is not None:
        network = name if name in kernel_report.NETWORKS else "stif"
        reports = [
            kernel_report.compile_triton(kernel, gpu.capability, dtype, network) for kernel in kernel_report.KERNELS
        ]
        row["roofline"] = {
            report.kernel.removesuffix("_kernel"): max(kernel_report.roofline(report, gpu).values())
            for report in reports
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(CONFIGS), action="append", help="default: stif-s")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: all that the GPU has")
    parser.add_argument("--no-eager", action="store_true", help="do not time the reference, which is slow")
    parser.add_argument("--compiled", action="store_true", help="time the compiled encoder too, which takes minutes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this needs an NVIDIA GPU that PyTorch can use")
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    results: dict[str, Any] = {"gpu": gpu, "torch": torch.__version__, "inputs": INPUTS, "outputs": OUTPUTS}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.json"
    for name in options.model or ["stif-s"]:
        for dtype in options.dtype or DTYPES:
            if reason := triton_backend.unavailable_reason(CONFIGS[name], device, parse_dtype(dtype)):
                print(f"{name}, {dtype}: {reason}")
                continue
            row = measure(name, dtype, device, not options.no_eager, options.compiled)
            results.setdefault(name, {})[dtype] = row
            print(json.dumps({name: {dtype: row}}, indent=2), flush=True)
            path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
