"""``stif-rt view``."""

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from stif_rt.cli.options import Device, Dtype, EncoderOption, KernelsOption, Weights, parse_rate
from stif_rt.cli.terminal import console
from stif_rt.errors import CannotRunError

PORT = 8421


def view(
    clip: Annotated[Path, typer.Argument(help="A video, or a folder of images.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes any that is free.")] = PORT,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    input_fps: Annotated[str, typer.Option(help="Frames per second of a folder of images.")] = "24",
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
) -> None:
    """Look at a clip as continuous video in a browser of this machine: any moment, any zoom, the flow.

    On another machine, forward the port: ssh -L 8421:localhost:8421 HOST.
    """
    try:
        from stif_rt.view.server import listen, serve
    except ImportError as error:
        raise CannotRunError(f"the viewer needs more packages ({error}): pip install 'stif-rt[view]'") from error
    from stif_rt.runtime import Runtime
    from stif_rt.video.reader import open_reader
    from stif_rt.view.pictures import Viewer

    with (
        contextlib.closing(open_reader(clip, parse_rate(input_fps, "--input-fps"), tonemap="mobius")) as reader,
        listen(port) as listener,
    ):
        runtime = Runtime.load(weights, device=device, dtype=dtype, kernels=kernels, encoder=encoder)
        address = f"http://localhost:{listener.getsockname()[1]}/"
        console.print(f"{clip} is at {address} until Ctrl-C", highlight=False, markup=False, soft_wrap=True)
        if open_page:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            serve(Viewer(reader, runtime), listener)
