from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stif_rt import RenderOptions, interpolate
from stif_rt.cli.options import parse_bytes, parse_size


@pytest.mark.parametrize(("text", "size"), [("320x180", (320, 180)), (" 1X65536 ", (1, 65536))])
def test_size(text, size):
    assert parse_size(text, "--size") == size


@pytest.mark.parametrize("text", ["", "320", "x", "320x", "-4x4", "4x4x4", "4.5x4", "1_0x4", "²x4", "٤x4"])
def test_no_size(text):
    with pytest.raises(ValueError, match=r"^--size .*: give WIDTHxHEIGHT, such as 320x180$"):
        parse_size(text, "--size")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("500000", 500_000),
        ("50GB", 50 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("7k", 7000),
        ("2MiB", 2 << 20),
        ("3tb", 3 * 10**12),
    ],
)
def test_bytes(text, count):
    assert parse_bytes(text, "--max-cache") == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "nan", "inf", "5 apples", "1..5", "5iB", "1 2"])
def test_no_bytes(text):
    with pytest.raises(ValueError, match=r"^--max-cache .*: give a number of bytes such as 50GB or 1\.5GiB$"):
        parse_bytes(text, "--max-cache")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"tonemap": "moebius"}, "tonemap is 'moebius'; it must be 'clip' or 'mobius' or 'bt2390'"),
        ({"deinterlace": True}, "deinterlace is True"),
        ({"slow_audio": "strech"}, "slow_audio is 'strech'"),
        ({"fit": None}, "fit is None"),
        ({"scale": "2"}, "scale is '2'; it must be a finite number"),
        ({"width": 640.0}, r"width is 640\.0; it must be a whole number"),
        ({"region": (1, 2, 3)}, "region is .*; it must have 4 items"),
        ({"fps": [24]}, r"fps is \[24\]; it must be a finite number or text or a ratio"),
        ({"cuts": 3}, "cuts is 3; it must be text"),
        ({"audio": "no"}, "audio is 'no'; it must be true or false"),
    ],
    ids=str,
)
def test_options_of_another_kind_are_refused(option, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        RenderOptions(**option)


def test_options_may_be_of_numpy_and_paths():
    options = RenderOptions(
        scale=np.float32(1.5), width=np.int64(64), fps=Fraction(24000, 1001), cuts=Path("cuts.txt"), region=[0, 0, 8, 8]
    )
    assert (type(options.scale), type(options.width), type(options.fps)) == (float, int, Fraction)
    assert (options.cuts, options.region) == ("cuts.txt", (0, 0, 8, 8))


@pytest.mark.parametrize("option", [{"scale": "2"}, {"fit": "squash"}, {"output": "uint16"}, {"cut_threshold": "high"}])
def test_options_of_interpolate_are_checked_at_once(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name} is "):
        interpolate([], **option)
