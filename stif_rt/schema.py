"""Dataclasses and named tuples from files: every value is checked against the annotation of its field."""

import contextlib
import dataclasses
import json
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, TypeVar

T = TypeVar("T")

NAMES = {bool: "true or false", int: "a whole number", float: "a finite number", Fraction: "a ratio", str: "text"}


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is no JSON, whatever is wrong with it.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def from_mapping(cls: type[T], values: object, what: str) -> T:
    """An instance of a dataclass whose fields are given by name.

    Args:
        cls: the dataclass. Its fields may be bool, int, float, str, ``Literal``, ``X | Y``, ``X | None``, tuples, named
            tuples and dictionaries of these, and other classes, of which there must be instances.
        values: what a file says; lists stand for tuples.
        what: name of the whole, for errors.

    Raises:
        ValueError: naming a field that is unknown, missing, or of another type than it is annotated with.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"the {what} must be named values, not {reprlib.repr(values)}")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise ValueError(f"unknown {what} fields {reprlib.repr(unknown)}: the file may come from a newer stif-rt")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"the {what} has no field {missing[0]!r}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: convert(value, hints[name], name) for name, value in values.items()})


def convert(value: object, annotation: Any, name: str) -> Any:
    """``value`` as what a field's annotation says, with lists made tuples.

    Raises:
        ValueError: ``value`` is something else; the message begins with ``name``.
    """
    kind, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, name)
    if kind is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {' or '.join(map(repr, arguments))}")
        return value
    if kind is tuple:
        return tuple(_convert_items(value, arguments, name))
    if kind is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {reprlib.repr(value)}; it must hold named values")
        of_key, of_value = arguments
        return {
            convert(k, of_key, f"a name in {name}"): convert(v, of_value, f"{name}[{k!r}]") for k, v in value.items()
        }
    if hasattr(annotation, "_fields"):  # a named tuple
        return annotation(*_convert_items(value, tuple(typing.get_type_hints(annotation).values()), name))
    return _convert_scalar(value, annotation, name)


def _convert_union(value: object, annotations: tuple[Any, ...], name: str) -> Any:
    if value is None and type(None) in annotations:
        return None
    candidates = [annotation for annotation in annotations if annotation is not type(None)]
    if len(candidates) == 1:
        return convert(value, candidates[0], name)
    for candidate in sorted(candidates, key=lambda candidate: type(value) is not candidate):  # its own type first
        with contextlib.suppress(ValueError):
            return convert(value, candidate, name)
    named = [candidate for candidate in candidates if candidate is not int or float not in candidates]
    kinds = " or ".join(NAMES.get(candidate, str(candidate)) for candidate in named)
    raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {kinds}")


def _convert_items(value: object, annotations: tuple[Any, ...], name: str) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be a list")
    if annotations[-1] is Ellipsis:
        annotations = (annotations[0],) * len(value)
    if len(value) != len(annotations):
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must have {len(annotations)} items")
    return [convert(item, kind, f"{name}[{n}]") for n, (item, kind) in enumerate(zip(value, annotations, strict=True))]


def _convert_scalar(value: object, annotation: type, name: str) -> Any:
    if annotation is float and type(value) is int:
        return value
    if not isinstance(value, bool) and isinstance(value, numbers.Real):  # NumPy's numbers, ratios
        with contextlib.suppress(OverflowError):
            if annotation is int and isinstance(value, numbers.Integral):
                value = int(value)
            elif annotation is float:
                value = float(value)
    if type(value) is not annotation or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {NAMES.get(annotation, annotation.__name__)}")
    return value
