"""Which device and dtype a name means here, and how much memory."""

import os
import re
from pathlib import Path

import torch

from stif_rt.dtypes import dtype_name, parse_dtype
from stif_rt.errors import CannotRunError, show
from stif_rt.ops import native

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_UNITS |= {f"{unit}I": 1024**power for power, unit in enumerate("KMGT", 1)}


def choose_device(device: str | torch.device) -> torch.device:
    """The device that a name means.

    Args:
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, or PyTorch's own object.

    Raises:
        ValueError: It is unknown.
        CannotRunError: This machine lacks it.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from error
    if result.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported; use auto, cpu, cuda or cuda:N")
    if result.type == "cuda" and not torch.cuda.is_available():
        raise CannotRunError(f"device {str(device)!r} cannot be used: PyTorch sees no CUDA GPU on this machine")
    if result.type == "cuda" and (result.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise CannotRunError(f"device {str(device)!r} cannot be used: this machine has {count} CUDA GPUs")
    return result


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a name means on a device.

    Args:
        dtype: One of the names ``DTYPES``, PyTorch's own object, or ``auto``, what the device is fastest with: float16
            on GPUs, bfloat16 on CPUs that have units for it, else float32.
        device: Where it is computed.

    Raises:
        ValueError: It is none of these.
    """
    name = dtype_name(dtype) if isinstance(dtype, torch.dtype) else dtype
    if name != "auto":
        return parse_dtype(name)
    if device.type == "cuda":
        return torch.float16
    both = native.has_bfloat16() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # kernels and encoder
    return torch.bfloat16 if both else torch.float32


FREE_PARTS = 4
"""A runtime works with one of so many parts of the memory that is free."""
LARGEST_DEFAULT = {"cpu": 2 << 30, "cuda": 4 << 30}
"""Bytes of it at most: a pair of 3840x2160 by ``stif-s`` and its picture at x2 take 7.3 GiB of a host, all counted."""
FALLBACK = 1 << 30  # where it is not known how much is free


def default_memory(device: torch.device) -> int:
    """Bytes of ``max_memory`` where the user gives none: a quarter of what is free, at most ``LARGEST_DEFAULT``."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return FALLBACK if free is None else max(min(free // FREE_PARTS, LARGEST_DEFAULT.get(device.type, FALLBACK)), 1)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the host can still give, within the limit of its container; None where that is not known."""
    amounts = []
    try:
        match = re.search(r"MemAvailable:\s*(\d+) kB", (root / "proc/meminfo").read_text())
        amounts += [int(match[1]) * 1024] if match else []
        group = root / "sys/fs/cgroup"
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        amounts += [max(int(limit) - int(used), 0)] if limit.isdecimal() else []
    except OSError:
        pass  # no Linux, or no container
    if not amounts and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        amounts = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    return min(amounts, default=None)


def parse_memory(memory: int | str) -> int:
    """Bytes of ``max_memory``: a number, or words such as ``1GB`` (10^9), ``1.5 GiB`` (1.5 * 2^30) or ``512M``.

    Raises:
        ValueError: It is not a positive amount.
    """
    count: float | None = None
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", memory.upper())
        if match and match[2] in _UNITS:
            count = float(match[1]) * _UNITS[match[2]]
    elif isinstance(memory, (int, float)) and not isinstance(memory, bool):
        count = memory
    if count is None or not 1 <= count < 1 << 62:
        raise ValueError(f'max_memory must be a positive number of bytes or words such as "1GB", not {show(memory)}')
    return int(count)
