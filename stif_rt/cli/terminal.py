"""The terminal: console, progress bars, and errors as one line."""

import contextlib
import io
import json
import os
import sys
import threading
import traceback
from typing import IO, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from stif_rt.video.overlap import THREAD_NAME

state = {"verbose": False, "json": False}


class Forgiving:
    """Standard error, whatever becomes of it: a terminal that is gone or a full disk does not end a render."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError, AttributeError):  # broken, closed, or None
            return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        try:
            return sys.stderr.isatty()
        except (OSError, ValueError, AttributeError):
            return False

    def fileno(self) -> int:
        return 2


console = Console(file=cast(IO[str], Forgiving()))


def open_standard_streams() -> None:
    """Opens those of the descriptors 0 to 2 that are closed, lest an output file gets one and the messages with it.

    A terminal that lacks a character of a file's name shows its number.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:  # another thread was faster
                os.close(null)


class Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    """A bar with count, rate and remaining time, on standard error."""
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
    open_standard_streams()
    try:
        return _explained(commands)
    except SystemExit as end:
        if any(thread.name == THREAD_NAME for thread in threading.enumerate()):
            leave(end.code)  # a picture is still being computed in a thread, which would crash as Python shuts down
        raise


def _explained(commands: typer.Typer) -> Any:
    """Errors of the user's making are said, and end in SystemExit."""
    try:
        check_current_folder()
        return commands()
    except Exception as error:
        if not _is_of_users_making(error):
            raise
        if state["verbose"]:
            console.print(traceback.format_exc(), highlight=False, markup=False)
        if state["json"]:
            console.file.write(json.dumps({"event": "error", "message": str(error)}) + "\n")
        else:
            console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def check_current_folder() -> None:
    """Raises FileNotFoundError where the current folder is gone: PyTorch's libraries would end the process."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError("the current folder has been deleted; change to another one") from error


def leave(status: Any) -> None:
    """Ends the process without waiting for its threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _is_of_users_making(error: Exception) -> bool:
    """Whether one line is enough, where others are faults of this program and deserve a traceback."""
    kinds: tuple[type[Exception], ...] = (ValueError, TypeError, RuntimeError, OSError, ArithmeticError, MemoryError)
    if "av" in sys.modules:  # importing it takes time that --help must not take
        kinds += (sys.modules["av"].FFmpegError,)
    return isinstance(error, kinds)
