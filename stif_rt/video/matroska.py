"""The shape of pixels in a Matroska or WebM file, which PyAV cannot tell FFmpeg's muxer to write.

It is part of the description of the track, which cannot grow in start. But FFmpeg leaves unused space (a Void element)
before it; the elements between that and the end of the description move into it, and nothing behind them moves.
"""

import math
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

SEGMENT, SEEK_HEAD, SEEK, SEEK_ID, SEEK_POSITION = 0x18538067, 0x114D9B74, 0x4DBB, 0x53AB, 0x53AC
VOID, TRACKS, TRACK_ENTRY, VIDEO, CLUSTER = 0xEC, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
PIXEL_WIDTH, PIXEL_HEIGHT, DISPLAY_WIDTH, DISPLAY_HEIGHT, DISPLAY_UNIT = 0xB0, 0xBA, 0x54B0, 0x54BA, 0x54B2
CRC32 = 0xBF
HEADER_BYTES = 1 << 20
"""How far into a file its description ends."""


class Element(NamedTuple):
    """An EBML element: its number, and where it, its content and its end are in the file."""

    number: int
    start: int
    content: int
    end: int


def write_pixel_shape(path: Path, ratio: Fraction) -> None:
    """Writes the display size of the video track.

    Args:
        path: A complete file as FFmpeg writes it, with one video track.
        ratio: Width of a pixel over its height.

    Raises:
        ValueError: for a file that is made otherwise; it is left as it was.
    """
    with path.open("r+b") as file:
        data = file.read(HEADER_BYTES)
        try:
            start, changed = _with_display_size(data, ratio)
        except (ArithmeticError, LookupError, RuntimeError, StopIteration, ValueError) as error:
            raise ValueError(f"{path} is no Matroska file that FFmpeg wrote") from error
        file.seek(start)
        file.write(changed)


def display_size(width: int, height: int, ratio: Fraction) -> tuple[int, int]:
    """(width, height) in square pixels: of exactly the picture's shape, unless that takes very many of them."""
    shape = Fraction(width, height) * ratio
    times = max(1, round(height / shape.denominator))
    if shape.denominator * times <= 4 * height:
        return shape.numerator * times, shape.denominator * times
    return max(1, round(width * ratio)), height


def _with_display_size(data: bytes, ratio: Fraction) -> tuple[int, bytes]:
    """Where to write what: the bytes of the file from the Void element to the end of the tracks' description."""
    segment = next(e for e in _elements(data, 0, len(data)) if e.number == SEGMENT)
    top = []
    for element in _elements(data, segment.content, len(data)):
        top.append(element)
        if element.number == TRACKS:
            break
    tracks = next(e for e in top if e.number == TRACKS and e.end <= len(data))
    void = next(e for e in top if e.number == VOID)
    head = next(e for e in top if e.number == SEEK_HEAD)
    moved = [e for e in top if e.start >= void.end]
    new_tracks = _rewritten(data, tracks, ratio)
    growth = len(new_tracks) - (tracks.end - tracks.start)
    left = void.end - void.start - growth
    if left < 9:
        raise IndexError("no room")
    between = data[void.end : tracks.start]
    seek_head = bytearray(data[head.start : head.end])
    positions = {e.start - segment.content for e in moved}
    for entry in _elements(data, head.content, head.end):
        if entry.number != SEEK:
            continue
        (position,) = (e for e in _elements(data, entry.content, entry.end) if e.number == SEEK_POSITION)
        value = int.from_bytes(data[position.content : position.end], "big")
        if value in positions:
            digits = slice(position.content - head.start, position.end - head.start)
            seek_head[digits] = (value - growth).to_bytes(position.end - position.content, "big")
    filler = b"\xec\x01" + (left - 9).to_bytes(7, "big") + bytes(left - 9)
    first = next(_elements(data, head.content, head.end))
    if first.number == CRC32:
        checksum = zlib.crc32(seek_head[first.end - head.start :]).to_bytes(4, "little")
        seek_head[first.content - head.start : first.end - head.start] = checksum
    return head.start, bytes(seek_head) + data[head.end : void.start] + filler + between + new_tracks


def _rewritten(data: bytes, element: Element, ratio: Fraction) -> bytes:
    """An element on the way to the video track's size, with the display size in it."""
    if element.number == VIDEO:
        children = list(_elements(data, element.content, element.end))
        numbers = {e.number: int.from_bytes(data[e.content : e.end], "big") for e in children}
        width, height = display_size(numbers[PIXEL_WIDTH], numbers[PIXEL_HEIGHT], ratio)
        display = (DISPLAY_WIDTH, DISPLAY_HEIGHT, DISPLAY_UNIT)
        others = b"".join(data[e.start : e.end] for e in children if e.number not in display)
        content = others + _element(DISPLAY_WIDTH, width.to_bytes(4, "big"))
        return _element(VIDEO, content + _element(DISPLAY_HEIGHT, height.to_bytes(4, "big")))
    if element.number not in (TRACKS, TRACK_ENTRY):
        return data[element.start : element.end]
    children = [e for e in _elements(data, element.content, element.end) if e.number != CRC32]
    return _element(element.number, b"".join(_rewritten(data, child, ratio) for child in children))


def _element(number: int, content: bytes) -> bytes:
    name = number.to_bytes(math.ceil(number.bit_length() / 8), "big")
    size = bytes([0x80 | len(content)]) if len(content) < 127 else (1 << 56 | len(content)).to_bytes(8, "big")
    return name + size + content


def _elements(data: bytes, position: int, end: int) -> Iterator[Element]:
    """The elements side by side from ``position`` on; one may end behind the data."""
    while position < min(end, len(data)):
        start = position
        length = 9 - data[position].bit_length()
        number = int.from_bytes(data[position : position + length], "big")
        position += length
        length = 9 - data[position].bit_length()
        size = int.from_bytes(data[position : position + length], "big") & ~(-1 << 7 * length)
        position += length
        yield Element(number, start, position, position + size)
        position += size
