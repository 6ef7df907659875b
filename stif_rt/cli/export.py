"""``stif-rt export``: the command line of ``stif_export``, which needs the extra ``export``."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stif_rt.bundle import ENGINES, FORMS, OPSETS, Size, Sizes, read_bundle
from stif_rt.cli.options import parse_size
from stif_rt.cli.terminal import console
from stif_rt.dtypes import DTYPES, parse_dtype
from stif_rt.errors import CannotRunError
from stif_rt.files import check_target, write_whole
from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import find_weights

try:
    from stif_export import build, bundles, graphs
    from stif_export.verify import verify as verify_bundle
except ImportError as error:
    raise CannotRunError(f"exporting needs more packages ({error}): pip install 'stif-rt[export]'") from error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn weights into a bundle for ONNX Runtime or TensorRT, or into an ONNX file.",
)

TENSORRT_RANGE = "64x64", "320x180", "1280x720"

Weights = Annotated[Path | None, typer.Option(help="A .pth or .safetensors file; else the bundled ones.")]
Output = Annotated[Path, typer.Option(help="What to write.")]
Dtype = Annotated[str, typer.Option(help=f"Of the encoder's weights and activations: {', '.join(DTYPES)}.")]
FrameSize = Annotated[
    str | None,
    typer.Option("--size", help="Frames WIDTHxHEIGHT: the only size, or with limits the one to tune for. Else any."),
]
Smallest = Annotated[str | None, typer.Option("--min-size", help="Smallest frames, WIDTHxHEIGHT.")]
Largest = Annotated[str | None, typer.Option("--max-size", help="Largest frames, WIDTHxHEIGHT.")]
Batch = Annotated[int, typer.Option(min=1, help="Most pairs of frames at a time.")]
Form = Annotated[str | None, typer.Option(help=f"Of the deformable convolutions: {', '.join(FORMS)}.")]
Opset = Annotated[
    int | None,
    typer.Option(help=f"Of the ONNX graph: {OPSETS[0]} to {OPSETS[-1]}. 20, or 22 for bfloat16."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for TensorRT's engines and timings, else the user's cache.")]


@app.command("bundle")
def bundle_(
    output: Output,
    weights: Weights = None,
    encoder: Annotated[str, typer.Option(help=f"What is to run the encoder: {', '.join(ENGINES)}.")] = "onnx",
    dtype: Dtype = "float32",
    size: FrameSize = None,
    min_size: Smallest = None,
    max_size: Largest = None,
    batch: Batch = 1,
    form: Form = None,
    opset: Opset = None,
    cache: Cache = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a folder that runs without the PyTorch encoder: stif-rt render --weights FOLDER."""
    model = load(weights)
    sizes = parse_sizes(model.config, size, min_size, max_size, batch, encoder in ("tensorrt", "tensorrt-rtx"))
    with console.status("exporting") as status:
        bundles.write_bundle(
            model,
            output,
            encoder,
            dtype,
            sizes,
            form=form,
            opset=opset,
            overwrite=overwrite,
            cache=cache,
            progress=lambda text: status.update(escape(text)),
        )
    report(output, f"encoder for {encoder}, {dtype}")


@app.command()
def onnx(
    output: Output,
    weights: Weights = None,
    part: Annotated[str, typer.Option(help="encoder, or full: frames, t and size to RGB.")] = "encoder",
    dtype: Dtype = "float32",
    size: FrameSize = None,
    min_size: Smallest = None,
    max_size: Largest = None,
    batch: Batch = 1,
    form: Form = "standard",
    opset: Opset = None,
    overwrite: Overwrite = False,
) -> None:
    """Write an ONNX file."""
    if part not in ("encoder", "full"):
        raise ValueError(f"unknown part {part!r}; there are: encoder, full")
    form_or_default, number = form or "standard", opset or graphs.default_opset(dtype)
    graphs.check(form_or_default, number, dtype)
    check_target(output, overwrite)
    model = load(weights)
    sizes = parse_sizes(model.config, size, min_size, max_size, batch, limited=False)
    with console.status("tracing"):
        precision = parse_dtype(dtype)
        if part == "full":
            traced = graphs.full_graph(model, precision, sizes)
        else:
            traced = graphs.encoder_graph(model.encoder, model.config, precision, sizes)
        graphs.save(graphs.finish(traced, form_or_default, number), output, overwrite)
    report(output, f"{part}, {form_or_default}, opset {number}, {dtype}")


@app.command()
def tensorrt(
    source: Annotated[Path, typer.Argument(help="A bundle, or an ONNX file of the encoder.")],
    output: Annotated[Path | None, typer.Option(help="Engine file, for an ONNX file.")] = None,
    builder: Annotated[str, typer.Option(help="For an ONNX file: tensorrt, tensorrt-rtx.")] = "tensorrt",
    size: FrameSize = None,
    min_size: Smallest = None,
    max_size: Largest = None,
    batch: Batch = 1,
    cache: Cache = None,
    overwrite: Overwrite = False,
) -> None:
    """Build an engine of an ONNX file, or build a bundle's engine again for this machine."""
    with console.status("building") as status:

        def progress(text: str) -> None:
            status.update(escape(text))

        if source.is_dir():
            bundles.rebuild_engine(read_bundle(source), cache, progress)
            report(source, "engine built again")
            return
        if builder not in ("tensorrt", "tensorrt-rtx"):
            raise ValueError(f"unknown builder {builder!r}; there are: tensorrt, tensorrt-rtx")
        if output is None:
            raise ValueError("give --output, the engine file to write")
        if not source.is_file():
            raise FileNotFoundError(f"{source} does not exist")
        check_target(output, overwrite)
        sizes, dtype, config = graphs.read_limits(source)
        if sizes is None or not sizes.fixed:
            sizes = parse_sizes(config, size, min_size, max_size, batch, limited=True)
        built, _ = build.cached_engine(source, builder, sizes, dtype, cache, progress)
        write_whole(output, built, overwrite)
    report(output, f"engine for {builder}")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    encoder: Annotated[
        list[str] | None, typer.Option(help="Only these engines, such as onnx:cpu; else all of this machine.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest error, relative to the largest feature; else by dtype.")
    ] = None,
) -> None:
    """Run a bundle's encoder by everything here that can, beside PyTorch; exit status 1 if an error is too large."""
    checked = read_bundle(bundle)
    results = verify_bundle(checked, encoder or None, tolerance)
    out = Console()
    table = Table("engine", "frames", "largest error", "mean error", "time", "verdict")
    for result in (result for result in results if result.reason is None):
        numbers = (f"{result.largest:.2e}", f"{result.mean:.2e}", f"{1000 * result.seconds:.1f} ms")
        verdict = "good" if result.ok else f"beyond {result.tolerance:g}"
        table.add_row(result.engine, str(result.size), *numbers, verdict)
    out.print(table)
    for result in (result for result in results if result.reason is not None):
        out.print(f"{result.engine} was not run: {result.reason}", markup=False, highlight=False, soft_wrap=True)

    bad = sorted({result.engine for result in results if result.reason is None and not result.ok})
    if bad:
        raise RuntimeError(f"the error of {', '.join(bad)} is beyond the tolerance")
    ran = {result.engine.partition(":")[0] for result in results if result.reason is None}
    missing = set(encoder or []) & {result.engine for result in results if result.reason is not None}
    if missing or (not encoder and checked.manifest.engine not in ran):
        raise CannotRunError(f"not verified: {', '.join(sorted(missing)) or checked.manifest.engine} cannot run here")


def load(weights: Path | None) -> STIF:
    """The network of a file, or of the bundled weights, for inference."""
    return load_model(find_weights(weights)).eval()


def parse_sizes(
    config: Config, size: str | None, smallest: str | None, largest: str | None, batch: int, limited: bool
) -> Sizes:
    """Sizes from the command line. limited: whether there must be limits, as for TensorRT."""
    if size is not None and smallest is None and largest is None:
        only = encoder_size(config, size, "--size", batch)
        return Sizes(only, only, only)
    if size is None and smallest is None and largest is None and not limited:
        return graphs.any_size(config)
    low, typical, high = TENSORRT_RANGE
    lower = encoder_size(config, smallest or low, "--min-size", 1)
    upper = encoder_size(config, largest or high, "--max-size", batch)
    middle = encoder_size(config, size or typical, "--size", 1)
    if size is None:
        middle = Size(1, *(min(max(n, a), b) for n, a, b in zip(middle[1:], lower[1:], upper[1:], strict=True)))
    if not all(a <= n <= b for a, n, b in zip(lower, middle, upper, strict=True)):
        raise ValueError(f"sizes must grow from --min-size to --size to --max-size, not {lower}, {middle}, {upper}")
    return Sizes(lower, middle, upper)


def encoder_size(config: Config, text: str, option: str, batch: int) -> Size:
    """WIDTHxHEIGHT, each rounded up to what the runtime pads frames to."""
    width, height = parse_size(text, option)
    limit, multiple = graphs.LARGEST_SIDE, config.multiple
    if not (0 < width <= limit and 0 < height <= limit):
        raise ValueError(f"{option} {text}: sides must be from 1 to {limit}")
    return Size(batch, *(multiple * math.ceil(side / multiple) for side in (height, width)))


def report(output: Path, what: str) -> None:
    """Say on the terminal that a file or a folder was written, and how large it is."""
    files = [output] if output.is_file() else list(output.iterdir())
    mebibytes = sum(file.stat().st_size for file in files) / 2**20
    console.print(f"wrote {output}: {what}, {mebibytes:.1f} MiB", highlight=False, markup=False)
