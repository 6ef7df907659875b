"""Sizes that are given as text: of pictures and of memory."""

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str, option: str) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT, such as 320x180.

    Raises:
        ValueError: naming ``option``, for any other text.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})[xX]([1-9][0-9]{0,5})", text.strip())
    if match is None:
        raise ValueError(f"{option} {text}: give WIDTHxHEIGHT, such as 320x180")
    return int(match[2]), int(match[1])


def parse_bytes(text: str, option: str) -> int:
    """A number of bytes from text such as 500000, 50GB or 1.5 GiB.

    Raises:
        ValueError: naming ``option``, for any other text.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]i?)?b?", text.strip().lower())
    if match is None:
        raise ValueError(f"{option} {text}: give a number of bytes such as 50GB or 1.5GiB")
    return round(float(match[1]) * UNITS[match[2] or ""])
