"""The terminal: console, progress bars, and errors as one line."""

import sys
import traceback
from typing import Any

import av
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True)
state = {"verbose": False}


class Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console,
    )


def run(commands: typer.Typer) -> Any:
    """Runs a command line; errors of the user's making become one line and exit status 1."""
    try:
        return commands()
    except (ValueError, TypeError, RuntimeError, OSError, ArithmeticError, MemoryError, av.FFmpegError) as error:
        if state["verbose"]:
            traceback.print_exc()
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
