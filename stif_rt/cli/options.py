"""Option types that several commands share, and how their text is parsed."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

NETWORK = "Network"
DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("triton", "cpu", "reference")
ENGINES = ("compiled", "torch")
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
    typer.Option(help="A .pth or .safetensors file, or a bundle; else the bundled ones.", rich_help_panel=NETWORK),
]


def parse_rate(text: str, option: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{option} {text}: give a number such as 60, 23.976 or 24000/1001") from error
    if rate <= 0:
        raise ValueError(f"{option} {text}: must be positive")
    return rate
