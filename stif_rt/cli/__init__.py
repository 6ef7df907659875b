"""The command line, ``stif-rt``: one file per command, imported only when that command is used."""

import ctypes
import importlib
import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from stif_rt.cli.terminal import console, run, state
from stif_rt.version import VERSION

COMMANDS = {
    "render": ("render.render", "Render a video at another size and frame rate."),
    "plan": ("plan.plan", "Divide a render among several processes."),
    "join": ("plan.join", "Join what the processes of a plan have rendered."),
    "cluster": ("cluster.cluster", "Render on a Ray cluster, many videos at once."),
    "view": ("view.view", "Look at a clip as continuous video, in a browser."),
    "info": ("info.info", "What this machine can run, and why not the rest."),
    "bench": ("bench.bench", "Measure speed."),
    "train": ("train.train", "Train a model: the paper's recipe, every number an option."),
    "eval": ("evaluate.evaluate", "PSNR and SSIM on clips, beside bicubic up-scaling with linear blending."),
    "export": ("export.app", "Turn weights into a bundle for ONNX Runtime or TensorRT, or into an ONNX file."),
}
"""By command: its function or group of commands in this package, and what the list of commands says of it.

Listing them must not import them: ``stif-rt --help`` answers without PyTorch.
"""


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is used, not when it is listed."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        location, summary = COMMANDS[cmd_name]
        if self._listing:
            return TyperCommand(cmd_name, help=summary)
        module_name, _, name = location.partition(".")
        module = importlib.import_module(f"stif_rt.cli.{module_name}")
        commands = getattr(module, name)
        if not isinstance(commands, typer.Typer):
            function = commands
            commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            commands.command(cmd_name, epilog=getattr(module, "EPILOG", None))(function)
        command = typer.main.get_command(commands)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Continuous space-time video super-resolution: any frame rate, any size.",
)


def show_version(wanted: bool) -> None:
    """Print the version and end, where it is wanted."""
    if wanted:
        typer.echo(f"stif-rt {VERSION}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is chosen, and show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Set up what all commands share: messages on standard error, as many as are wanted."""
    from rich.logging import RichHandler

    state["verbose"] = verbose
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=console, show_time=False, show_path=False)]
    )


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what comes next, up to 256 MiB, rather than hand it back to the system.

    Every pair of frames works in the same tensors of 1 to 60 MiB. glibc maps each anew, and the system clears each of
    their pages when it is written: a fifth of the time of 1280x720 at x1. Larger ones are handed back still. Leaves
    alone what the environment says of memory. Returns whether it was done.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        return False
    # the numbers of glibc's malloc.h; arenas: what a thread of its own would free is kept for all
    options = {"M_MMAP_THRESHOLD": (-3, 64 << 20), "M_TRIM_THRESHOLD": (-1, 256 << 20), "M_ARENA_MAX": (-8, 1)}
    return all(set_option(number, value) for number, value in options.values())


def let_threads_sleep() -> None:
    """Have PyTorch's idle threads sleep soon, instead of spinning for milliseconds in case there is more work.

    They would spin on the cores that native code, decoder and video encoder want meanwhile. GNU OpenMP reads the
    variable when it is loaded, with PyTorch. What the environment says of waiting stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main() -> Any:
    """Run the command line of this process; it ends in SystemExit."""
    keep_freed_memory()
    let_threads_sleep()
    return run(app)
