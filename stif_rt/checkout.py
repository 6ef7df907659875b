"""What only a source checkout has: the folder ``benchmarks``, which no wheel holds."""

import importlib
import sys
from pathlib import Path
from typing import Any


def import_benchmarks(module: str, wanted_for: str, package: Path) -> Any:
    """A module of the folder ``benchmarks`` beside this package.

    Args:
        module: Its name without ``benchmarks.``.
        wanted_for: What the user asked for, with which the message begins.
        package: The folder of this package.

    Raises:
        ValueError: Where the package is not in a checkout.
    """
    checkout = package.parent
    if not (checkout / "benchmarks" / f"{module}.py").is_file():
        raise ValueError(
            f"{wanted_for} needs the source code of stif-rt, whose benchmarks folder is not in {checkout}: "
            f"check it out, install it with pip install --editable '.[bench]', and run it there"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return importlib.import_module(f"benchmarks.{module}")
