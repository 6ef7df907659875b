"""The components of a video frame as tensors, whatever the pixel format that FFmpeg keeps them in, and back."""

import functools
import re
from typing import NamedTuple

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REPACKED = {
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "yvyu422": "yuv422p",
    "uyyvyy411": "yuv411p",
    "y210le": "yuv422p10le",
    "y212le": "yuv422p12le",
    "y216le": "yuv422p16le",
    "xv30le": "yuv444p10le",
    "v30xle": "yuv444p10le",
    "xv36le": "yuv444p12le",
    "xv48le": "yuv444p16le",
    "x2rgb10le": "gbrp10le",
    "x2bgr10le": "gbrp10le",
    "xyz12le": "rgb48le",
    "pal8": "rgba",
    "monow": "gray",
    "monob": "gray",
}
"""Packed formats that are left to FFmpeg, and the plain ones that hold the same values; ``rgb24`` for all others."""


class Layout(NamedTuple):
    """How a pixel format stores a picture.

    Attributes:
        planes: The components that each plane interleaves, as letters: y, u, v, r, g, b, a, or x for unused ones.
        bits: Bits of a value.
        shift: Unused bits below a value.
        dtype: Of a stored value.
        subsampling: Luma samples for one sample of chroma, (down, across).
    """

    planes: tuple[str, ...]
    bits: int
    shift: int
    dtype: np.dtype[np.generic]
    subsampling: tuple[int, int]

    @property
    def components(self) -> str:
        return "".join(self.planes).replace("x", "")

    @property
    def rgb(self) -> bool:
        return "r" in self.components

    @property
    def grey(self) -> bool:
        return "y" in self.components and "u" not in self.components

    @property
    def alpha(self) -> bool:
        return "a" in self.components

    @property
    def floating(self) -> bool:
        return self.dtype.kind == "f"


@functools.cache
def layout(name: str) -> Layout | None:
    """The layout of FFmpeg's pixel format of that name; None for one that this module leaves to FFmpeg."""
    format = av.VideoFormat(name, 16, 16)
    components = format.components
    bits = components[0].bits
    if name in REPACKED or any(c.bits != bits for c in components) or bits < 8 or "bayer" in name:
        return None
    letters = ["a" if c.is_alpha else ("rgb" if format.is_rgb else "yuv")[i] for i, c in enumerate(components)]
    planes = ["", "", "", ""]
    for letter, component in zip(letters, components, strict=True):
        planes[component.plane] += letter
    if len(planes[0]) > 1 and name[:2] != "ya":  # packed: the name tells the order
        order = re.match(r"[rgb0ayuvx]{3,4}", name)
        if order is None:
            return None
        planes[0] = order[0].replace("0", "x")
    elif name in ("nv21", "nv42"):
        planes[1] = "vu"
    floating = re.search(r"f(16|32)[lb]e$", name) is not None
    size = 1 if bits <= 8 else 2 if bits <= 16 else 4
    msb = "msb" in name or re.match(r"p\d{3}[lb]e$", name) is not None
    chroma = components[1] if len(components) > 1 else components[0]
    return Layout(
        tuple(filter(None, planes)),
        bits,
        8 * size - bits if msb else 0,
        np.dtype(f"{'>' if format.is_big_endian else '<'}{'f' if floating else 'u'}{size}"),
        (16 // chroma.height, 16 // chroma.width),
    )


def unpack(frame: av.VideoFrame, device: torch.device | str = "cpu") -> tuple[Layout, dict[str, Tensor]]:
    """The components of a frame by their letters, as stored: integers without the unused bits, or floats.

    On the CPU the tensors may share memory with the frame: they are read only.
    """
    storage = layout(frame.format.name)
    if storage is None:
        # One thread: with several, swscale leaves rows of small pictures unwritten, about one picture in 400.
        try:
            frame = frame.reformat(format=REPACKED.get(frame.format.name, "rgb24"), threads=1)
        except OSError as error:
            raise ValueError(f"pixel format {frame.format.name} cannot be read") from error
        storage = layout(frame.format.name)
        assert storage is not None
    components = {}
    for plane, letters in zip(frame.planes, storage.planes, strict=True):
        stored = torch.from_numpy(_native(_rows(plane, storage, len(letters)))).to(device)
        for index, letter in enumerate(letters):
            values = stored[..., index]
            components[letter] = values if not storage.shift else (values.to(torch.int32) >> storage.shift)
    return storage, components


def pack(components: dict[str, Tensor], pixel_format: str, size: tuple[int, int]) -> av.VideoFrame:
    """A frame of ``size`` (h, w) with these components: integers (or floats) that fit the format."""
    storage = layout(pixel_format)
    if storage is None:
        raise ValueError(f"pixel format {pixel_format} cannot be written")
    frame = av.VideoFrame(size[1], size[0], pixel_format)
    for plane, letters in zip(frame.planes, storage.planes, strict=True):
        rows = _rows(plane, storage, len(letters))
        for index, letter in enumerate(letters):
            if letter == "x":
                rows[..., index] = 0
                continue
            values = components[letter].cpu().numpy()
            rows[..., index] = values << storage.shift if storage.shift else values
    return frame


def _rows(plane: av.video.plane.VideoPlane, storage: Layout, letters: int) -> NDArray[np.generic]:
    """The values of a plane, [h, w, letters], in its own memory."""
    stride = abs(plane.line_size)
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8)[: stride * plane.height].reshape(plane.height, stride)
    if plane.line_size < 0:  # stored from the last row up
        rows = rows[::-1]
    used = plane.width * letters * storage.dtype.itemsize
    return rows[:, :used].view(storage.dtype).reshape(plane.height, plane.width, letters)


def _native(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """In this machine's byte order, with strides that PyTorch takes."""
    if values.dtype.byteorder not in ("=", "|") and not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return values.copy() if min(values.strides) < 0 else values
