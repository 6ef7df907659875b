"""Frames to RGB and back against exact numbers: matrices, ranges, depths, chroma siting, every pixel format."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from stif_rt.video.colour import (
    BT709,
    BT2020,
    IDENTITY,
    SITINGS,
    SMPTE170M,
    YCGCO,
    Colour,
    Picture,
    describe,
    flatten,
    from_rgb,
    to_rgb,
)
from stif_rt.video.frame_tags import chroma_siting
from stif_rt.video.planes import layout, unpack
from stif_rt.video.resampling import enlarge, reduce

SD, HD, UHD = Colour(matrix=SMPTE170M), Colour(), Colour(matrix=BT2020)
FULL_HD = Colour(full_range=True)
FORMATS = [
    "yuv420p",
    "yuvj420p",
    "yuv422p",
    "yuv444p",
    "yuv440p",
    "yuv411p",
    "yuv410p",
    "nv12",
    "nv21",
    "nv16",
    "nv24",
    "nv42",
    "yuva420p",
    "yuva444p10le",
    "yuv420p10le",
    "yuv420p10be",
    "yuv422p10le",
    "yuv444p10le",
    "yuv422p12le",
    "yuv444p14le",
    "yuv420p16le",
    "yuv444p16be",
    "p010le",
    "p016le",
    "p210le",
    "p416le",
    "nv20le",
    "vuya",
    "vuyx",
    "ayuv64le",
    "rgb24",
    "bgr24",
    "rgba",
    "argb",
    "bgra",
    "abgr",
    "0rgb",
    "rgb0",
    "0bgr",
    "bgr0",
    "rgb48le",
    "rgb48be",
    "rgba64le",
    "bgra64be",
    "gbrp",
    "gbrp9le",
    "gbrp10le",
    "gbrp12be",
    "gbrp14le",
    "gbrp16le",
    "gbrap",
    "gbrap10le",
    "gbrap16le",
    "gbrpf32le",
    "gbrapf32le",
    "gray",
    "gray10le",
    "gray12le",
    "gray16be",
    "grayf32le",
    "ya8",
    "ya16le",
]


def flat(*rgb, size=(6, 8)):
    return Picture(torch.tensor(rgb, dtype=torch.float32)[:, None, None].expand(3, *size).contiguous())


def smooth(size=(36, 64), alpha=False):
    """In gamut, without detail that subsampled chroma cannot hold."""
    y, x = (torch.linspace(0, 1, n) for n in size)
    wave = [0.5 + 0.2 * torch.sin(2 * x[None] + 3 * y[:, None] + phase) for phase in (0, 1, 2.5)]
    return Picture(torch.stack(wave), (0.2 + 0.6 * x[None] * y[:, None]) if alpha else None)


def values(frame):
    """All stored values by component, as arrays of integers."""
    return {letter: plane.numpy().astype(np.float64) for letter, plane in unpack(frame)[1].items()}


@pytest.mark.parametrize(
    ("colour", "pixel_format", "rgb", "stored"),
    [
        (SD, "yuv444p", (1, 0, 0), (81, 90, 240)),
        (SD, "yuv420p", (0, 1, 0), (145, 54, 34)),
        (HD, "yuv420p", (1, 0, 0), (63, 102, 240)),
        (HD, "nv12", (0, 0, 1), (32, 240, 118)),
        (HD, "yuv420p", (1, 1, 1), (235, 128, 128)),
        (HD, "yuv420p", (0, 0, 0), (16, 128, 128)),
        (FULL_HD, "yuvj420p", (1, 1, 1), (255, 128, 128)),
        (FULL_HD, "yuv444p", (0, 0, 1), (18, 255, 116)),
        (HD, "yuv420p10le", (1, 1, 1), (940, 512, 512)),
        (HD, "yuv422p10le", (1, 0, 0), (250, 409, 960)),
        (UHD, "p010le", (1, 0, 0), (294, 387, 960)),
        (UHD, "yuv444p12le", (0, 0, 1), (464, 3840, 1904)),
        (HD, "yuv420p16le", (1, 1, 1), (60160, 32768, 32768)),
        (dataclasses.replace(HD, matrix=YCGCO), "yuv444p", (0, 1, 0), (126, 240, 128)),
        (dataclasses.replace(HD, matrix=YCGCO), "yuv444p", (1, 0, 0), (71, 72, 240)),
    ],
)
def test_known_values(colour, pixel_format, rgb, stored):
    """The colours of test cards, worked out from the standards by hand, both ways."""
    frame = from_rgb(flat(*rgb), colour, pixel_format)
    for letter, value in zip("yuv", stored, strict=True):
        assert np.unique(values(frame)[letter]).tolist() == [value]
    step = 1 / 219 if frame.format.components[0].bits == 8 else 1 / 876
    torch.testing.assert_close(to_rgb(frame, colour).rgb, flat(*rgb).rgb, atol=2 * step, rtol=0)


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("full_range", [False, True])
def test_black_and_white_are_exact(bits, full_range):
    """Limited-range white is 1 exactly at every depth, and grey has no tint."""
    colour = dataclasses.replace(HD, full_range=full_range)
    pixel_format = "yuv420p" + (f"{bits}le" if bits > 8 else "")
    for level in (0.0, 1.0):
        frame = from_rgb(flat(level, level, level), colour, pixel_format)
        white = 2**bits - 1 if full_range else 235 * 2 ** (bits - 8)
        black = 0 if full_range else 16 * 2 ** (bits - 8)
        assert set(np.unique(values(frame)["y"])) == {white if level else black}
        assert set(to_rgb(frame, colour).rgb.unique().tolist()) == {level}


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_every_format_keeps_colours_and_values(pixel_format):
    """Within half a step of each stored component; written again, the same values come out."""
    kept = layout(pixel_format)
    colour = Colour(full_range=pixel_format.startswith("yuvj") or kept.rgb, matrix=IDENTITY if kept.rgb else BT709)
    picture = smooth(alpha=kept.alpha)
    if kept.grey:
        picture = Picture(picture.rgb[:1].expand(3, -1, -1), picture.alpha)
    frame = from_rgb(picture, colour, pixel_format)
    assert (frame.format.name, frame.width, frame.height) == (pixel_format, 64, 36)
    back = to_rgb(frame, colour)
    step = 1 / (2 ** min(kept.bits, 24) - 1)
    subsampled = kept.subsampling != (1, 1)
    inner = np.s_[:, 8 * subsampled : 36 - 8 * subsampled, 8 * subsampled : 64 - 8 * subsampled]
    assert (back.rgb - picture.rgb)[inner].abs().max() <= 2.5 * step + 1e-3 * subsampled
    assert (back.rgb - picture.rgb).mean().abs() <= 0.05 / 255
    if kept.alpha:
        assert (back.alpha - picture.alpha).abs().max() <= 0.51 * step
    again = from_rgb(back, colour, pixel_format)
    for letter, plane in values(frame).items():
        largest = np.abs(values(again)[letter] - plane).max()
        assert largest <= (1e-6 if kept.floating else 8 if subsampled and kept.bits > 12 else 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (7, 7), (9, 4), (17, 33)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "nv12", "yuv422p10le", "yuv410p", "rgb24"])
def test_every_size(size, pixel_format):
    colour = Colour(matrix=IDENTITY if pixel_format == "rgb24" else BT709, full_range=pixel_format == "rgb24")
    picture = flat(0.3, 0.5, 0.6, size=size)
    back = to_rgb(from_rgb(picture, colour, pixel_format), colour)
    torch.testing.assert_close(back.rgb, picture.rgb, atol=0.006, rtol=0)


@pytest.mark.parametrize("siting", SITINGS)
@pytest.mark.parametrize(
    ("pixel_format", "steps"), [("yuv420p16le", (2, 2)), ("yuv422p16le", (1, 2)), ("yuv440p12le", (2, 1))]
)
def test_chroma_is_where_the_tag_says(siting, pixel_format, steps):
    """A ramp of chroma over constant luma: stored samples and the picture read again lie within 0.02 pixels of it."""
    colour = dataclasses.replace(HD, siting=siting)
    size = (32, 48)
    bits = layout(pixel_format).bits
    for axis, (step, place) in enumerate(zip(steps, SITINGS[siting], strict=True)):
        ramp = torch.arange(size[axis]) / size[axis] * 0.2
        ramp = (ramp[:, None] if axis == 0 else ramp[None]).expand(size)
        half = torch.full(size, 0.5)
        frame = from_rgb(Picture(torch.stack([half, half, 0.4 + ramp])), colour, pixel_format)
        slope = 0.2 / size[axis] * 0.9278 / 1.8556  # of the Cb signal, per luma pixel
        first = (step - 1) * (0.5 if place is None else place)
        stored = (values(frame)["u"] / 2 ** (bits - 8) - 128) / 224
        expected = -0.1 * 0.9278 / 1.8556 + slope * (first + step * np.arange(stored.shape[axis]))
        displacement = (stored.mean(1 - axis) - expected)[4:-4] / slope
        assert np.abs(displacement).max() < 0.02 + (bits < 16) * 0.1
        blue = to_rgb(frame, colour).rgb[2].mean(1 - axis)
        displacement = (blue - 0.4 - ramp.mean(1 - axis))[8:-8] / (0.2 / size[axis])
        assert displacement.abs().max() < 0.02 + (bits < 16) * 0.1


@pytest.mark.parametrize("first", [0, 0.5, 1])
@pytest.mark.parametrize("step", [2, 4])
def test_chroma_grids(step, first):
    """Both ways keep ramps in place, and reducing what was enlarged gives back any samples, borders included."""
    first *= step - 1
    for size in (1, 2, step, 5 * step, 16 * step):
        count = -(-size // step)
        chroma = torch.rand(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        wide = enlarge(chroma, 1, size, step, first)
        assert wide.shape == (3, size)
        if size % step == 0:
            assert (reduce(wide, 1, step, first) - chroma).abs().max() < (1e-4 if step == 2 or first == 1.5 else 0.03)
        assert torch.equal(enlarge(chroma.T, 0, size, step, first), wide.T)
    luma = torch.arange(64, dtype=torch.float64)[None]
    assert torch.allclose(reduce(luma, 1, step, first)[0, 4:-4], luma[0, ::step][4:-4] + first)
    assert torch.allclose(enlarge(luma[:, ::step] + first, 1, 64, step, first)[0, 16:-16], luma[0, 16:-16])


def test_odd_sizes_give_back_their_samples():
    for size, first in ((7, 0), (9, 0.5), (13, 0)):
        chroma = torch.rand(1, -(-size // 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert (reduce(enlarge(chroma, 1, size, 2, first), 1, 2, first) - chroma).abs().max() < 1e-4


@pytest.mark.parametrize(
    "pixel_format", ["yuyv422", "uyvy422", "yvyu422", "y210le", "xv36le", "x2rgb10le", "rgb565le", "monob"]
)
def test_formats_left_to_ffmpeg(pixel_format):
    """Repacked without a change of values where the format holds them; the few coarse ones come near."""
    picture = flat(0.25, 0.5, 0.75) if pixel_format != "monob" else flat(1, 1, 1)
    rgb = av.VideoFormat(pixel_format).is_rgb
    source = {"y210le": "yuv422p10le", "xv36le": "yuv444p12le", "x2rgb10le": "gbrp10le", "monob": "gray"}.get(
        pixel_format, "rgb24" if rgb else "yuv422p"
    )
    colour = Colour(matrix=IDENTITY if rgb else BT709, full_range=rgb or source == "gray")
    frame = from_rgb(picture, colour, source).reformat(format=pixel_format, threads=1)
    assert frame.format.name == pixel_format
    coarse = 0.04 if pixel_format == "rgb565le" else 0.004
    assert (to_rgb(frame, colour).rgb - picture.rgb).abs().max() < coarse


@pytest.mark.parametrize(
    ("pixel_format", "height", "codec", "matrix", "full_range"),
    [
        ("yuv420p", 576, "h264", SMPTE170M, False),
        ("yuv420p", 577, "h264", BT709, False),
        ("yuv420p10le", 608, "hevc", BT709, False),
        ("yuvj420p", 1080, "mjpeg", SMPTE170M, True),
        ("rgb24", 100, "png", IDENTITY, True),
        ("gbrp", 100, "h264", IDENTITY, True),
        ("gray", 100, "png", SMPTE170M, True),
    ],
)
def test_untagged_is_taken_as_players_do(pixel_format, height, codec, matrix, full_range):
    colour = describe(av.VideoFrame(64, height, pixel_format), codec)
    assert (colour.matrix, colour.full_range) == (matrix, full_range)


def test_tags_are_read():
    frame = av.VideoFrame(64, 720, "yuv420p10le")
    frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = BT2020, 9, 16, 2
    assert describe(frame) == Colour(BT2020, 9, 16, True, "left", 10)
    assert describe(frame).hdr


@pytest.mark.parametrize("siting", ["left", "center", "topleft"])
def test_chroma_siting_is_read(siting):
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 36, "yuv420p", Fraction(1, 25)
    encoder.options = {"chroma_sample_location": siting}
    packets = encoder.encode(from_rgb(smooth(), HD, "yuv420p")) + encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    frame = (decoder.decode(packets[0]) + decoder.decode(None))[0]
    assert chroma_siting(frame) == siting
    assert describe(frame, "h264").siting == siting


def test_transparent_pictures():
    picture = Picture(torch.full((3, 2, 2), 0.6), torch.tensor([[0, 1], [0.5, 0.25]]))
    assert torch.allclose(flatten(picture)[0], 0.6 * picture.alpha)
    opaque = to_rgb(from_rgb(flat(0.2, 0.4, 0.6), Colour(IDENTITY, full_range=True), "rgba"), Colour(IDENTITY))
    assert opaque.alpha is None


def test_grey_has_neutral_chroma():
    colour = dataclasses.replace(HD, grey=True)
    frame = from_rgb(smooth(), colour, "yuv420p")
    assert set(np.unique(values(frame)["u"])) == set(np.unique(values(frame)["v"])) == {128}
    rgb = to_rgb(frame, colour).rgb
    assert torch.equal(rgb[0], rgb[1])
    assert torch.equal(rgb[0], rgb[2])


def test_rows_stored_upside_down():
    """A frame with negative strides, as from FFmpeg's vflip, is read in the order it is shown."""
    frame = from_rgb(smooth(), HD, "yuv420p")
    graph = av.filter.Graph()
    source = graph.add_buffer(width=64, height=36, format=frame.format, time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("vflip"), graph.add("buffersink")).configure()
    graph.push(frame)
    flipped = graph.pull()
    assert flipped.planes[0].line_size < 0
    torch.testing.assert_close(to_rgb(flipped, HD).rgb, to_rgb(frame, HD).rgb.flip(1))


@pytest.mark.parametrize(
    "pixel_format", ["yuv420p", "yuva422p10le", "p010le", "pal8", "grayf32le", "gbrapf32le", "rgbaf16le", "xyz12le"]
)
@pytest.mark.parametrize("size", [(64, 36), (33, 17)])
def test_any_bytes_give_a_picture(pixel_format, size):
    """Also values outside the limited range, and floats that are not finite."""
    frame = av.VideoFrame(*size, pixel_format)
    for plane in frame.planes:
        array = np.frombuffer(memoryview(plane), np.uint8)
        array[:] = np.random.default_rng(0).integers(0, 256, array.size, dtype=np.uint8)
    rgb, alpha = to_rgb(frame, describe(frame))
    for values_ in (rgb, rgb if alpha is None else alpha):
        assert values_.shape[-2:] == (size[1], size[0])
        assert ((values_ >= 0) & (values_ <= 1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "pixel_format", ["yuv420p", "p010le", "yuv422p12le", "yuv420p16le", "rgba", "gbrp10le", "gray"]
)
def test_gpu_gives_the_same(pixel_format):
    kept = layout(pixel_format)
    colour = Colour(IDENTITY if kept.rgb else BT709, full_range=kept.rgb)
    frame = from_rgb(smooth(alpha=kept.alpha), colour, pixel_format)
    on_cpu, on_gpu = to_rgb(frame, colour), to_rgb(frame, colour, "cuda")
    torch.testing.assert_close(on_gpu.rgb.cpu(), on_cpu.rgb, atol=1e-6, rtol=0)
    for letter, plane in values(from_rgb(on_gpu, colour, pixel_format)).items():
        assert np.abs(plane - values(frame)[letter]).max() <= (kept.bits > 12) * 30
