"""The weights that come with the package, by name."""

from importlib.resources import files
from pathlib import Path

WEIGHTS_FOLDER = Path(str(files("stif_rt") / "weights"))
SUFFIX = ".safetensors"
DEFAULT = "stif-s"
SAME_SIZE = "stif-i"
"""For more frames of about the same size."""
SMALLEST_ENLARGEMENT = 1.5
"""Scale from which DEFAULT is better than SAME_SIZE."""


def is_bundled(name: str) -> bool:
    """Whether weights of that name come with the package."""
    return (WEIGHTS_FOLDER / f"{name}{SUFFIX}").is_file()


def bundled_weights(name: str = DEFAULT) -> Path:
    """The file of bundled weights. Raises FileNotFoundError, with the names that there are."""
    path = WEIGHTS_FOLDER / f"{name}{SUFFIX}"
    if not is_bundled(name):
        names = ", ".join(sorted(path.stem for path in WEIGHTS_FOLDER.glob(f"*{SUFFIX}")))
        raise FileNotFoundError(f"no weights are called {name!r}, and there is no such file; bundled are: {names}")
    return path


def find_weights(weights: str | Path | None) -> Path:
    """The file that weights are in: themselves, or those of a bundled name; the default ones for None."""
    if weights is None:
        return bundled_weights()
    path = Path(weights)
    is_name = not path.exists() and path.name == str(weights) and not path.suffix
    return bundled_weights(path.name) if is_name else path


def name_of(path: Path) -> str:
    """The name of weights for messages: the bundled name, or the path."""
    return path.stem if path.resolve().parent == WEIGHTS_FOLDER.resolve() else str(path)


def weights_for_scale(scale: float) -> str:
    """The name of the bundled weights for pictures of ``scale`` output pixels per input pixel."""
    fits = scale < SMALLEST_ENLARGEMENT and is_bundled(SAME_SIZE)
    return SAME_SIZE if fits else DEFAULT
