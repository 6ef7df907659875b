"""``stif-rt bench``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stif_rt.checkout import import_benchmarks
from stif_rt.cli.options import Device, Dtype, EncoderOption, KernelsOption, parse_size
from stif_rt.cli.terminal import console
from stif_rt.runtime import output_size
from stif_rt.speed import MODELS, measure

bench = typer.Typer(no_args_is_help=True, help="Measure speed.")


@bench.command()
def quick(
    size: Annotated[str, typer.Option(help="Size of the clip, WIDTHxHEIGHT.")] = "320x180",
    scale: Annotated[float, typer.Option(min=0.1, help="Output pixels per input pixel.")] = 4,
    time_scale: Annotated[float, typer.Option(min=1, help="Output frames per input frame.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
) -> None:
    """How fast a clip will be on this machine, in under a minute."""
    width, height = parse_size(size, "--size")
    inputs = height, width
    outputs = output_size(inputs, scale, None)
    columns = ("model", "kernels", "measured", "pair", "frame", "frames/s", "MP/s")
    title = f"{width}x{height} to {outputs[1]}x{outputs[0]}, {time_scale:g} times the frames"
    table = Table(*columns, title=title, title_justify="left")
    for model in MODELS:
        with console.status(f"measuring {model}"):
            measured = measure(model, inputs, scale, device=device, dtype=dtype, kernels=kernels, encoder=encoder)
        speed = measured.scaled_to(inputs, outputs)
        table.add_row(
            model,
            measured.kernels,
            f"{measured.inputs[1]}x{measured.inputs[0]}",
            f"{speed.encode:.3g} s",
            f"{speed.render:.3g} s",
            f"{speed.frames_per_second(time_scale):.3g}",
            f"{speed.megapixels_per_second(time_scale):.3g}",
        )
        table.title = f"{title}, {speed.dtype}"
    Console().print(table)
    console.print("stif-s: the bundled weights. stif: the paper's network, here with random weights.")
    console.print("Measured on smaller frames where that takes too long, and scaled by the number of pixels.")
    console.print("Reading and writing files is not included.")


def forward_to(module: str) -> Any:
    """A command of the source checkout's ``benchmarks`` folder, which no wheel holds."""

    def command(context: typer.Context) -> None:
        commands = import_benchmarks(module, f"bench {module}", Path(__file__).resolve().parents[1])
        commands.app(context.args, prog_name=f"stif-rt bench {module}", standalone_mode=False)

    return command


FORWARD_CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
for module, summary in (
    ("figure3", "The paper's Figure 3: inference time against time scale, with its peers. Needs the source checkout."),
    ("growth", "Time and memory against output pixels and frames per pair. Needs the source checkout."),
):
    bench.command(module, help=summary, add_help_option=False, context_settings=FORWARD_CONTEXT)(forward_to(module))
