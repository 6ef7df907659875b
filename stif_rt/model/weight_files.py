"""The content of weight files: ``.safetensors``, and what ``torch.save`` writes. No code from a file is ever run.

Whatever is wrong with a file is a BadFileError that says so; PyTorch's own messages, which advise to load such files
without protection, are not passed on.
"""

import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from stif_rt.errors import BadFileError, OutOfMemoryError, format_bytes, is_out_of_memory

SMALL_FILE = 1 << 26
_loading = threading.Lock()  # what may be unpickled, and what is warned of, are settings of the process


class _Inert:
    """A stand-in for NumPy's objects beside the tensors of a checkpoint: it takes everything and does nothing."""

    def __new__(cls, *_: object) -> "_Inert":
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


INERT: list[Any] = [
    type(name, (_Inert,), {"__module__": module, "__qualname__": name})
    for module, name in (
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
    )
]
"""Trainers store scores as NumPy scalars. Nothing of NumPy is called: it was not made to build objects safely."""


def read_safetensors(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file by name, those that are ``wanted``, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        OutOfMemoryError: it is too large.
        BadFileError: it is damaged, or something else.
    """
    _check_start(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 - not a mapping
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # damaged bytes make the parser fail in many ways, panics of Rust among them
        _raise_if_memory_was_short(path, error)
        raise BadFileError(f"{path} is not a complete safetensors file: {error}") from error


def read_pickle(path: Path) -> object:
    """The object that ``torch.save`` wrote to a file, on the CPU. NumPy's objects are replaced by inert ones.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        OutOfMemoryError: it is too large.
        BadFileError: it is damaged, or something else, or holds objects besides tensors, numbers, texts and containers.
    """
    _check_start(path)
    try:
        with _loading, warnings.catch_warnings(), torch.serialization.safe_globals(INERT):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler fail in any way
        _raise_if_memory_was_short(path, error)
        reason = _unpickling_reason(str(error))
    raise BadFileError(f"{path} is not a checkpoint of plain tensors: {reason}")


def _raise_if_memory_was_short(path: Path, error: BaseException) -> None:
    """Small files that ask for much memory are damaged instead."""
    size = path.stat().st_size
    if is_out_of_memory(error) and size > SMALL_FILE:
        raise OutOfMemoryError(f"reading {path} needs {format_bytes(size)} of memory; free some of it") from error


def _unpickling_reason(message: str) -> str:
    match = re.search(r"GLOBAL ([\w.]+)|unrecognized function <[^>]*?([\w.]+)[ >]", message)
    if match is None:
        return "it is damaged or incomplete, or of another format"
    return (
        f"it holds the Python object {match[1] or match[2]}, and objects that can hold code are not loaded; "
        "store the parameters alone, by torch.save(model.state_dict(), path)"
    )


def _check_start(path: Path) -> None:
    """Raises where there is no file, or one that its first bytes betray."""
    if path.is_dir():
        raise BadFileError(f"{path} is a folder, not a file of weights")
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist")
    with path.open("rb") as file:
        start = file.read(512)
    text = start.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").lower()
    if not start:
        raise BadFileError(f"{path} is empty: it is not a complete safetensors file nor a checkpoint of plain tensors")
    if re.match(rb"<(!doctype|html|head|\?xml|!--|script|body)", text):
        raise BadFileError(
            f"{path} is a web page, not weights: open its address in a browser and save the file behind it"
        )
    if text.startswith(b"version https://git-lfs"):
        raise BadFileError(f"{path} is a pointer of Git LFS, not weights: run git lfs pull where it comes from")
