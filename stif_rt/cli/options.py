"""Option types that several commands share, and how their text is parsed."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from stif_rt.dtypes import DTYPES

NETWORK = "Network"
BACKENDS = ("cuda", "triton", "cpu", "reference")
ENGINES = ("torch", "compiled")
"""Names for help, as the modules have them that are too slow to import for it; a test compares."""

Device = Annotated[
    str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.", rich_help_panel=NETWORK)
]
Dtype = Annotated[str, typer.Option(help=f"auto (the fastest here), {', '.join(DTYPES)}.", rich_help_panel=NETWORK)]
KernelsOption = Annotated[str, typer.Option(help=f"auto, {', '.join(BACKENDS)}.", rich_help_panel=NETWORK)]
EncoderOption = Annotated[
    str, typer.Option(help=f"auto, {', '.join(ENGINES)}; or one that a bundle holds.", rich_help_panel=NETWORK)
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="A .pth or .safetensors file, a bundle, or the name of bundled weights; else what fits the scale.",
        rich_help_panel=NETWORK,
    ),
]
MaxCache = Annotated[str, typer.Option(help="How much decoding may add to the cache, such as 500GB.")]
MAX_CACHE = "100GB"
BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str, option: str) -> tuple[int, int]:
    """(width, height) from WIDTHxHEIGHT; ``option`` names it in errors."""
    match = re.fullmatch(r"([0-9]{1,9})[xX]([0-9]{1,9})", text.strip())
    if match is None:
        raise ValueError(f"{option} {text}: give WIDTHxHEIGHT, such as 320x180")
    return int(match[1]), int(match[2])


def parse_bytes(text: str, option: str) -> int:
    """A number of bytes from text such as 500000, 50GB or 1.5 GiB; ``option`` names it in errors."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]i?)?b?", text.strip().lower())
    if match is None:
        raise ValueError(f"{option} {text}: give a number of bytes such as 50GB or 1.5GiB")
    return round(float(match[1]) * BYTES[match[2] or ""])


def parse_rate(text: str, option: str) -> Fraction:
    """Frames per second as users write them. Raises ValueError, which names the option."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{option} {text}: give a number such as 60, 23.976 or 24000/1001") from error
    if rate <= 0:
        raise ValueError(f"{option} {text}: must be positive")
    return rate
