"""Options of training are declared once, as fields of dataclasses; the command line is made from those."""

import inspect
from dataclasses import Field, field, fields
from typing import Annotated, Any, get_type_hints

import typer


def option(default: Any, group: str, help: str, **limits: float) -> Any:
    """A field of a dataclass that is an option of the command line too.

    Args:
        default: of both.
        group: under which ``--help`` lists it.
        help: what it says of it.
        limits: ``min`` and ``max`` of a number.
    """
    return field(default=default, metadata={"group": group, "help": help, **limits})


def declared(kind: type) -> list[Field[Any]]:
    """The fields of a dataclass that are options."""
    return [field for field in fields(kind) if "help" in field.metadata]


def parameters(kind: type) -> list[inspect.Parameter]:
    """The options of a dataclass as parameters that typer understands."""
    types = get_type_hints(kind)
    parameters = []
    for known in declared(kind):
        metadata = dict(known.metadata)
        told = typer.Option(rich_help_panel=metadata.pop("group"), **metadata)
        annotation = Annotated[types[known.name], told]  # type: ignore[valid-type, name-defined]  # not a static type
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(known.name, keyword, default=known.default, annotation=annotation))
    return parameters
