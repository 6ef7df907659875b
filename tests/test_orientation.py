"""All eight orientations, of videos and of images."""

import io
import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from stif_rt.video.orientation import (
    EXIF,
    UPRIGHT,
    Orientation,
    exif_orientation,
    frame_orientation,
    from_display_matrix,
)

ONE = 1 << 16
TURNS = [(a * ONE, 0, 0, d * ONE) for a, d in itertools.product((1, -1), repeat=2)]
TURNS += [(0, b * ONE, c * ONE, 0) for b, c in itertools.product((1, -1), repeat=2)]


def test_display_matrices():
    """Every pixel goes where the matrix sends it: (x, y) to (a x + c y, b x + d y), moved to begin at the origin."""
    stored = torch.arange(6).reshape(2, 3)
    for a, b, c, d in TURNS:
        upright = from_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30)).apply(stored)
        places = {(x, y): ((a * x + c * y) // ONE, (b * x + d * y) // ONE) for x in range(3) for y in range(2)}
        left, top = (min(box[i] for box in places.values()) for i in (0, 1))
        for (x, y), (to_x, to_y) in places.items():
            assert upright[to_y - top, to_x - left] == stored[y, x]


def test_all_eight_are_different():
    stored = torch.arange(6).reshape(2, 3)
    pictures = {tuple(o.apply(stored).flatten().tolist()) + o.size(2, 3) for o in EXIF.values()}
    assert len(pictures) == 8
    assert {from_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30)) for a, b, c, d in TURNS} == set(EXIF.values())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", EXIF)
def test_images(format, value):
    """As Pillow turns them."""
    picture = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x112] = value
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format, exif=exif)
    tagged = Image.fromarray(picture)
    tagged.getexif()[0x112] = value
    expected = torch.from_numpy(np.array(ImageOps.exif_transpose(tagged))).permute(2, 0, 1)
    upright = exif_orientation(file.getvalue()).apply(torch.from_numpy(picture).permute(2, 0, 1))
    assert torch.equal(upright, expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(order):
    entries = struct.pack(order + "HHIHH", 0x112, 3, 1, 6, 0)
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1) + entries
    assert exif_orientation(block) == EXIF[6]


def test_damaged_blocks_say_nothing():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 5
    Image.new("RGB", (2, 2)).save(file, "JPEG", exif=exif)
    data = file.getvalue()
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data[: generator.integers(len(data))])
        for position in generator.integers(0, max(len(damaged), 1), 3):
            damaged[position : position + 1] = bytes([generator.integers(256)])
        assert isinstance(exif_orientation(bytes(damaged)), Orientation)
    assert exif_orientation(b"") == exif_orientation(b"no image at all") == UPRIGHT


@pytest.mark.parametrize(("degrees", "mirrored"), list(itertools.product((0, 90, 180, 270), (False, True))))
def test_videos(tmp_path, degrees, mirrored):
    """A file that asks for a turn counter-clockwise, and for a mirror from left to right after it."""
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        frame = av.VideoFrame(64, 32, "yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        orientation = frame_orientation(next(container.decode(video=0)))
    stored = torch.arange(6).reshape(2, 3)
    expected = torch.rot90(stored, degrees // 90)
    assert torch.equal(orientation.apply(stored), expected.flip(1) if mirrored else expected)


@pytest.mark.parametrize("value", EXIF)
def test_frames_that_carry_exif(value):
    """FFmpeg's own reading of EXIF, in a frame whose side data PyAV cannot list."""
    exif = Image.Exif()
    exif[0x112] = value
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "JPEG", exif=exif)
    with av.open(io.BytesIO(file.getvalue())) as container:
        assert frame_orientation(next(container.decode(video=0))) == EXIF[value]
