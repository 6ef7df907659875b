import pytest

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
