"""Values from files become fields only where they are of the field's type."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pytest

from stif_rt.schema import from_mapping, parse_json


class Size(NamedTuple):
    height: int
    width: int


@dataclass(frozen=True)
class Example:
    flag: bool
    count: int = 1
    rate: float = 1.0
    kind: Literal["a", "b"] = "a"
    widths: tuple[int, ...] = (64,)
    size: Size | None = None
    versions: dict[str, str] = field(default_factory=dict)
    time: int | float | str | None = None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"flag": True}, Example(True)),
        ({"flag": False, "count": 3, "rate": 2, "kind": "b"}, Example(False, 3, 2.0, "b")),
        ({"flag": True, "widths": [64, 128], "size": [1, 2]}, Example(True, widths=(64, 128), size=Size(1, 2))),
        ({"flag": True, "widths": [], "size": None}, Example(True, widths=())),
        ({"flag": True, "versions": {"torch": "2"}}, Example(True, versions={"torch": "2"})),
        ({"flag": True, "time": "1:02"}, Example(True, time="1:02")),
        ({"flag": True, "time": 2}, Example(True, time=2)),
    ],
)
def test_values_of_the_right_type(values, expected):
    assert from_mapping(Example, values, "example") == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "example must be named values"),
        (None, "example must be named values"),
        ({}, "no field 'flag'"),
        ({"flag": True, "other": 1, 2: 3}, r"unknown example fields \['other', 2\]"),
        ({"flag": 1}, "flag is 1; it must be true or false"),
        ({"flag": "true"}, "flag is 'true'"),
        ({"flag": True, "count": True}, "count is True; it must be a whole number"),
        ({"flag": True, "count": 2.0}, r"count is 2\.0"),
        ({"flag": True, "count": "3"}, "count is '3'"),
        ({"flag": True, "count": None}, "count is None"),
        ({"flag": True, "rate": float("nan")}, "rate is nan; it must be a finite number"),
        ({"flag": True, "rate": True}, "rate is True"),
        ({"flag": True, "time": True}, "time is True; it must be a finite number or text"),
        ({"flag": True, "time": [1]}, r"time is \[1\]"),
        ({"flag": True, "kind": "c"}, "kind is 'c'; it must be 'a' or 'b'"),
        ({"flag": True, "kind": ["a"]}, "kind is"),
        ({"flag": True, "widths": 64}, "widths is 64; it must be a list"),
        ({"flag": True, "widths": "64"}, "widths is '64'; it must be a list"),
        ({"flag": True, "widths": [64, 1.5]}, r"widths\[1\] is 1\.5"),
        ({"flag": True, "size": [1]}, "size is .* 2 items"),
        ({"flag": True, "size": [1, [2]]}, r"size\[1\] is \[2\]"),
        ({"flag": True, "versions": ["a"]}, "named values"),
        ({"flag": True, "versions": {"a": 1}}, r"versions\['a'\] is 1; it must be text"),
        ({"flag": True, "widths": ["x"] * 10**6}, r"^.{,200}$"),
    ],
)
def test_values_of_another_type_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(Example, values, "example")


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe", "[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "nul"])
def test_damaged_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
