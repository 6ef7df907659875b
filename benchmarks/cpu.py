"""The native CPU kernels against their floors and against PyTorch: ``python -m benchmarks.cpu``.

320x180 to 1280x720, one frame, with the paper's weights' shapes. Everything is measured in turn, rounds over all rows,
so that a slow spell of the machine hits all alike; the table gives medians and ratios of them. The floor of a row is
its matrix work at the rate that PyTorch reaches on [2048, 256] x [256, 256] products in the same dtype and run.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from stif_rt.dtypes import dtype_name
from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.geometry import make_geometry
from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.encoder import Features
from stif_rt.model.stif import STIF
from stif_rt.ops import native
from stif_rt.ops.deform_conv import cpu as deform_conv_cpu
from stif_rt.ops.deform_conv import deform_conv2d_reference
from stif_rt.ops.implicit import cpu, reference
from stif_rt.ops.implicit.interface import Kernels, View
from stif_rt.ops.implicit.weights import TURNS, fold
from stif_rt.runtime import Runtime
from stif_rt.runtime.encoding import pad
from stif_rt.runtime.pair import Pair
from stif_rt.runtime.weights import weights_for_scale
from stif_rt.timing import time_steps
from stif_rt.video.run import render_video
from stif_rt.video.writer import write_video

INPUTS, OUTPUTS = (180, 320), (720, 1280)
PIXELS = OUTPUTS[0] * OUTPUTS[1]
FRAME = 158_000 * PIXELS
"""Multiply-adds of one frame: 37 k (SIF) + 26 k (TIF) + 95 k (decoder) per output pixel."""
DEFORM_CONV = 9 * 64 * 64 * INPUTS[0] * INPUTS[1]
CPU = torch.device("cpu")


class Row(NamedTuple):
    """work: multiply-adds. floor: the row with the products of the same dtype. baseline: the row to be beaten."""

    name: str
    run: Callable[[], object]
    work: int
    floor: str
    baseline: str | None = None


def products(dtype: torch.dtype) -> Row:
    """PyTorch's own rate: as many products as would make a hundredth of a frame."""
    x, weight = torch.randn(2048, 256).to(dtype), torch.randn(256, 256).to(dtype)
    count = FRAME // 100 // (2048 * 256 * 256)

    def run() -> None:
        for _ in range(count):
            x @ weight

    name = f"products, {dtype_name(dtype)}"
    return Row(name, run, count * 2048 * 256 * 256, name)


def frame_rows(model: STIF, floors: dict[torch.dtype, str]) -> list[Row]:
    """One frame: the model's own form, the reference, every instruction set that runs here."""
    features, frames = Features(torch.rand(1, 3, 64, *INPUTS) - 0.5), torch.rand(1, 2, 3, *INPUTS)
    times = torch.tensor([[0.5]])
    view = View.whole(times, make_geometry(model.config, INPUTS, OUTPUTS))

    def frame(kernels: Kernels) -> Callable[[], object]:
        projections = kernels.project(features, frames)

        def run() -> object:
            feature, flow = kernels.implicit(projections, view)
            return kernels.decode(projections, view, feature, flow)

        return run

    plain = "frame, model.decode in PyTorch, float32"
    base = floors[torch.float32]
    rows = [Row(plain, lambda: model.decode(features, frames, times[0], OUTPUTS), FRAME, base)]
    kernels = reference.build(model.implicit_functions, CPU, torch.float32)
    rows.append(Row("frame, reference kernels, float32", frame(kernels), FRAME, base, plain))
    weights = fold(model.implicit_functions, TURNS)
    for library, isa in instruction_sets():
        run = frame(cpu.CpuKernels(weights, library, isa))
        rows.append(Row(f"frame, native {isa.name}", run, FRAME, floors[isa.dtype], plain))
    return rows


def deform_conv_rows(floors: dict[torch.dtype, str]) -> list[Row]:
    """64 channels, 8 deformable groups, channels last, as the encoder has it."""
    x = torch.randn(1, 64, *INPUTS).to(memory_format=torch.channels_last)
    offset_mask = torch.randn(1, 216, *INPUTS).to(memory_format=torch.channels_last)
    offset, mask = offset_mask.split((144, 72), 1)
    mask, weight, bias = mask.sigmoid(), torch.randn(64, 64, 3, 3) / 24, torch.randn(64)
    base = floors[torch.float32]
    rows, best = [], "deformable convolution, grid_sample"
    try:
        from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]
    except ImportError:
        print("torchvision is not installed: left out", file=sys.stderr)
    else:
        best = "deformable convolution, torchvision"
        run = lambda: deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)  # noqa: E731
        rows.append(Row(best, run, DEFORM_CONV, base))
    run = lambda: deform_conv2d_reference(x, offset, mask, weight, bias)  # noqa: E731
    rows.append(Row("deformable convolution, grid_sample", run, DEFORM_CONV, base, best))
    session = onnx_deform_conv(x, offset, mask, weight, bias)
    if session is not None:
        rows.append(Row("deformable convolution, ONNX Runtime", session, DEFORM_CONV, base, best))
    for library, isa in instruction_sets():
        arguments = [a.to(isa.dtype) for a in (x, offset, mask, weight, bias)]
        run = partial(deform_conv_cpu.run_deform_conv2d, library, isa, *arguments)
        rows.append(Row(f"deformable convolution, native {isa.name}", run, DEFORM_CONV, floors[isa.dtype], best))
    return rows


def onnx_deform_conv(
    x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> Callable[[], object] | None:
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except ImportError:
        print("onnx and onnxruntime are not installed: left out", file=sys.stderr)
        return None
    given = {"x": x, "weight": weight, "offset": offset, "bias": bias, "mask": mask}
    node = helper.make_node("DeformConv", list(given), ["y"], offset_group=8, pads=[1] * 4, kernel_shape=[3, 3])
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(a.shape)) for name, a in given.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x.shape))
    graph = helper.make_graph([node], "deform_conv", kinds, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    arrays = {name: a.contiguous().numpy() for name, a in given.items()}
    return lambda: session.run(None, arrays)


def encoder_rows(paper: STIF) -> list[Row]:
    """A pair of frames through the encoder, beside the plain 3x3 convolutions that it is mostly made of."""
    dtype = torch.bfloat16 if native.has_bfloat16() else torch.float32
    x = torch.randn(1, 64, *INPUTS).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3).to(dtype, memory_format=torch.channels_last)
    floor = Row("3x3 convolution, 64 to 64 channels", lambda: F.conv2d(x, weight, padding=1), DEFORM_CONV, "")
    rows = [floor._replace(floor=floor.name)]
    for name, model in (("the paper's", paper), ("stif-s", STIF(CONFIGS["stif-s"]).eval())):
        engine = TorchEngine(model.encoder, CPU, dtype)

        def run(engine: TorchEngine = engine, multiple: int = model.config.multiple) -> object:
            frames = torch.rand(2, 3, *INPUTS)  # new ones, so that nothing is kept from the pair before
            return engine(pad(frames, multiple)[None])

        # not in inference mode, in which convolutions are fused with what follows: those are not counted
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.encoder(pad(torch.rand(2, 3, *INPUTS), model.config.multiple)[None])
        rows.append(Row(f"encoder, a pair, {name}", run, counter.get_total_flops() // 2, floor.name))
    return rows


def instruction_sets() -> list[tuple[native.Library, native.Isa]]:
    library = native.load_library()
    if isinstance(library, str):
        raise SystemExit(library)
    return [(library, isa) for isa in library.isas if isa.unavailable is None]


def measure(rows: list[Row], rounds: int) -> dict[str, float]:
    """Median seconds of each row."""
    samples: dict[str, list[float]] = {row.name: [] for row in rows}
    for number in range(rounds + 1):
        for row in rows:
            (seconds,) = time_steps((row.run() for _ in range(1)), CPU)
            if number:  # the first round warms up
                samples[row.name].append(seconds)
    return {name: statistics.median(times) for name, times in samples.items()}


def video_rate(frames_per_pair: int = 8) -> float:
    """Output frames per second of ``stif-rt render`` with the bundled weights, start of the program included."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.mp4", Path(folder) / "out.mp4"
        moving_clip(source, 4)
        command = [sys.executable, "-m", "stif_rt.cli", "render", source, target, "--time-scale", str(frames_per_pair)]
        start = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        return 4 * frames_per_pair / (time.perf_counter() - start)


def moving_clip(path: Path, frames: int) -> None:
    """A texture of 320x180 that moves two pixels a frame."""
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (23, 45, 3)), np.ones((8, 8, 1), int))[:180, :320].astype(np.uint8)
    write_video(path, (np.roll(picture, 2 * n, 1) for n in range(frames)), Fraction(24))


def overhead(scale: float, rounds: int) -> float:
    """How many times as long a render takes as its calls of ``encode`` and ``render`` alone.

    Of 320x180, eight frames for each pair; medians of both in turn, with program and weights loaded.
    """
    runtime = Runtime.load(weights_for_scale(scale))
    calls: list[Callable[[], object]] = []
    encode, render = Runtime.encode, Pair.render

    def recorded_encode(self: Runtime, *frames: torch.Tensor) -> Pair:
        copies = [frame.clone() for frame in frames]
        calls.append(lambda: encode(self, *copies))
        return encode(self, *frames)

    def recorded_render(self: Pair, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(lambda: runtime.render(*arguments, **options))
        return render(self, *arguments, **options)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.mp4", Path(folder) / "out.mp4"
        moving_clip(source, 7)
        whole = partial(
            render_video, source, target, runtime=runtime, scale=scale, time_scale=8, overwrite=True, cuts="none"
        )
        with patch.object(Runtime, "encode", recorded_encode), patch.object(Pair, "render", recorded_render):
            whole()
        seconds = measure(
            [Row("render", whole, 0, ""), Row("calls", lambda: [call() for call in calls], 0, "")], rounds
        )
    return seconds["render"] / seconds["calls"]


def growth() -> None:
    """Seconds per megapixel and the process's largest memory, bundled weights, from 0.1 to 8.3 megapixels."""
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (23, 40, 3)), np.ones((8, 8, 1), int))[:180].astype(np.uint8)
    runtime = Runtime.load()
    runtime.encode(picture, np.roll(picture, 3, 1))
    table = Table("output", "megapixels", "seconds per megapixel", "largest memory so far, GiB")
    for H, W in ((234, 416), (450, 800), (720, 1280), (1080, 1920), (2160, 3840)):
        seconds = statistics.median(time_steps((runtime.render(0.5, size=(H, W)) for _ in range(3)), CPU))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        table.add_row(f"{W}x{H}", f"{H * W / 1e6:.1f}", f"{1e6 * seconds / (H * W):.2f}", f"{memory:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(
        "One picture each of the same pair of 320x180, medians of three; memory is the process's, libraries included."
    )


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    encoder: Annotated[bool, typer.Option(help="Encoders too; the paper's takes minutes without bfloat16.")] = False,
    larger: Annotated[bool, typer.Option("--growth", help="Only time and memory against the output's size.")] = False,
    video: Annotated[bool, typer.Option(help="A short clip through stif-rt render, too.")] = False,
) -> None:
    if larger:
        growth()
        return
    torch.manual_seed(0)
    model = STIF(Config()).eval()
    dtypes = sorted({isa.dtype for _, isa in instruction_sets()} | {torch.float32}, key=str)
    made = {dtype: products(dtype) for dtype in dtypes}
    floors = {dtype: row.name for dtype, row in made.items()}
    with torch.no_grad():
        rows = [*made.values(), *frame_rows(model, floors), *deform_conv_rows(floors)]
        if encoder:
            rows += encoder_rows(model)
    seconds = measure(rows, rounds)
    by_name = {row.name: row for row in rows}
    table = Table("what", "ms", "GFLOP/s", "times the floor", "faster than the baseline", title="320x180 to 1280x720")
    for row in rows:
        floor = seconds[row.floor] * row.work / by_name[row.floor].work
        faster = f"{seconds[row.baseline] / seconds[row.name]:.1f}x" if row.baseline else ""
        rate = 2e-9 * row.work / seconds[row.name]
        table.add_row(
            row.name, f"{1e3 * seconds[row.name]:.1f}", f"{rate:.0f}", f"{seconds[row.name] / floor:.2f}", faster
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"Medians of {rounds}. Floor: as many multiply-adds in bare matrix products of PyTorch (of an encoder: in its "
        "3x3 convolution). Baseline: model.decode in PyTorch; torchvision's deformable convolution, or grid_sample."
    )
    if video:
        print(f"stif-rt render, bundled weights, eight frames per pair: {video_rate():.2f} output frames per second")
        for scale in (4, 1.5):
            print(f"At x{scale} a render takes {overhead(scale, rounds):.3f} times its encode and render calls alone.")


if __name__ == "__main__":
    typer.run(main)
