"""What the options of ``stif-rt render`` say, as values."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from stif_rt.cli.options import parse_size
from stif_rt.video.layout import FITS
from stif_rt.video.options import CUTS, DEINTERLACE, IMAGE_FORMATS, SLOW_AUDIO, TONEMAPS, RenderOptions

NAMES = {
    "fit": FITS,
    "deinterlace": DEINTERLACE,
    "tonemap": TONEMAPS,
    "image_format": IMAGE_FORMATS,
    "slow_audio": SLOW_AUDIO,
}
"""The options that are one of several words."""


def render_options(given: Mapping[str, Any]) -> RenderOptions:
    """The options of a render from those of the command line, by their names."""
    values = {field.name: given[field.name] for field in fields(RenderOptions) if field.name in given}
    for name, known in NAMES.items():
        if values[name] is not None and values[name] not in known:
            raise ValueError(f"--{name.replace('_', '-')} {values[name]}: there are {', '.join(known)}")
    values["width"], values["height"] = chosen_size(given["size"], given["width"], given["height"])
    if given["region"] is not None:
        values["region"] = integers(given["region"], 4, "--region", "X,Y,WIDTH,HEIGHT")
    if given["cuts"] not in CUTS:
        values["cuts"] = str(Path(given["cuts"]).absolute())
    values["encoder_options"] = dict(assignment(text, "-e") for text in given["encoder_option"] or [])
    return RenderOptions(**{name: value for name, value in values.items() if value is not None})


def pair_up(paths: list[Path], inputs: list[Path], output: Path | None) -> list[tuple[Path, Path]]:
    """(input, output) of every render, from the positional arguments and -i and -o."""
    sources = [*inputs, *paths]
    if output is None:
        if len(paths) + len(inputs) < 2 or not paths:
            raise typer.BadParameter("give an input and an output; stif-rt render --help has examples")
        output = sources.pop()
    if not sources:
        raise typer.BadParameter("give an input")
    if len(sources) == 1:
        return [(sources[0], output)]
    if output.suffix and not output.is_dir():
        raise ValueError(f"{len(sources)} inputs need a folder as output, not {output}")
    from stif_rt.video.encoding import CODECS

    def target(source: Path) -> Path:
        if source.is_dir():
            return output / source.resolve().name
        return output / (source.name if source.suffix.lower() in CODECS else f"{source.stem}.mp4")

    tasks = [(source, target(source)) for source in sources]
    names = [target for _, target in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two inputs would both become {twice}; render them one by one")
    return tasks


def chosen_size(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """(width, height) from all the ways to ask for them; None where the input's shape decides."""
    if size is not None:
        if width is not None or height is not None:
            raise ValueError("give either --size or --width and --height, not both")
        width, height = parse_size(size, "--size")
    return (None if width == -1 else width), (None if height == -1 else height)


def assignment(text: str, option: str) -> tuple[str, str]:
    """Key and value of ``KEY=VALUE``. Raises ValueError for anything else."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{option} {text}: give KEY=VALUE")
    return key, value


def integers(text: str, count: int, option: str, form: str) -> tuple[int, ...]:
    """``count`` whole numbers with commas between them."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise ValueError(f"{option} {text}: give {form}")
    return numbers
