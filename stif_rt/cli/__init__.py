"""The command line, ``stif-rt``: one file per command."""

import logging
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from stif_rt.cli import bench, evaluate, export, info, render, train
from stif_rt.cli.terminal import console, run, state

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Continuous space-time video super-resolution: any frame rate, any size.",
)


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is chosen, and show tracebacks.")] = False,
) -> None:
    state["verbose"] = verbose
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=console, show_time=False, show_path=False)]
    )


app.command()(render.render)
app.command()(info.info)
app.command()(train.train)
app.command("eval")(evaluate.evaluate)
app.add_typer(bench.bench, name="bench")
app.command(
    "export",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(export.export)


def main() -> Any:
    return run(app)
