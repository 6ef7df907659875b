"""Which way up a picture is: the display matrix of videos, the EXIF orientation of images."""

import struct
from typing import NamedTuple

import av
from torch import Tensor

from stif_rt.video.frame_tags import side_data


class Orientation(NamedTuple):
    """How a stored picture becomes upright: first transposed, then mirrored.

    Attributes:
        transpose: Whether rows become columns.
        flip_rows: Whether the order of rows is reversed then, upside down.
        flip_columns: Whether the order of columns is, left to right.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        return (width, height) if self.transpose else (height, width)

    def apply(self, plane: Tensor) -> Tensor:
        """The upright picture for a tensor [..., h, w]."""
        if self.transpose:
            plane = plane.transpose(-1, -2)
        dims = [dim for dim, flip in ((-2, self.flip_rows), (-1, self.flip_columns)) if flip]
        return plane.flip(dims) if dims else plane.contiguous()


UPRIGHT = Orientation()
EXIF = {
    1: UPRIGHT,
    2: Orientation(flip_columns=True),
    3: Orientation(flip_rows=True, flip_columns=True),
    4: Orientation(flip_rows=True),
    5: Orientation(transpose=True),
    6: Orientation(transpose=True, flip_columns=True),
    7: Orientation(transpose=True, flip_rows=True, flip_columns=True),
    8: Orientation(transpose=True, flip_rows=True),
}
"""By the value of EXIF's tag 274."""


def frame_orientation(frame: av.VideoFrame) -> Orientation:
    """The orientation that a video frame's display matrix asks for; upright where it has none."""
    data = side_data(frame, "DISPLAYMATRIX")
    return UPRIGHT if data is None else from_display_matrix(struct.unpack("=9i", data[:36]))


def from_display_matrix(matrix: tuple[int, ...]) -> Orientation:
    """The nearest of the eight orientations to FFmpeg's 3x3 matrix, of which the four values of a turn matter."""
    across_x, across_y, down_x, down_y = matrix[0], matrix[1], matrix[3], matrix[4]  # where a step across, down goes
    if abs(across_x) + abs(down_y) >= abs(across_y) + abs(down_x):
        return Orientation(False, down_y < 0, across_x < 0)
    return Orientation(True, across_y < 0, down_x < 0)


def exif_orientation(data: bytes) -> Orientation:
    """The orientation that a JPEG, PNG, WebP or TIFF file asks for, given its bytes; upright where it names none."""
    block = _exif_block(data)
    if block is None or block[:4] not in (b"II*\0", b"MM\0*"):
        return UPRIGHT
    order = "<" if block[:1] == b"I" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", block, start + 2 + 12 * entry)
            if tag == 0x112 and kind == 3:
                return EXIF.get(value, UPRIGHT)
    except struct.error:  # a damaged block says nothing
        pass
    return UPRIGHT


def _exif_block(data: bytes) -> bytes | None:
    """The TIFF structure that holds the file's EXIF tags."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        return data
    if data[:2] == b"\xff\xd8":
        chunks = _jpeg_segments(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        chunks = _chunks(data, 8, ">I4s", 4, 1)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        chunks = _chunks(data, 12, "<4sI", 0, 2)
    else:
        return None
    for name, content in chunks:
        if name in (b"eXIf", b"EXIF") or (name == b"\xe1" and content[:6] == b"Exif\0\0"):
            return content.removeprefix(b"Exif\0\0")
    return None


def _jpeg_segments(data: bytes) -> list[tuple[bytes, bytes]]:
    """Marker and content of the segments before the picture."""
    segments, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, position + 2)
        segments.append((data[position + 1 : position + 2], data[position + 4 : position + 2 + length]))
        position += 2 + length
    return segments


def _chunks(data: bytes, position: int, header: str, trailer: int, alignment: int) -> list[tuple[bytes, bytes]]:
    """Name and content of the chunks of a PNG or RIFF file."""
    chunks = []
    while position + 8 <= len(data):
        first, second = struct.unpack_from(header, data, position)
        name, length = (first, second) if isinstance(first, bytes) else (second, first)
        chunks.append((name, data[position + 8 : position + 8 + length]))
        position += 8 + length + trailer
        position += -position % alignment
    return chunks
