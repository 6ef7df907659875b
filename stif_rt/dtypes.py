"""The dtypes that networks run in, by name. PyTorch is imported only when a dtype is asked for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")


def parse_dtype(name: str) -> "torch.dtype":
    """The dtype of one of the names DTYPES.

    Raises:
        ValueError: another name.
    """
    import torch

    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; there are: {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: "torch.dtype") -> str:
    """The name of a dtype without its module: ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
