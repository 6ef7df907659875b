"""The errors of this package. Each is a built-in class too, so that code that catches those goes on to work."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StifError(Exception):
    """The base class of this package's errors."""


class CannotRunError(StifError, RuntimeError):
    """A device, backend or engine that was asked for cannot run on this machine; the message has the reason."""


class BadFileError(StifError, ValueError):
    """A file is damaged, is not what it should be, or contradicts another file."""


class OutOfMemoryError(StifError, MemoryError, RuntimeError):
    """Memory did not suffice; the message says how much was needed, and what needs less."""


_ALLOCATOR_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")
"""How PyTorch's CPU allocator, which has no error class of its own, says it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, NumPy or the native code means that memory did not suffice."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATOR_MESSAGES)


@contextmanager
def explain_out_of_memory(work: str, needed: int, remedy: str) -> Iterator[None]:
    """Within, running out of memory raises ``OutOfMemoryError`` with an explanation.

    Args:
        work: What is done within, as the message's subject, such as "encoding two frames".
        needed: Bytes that the work needs in all.
        remedy: What the user can do.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        refused = re.search(r"allocate ([\d.]+ (?:[KMGT]i?B|bytes))", str(error))
        failed = f" ({refused[1]} at once were refused)" if refused else ""
        raise OutOfMemoryError(f"{work} needs about {format_bytes(needed)} of memory{failed}; {remedy}") from error


def format_bytes(count: float) -> str:
    """A number of bytes as people read it, such as ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def show(value: object) -> str:
    """A value that a user gave, as a message shows it: on one line, however long it is."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number beyond 2^64"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever a stranger's class does, or a sequence that holds such a number
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
