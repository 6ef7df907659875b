"""Option types that several commands share, and how their text is parsed."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from stif_rt.engines import ENGINES
from stif_rt.ops.implicit import BACKENDS
from stif_rt.runtime import DTYPES

Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help=f"auto (the fastest here), {', '.join(DTYPES)}.")]
KernelsOption = Annotated[str, typer.Option(help=f"auto, {', '.join(BACKENDS)}.")]
EncoderOption = Annotated[str, typer.Option(help=f"auto, {', '.join(ENGINES)}; or one that a bundle holds.")]
Weights = Annotated[Path | None, typer.Option(help="A .pth or .safetensors file, or a bundle; else the bundled ones.")]


def parse_rate(text: str, option: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{option} {text}: give a number such as 60, 23.976 or 24000/1001") from error
    if rate <= 0:
        raise ValueError(f"{option} {text}: must be positive")
    return rate
