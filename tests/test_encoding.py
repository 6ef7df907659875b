"""From file to file without a network: what the pictures go through on their way is exact, and nothing is mistagged."""

import contextlib
import struct
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stif_rt.video.colour import BT709, BT2020, IDENTITY, PQ, SMPTE170M, Colour, Picture, from_rgb, to_image, to_rgb
from stif_rt.video.conversion import what_is_lost
from stif_rt.video.encoding import choose_encoding, choose_image_encoding
from stif_rt.video.matroska import display_size, write_pixel_shape
from stif_rt.video.notices import Notices
from stif_rt.video.planes import layout, unpack
from stif_rt.video.reader import open_reader
from stif_rt.video.run import render_video
from stif_rt.video.writer import VideoWriter

CASES = Path(__file__).parent / "data" / "cases"
SIZE = (36, 64)
POINTS = (34000, 16000, 13250, 34500, 7500, 3000, 15635, 16450)
MASTERING = struct.pack("=22i", *(n for p in POINTS for n in (p, 50000)), 50, 10000, 10000000, 10000, 1, 1)
FFV1_FORMATS = [
    *("yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv420p10le", "yuv422p10le", "yuv444p12le"),
    *("yuv420p12le", "gbrp10le", "gray", "gray10le", "bgr0", "yuva420p", "yuva444p10le", "rgb48le"),
]
LIGHT = struct.pack("=2I", 1000, 400)
HDR10 = Colour(BT2020, BT2020, PQ, bits=10, mastering=MASTERING, light_level=LIGHT)


class Bicubic:
    """Stands in for the network: keeps every colour where it is."""

    dtype, device = torch.float32, torch.device("cpu")

    def encode(self, before, after):
        return BlendedPair(before, after)


class BlendedPair(NamedTuple):
    before: torch.Tensor
    after: torch.Tensor

    def render(self, t, *, size, region=None):
        assert region is None
        several = isinstance(t, list)
        mixed = torch.stack([(1 - n) * self.before + n * self.after for n in (t if several else [t])])
        pictures = F.interpolate(mixed, size, mode="bicubic", align_corners=False).clamp(0, 1)
        return pictures if several else pictures[0]


def wave(size=SIZE, alpha=False, phase=0.0):
    """In gamut and smooth, so that subsampled chroma can hold it."""
    y, x = (torch.linspace(0, 1, n) for n in size)
    rgb = torch.stack([0.5 + 0.2 * torch.sin(2 * x[None] + 3 * y[:, None] + c + phase) for c in (0, 1, 2.5)])
    return Picture(rgb, (0.2 + 0.6 * x[None] * y[:, None]) if alpha else None)


def write(path, colour, pixel_format, codec="ffv1", frames=2, alpha=False, size=SIZE, ratio=None, options=None):
    """A clip of equal pictures, without loss but for codecs that lose; returns the frame that was encoded."""
    picture = wave(size, alpha)
    with av.open(str(path), "w") as container:
        encoding = choose_encoding(path.suffix, colour, Notices(), codec, pixel_format, options=options)
        writer = VideoWriter(container, size, Fraction(10), encoding, ratio)
        for _ in range(frames):
            writer.write(encoding.components(picture))
        writer.finish()
    return encoding.frame(encoding.components(picture), size)


def decode(path):
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def planes(frame):
    return {letter: plane.numpy().astype(np.float64) for letter, plane in unpack(frame)[1].items()}


def render(source, target, **options):
    return render_video(source, target, runtime=Bicubic(), scale=options.pop("scale", 1), **options)


@pytest.mark.slow
@pytest.mark.parametrize("pixel_format", FFV1_FORMATS)
def test_nothing_is_lost_at_scale_one(tmp_path, pixel_format):
    """Read, converted, converted back and written without loss: the very same values."""
    kept = layout(pixel_format)
    write(
        tmp_path / "in.mkv",
        Colour(IDENTITY if kept.rgb else BT709, full_range=kept.rgb),
        pixel_format,
        alpha=kept.alpha,
    )
    render(tmp_path / "in.mkv", tmp_path / "out.mkv", codec="ffv1", pix_fmt=pixel_format)
    before, after = decode(tmp_path / "in.mkv"), decode(tmp_path / "out.mkv")
    assert after.format.name == before.format.name
    assert (after.colorspace, after.color_range) == (before.colorspace, before.color_range)
    for letter, plane in planes(before).items():
        assert np.array_equal(planes(after)[letter], plane)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "bgr0"])
def test_mean_error_through_the_usual_files(tmp_path, pixel_format):
    """At most 0.15 of 255, with little loss by x264 or x265."""
    kept = layout(pixel_format)
    colour = Colour(IDENTITY if kept.rgb else BT709, full_range=kept.rgb)
    write(tmp_path / "in.mkv", colour, pixel_format)
    render(tmp_path / "in.mkv", tmp_path / "out.mp4", crf=1)
    out = to_rgb(decode(tmp_path / "out.mp4"), Colour())
    assert ((out.rgb - wave().rgb).mean((1, 2)) * 255).abs().max() < 0.15


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("siting", ["left", "center", "topleft"])
def test_chroma_stays_with_luma(tmp_path, scale, siting):
    """A bump of blue in both luma and chroma has one centre, to 0.05 output pixels."""
    encoder_size = (32, 48)
    y, x = (torch.arange(n, dtype=torch.float32) for n in encoder_size)
    bump = torch.exp(-((x[None] - 23.5) ** 2 + (y[:, None] - 15.5) ** 2) / 60)
    picture = Picture(torch.stack([0.4 + 0.1 * bump, 0.4 + 0.1 * bump, 0.4 + 0.5 * bump]))
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        encoding = choose_encoding(
            ".mkv", Colour(), Notices(), "libx264", "yuv420p10le", options={"crf": "-1", "qp": "0"}
        )
        encoding.options["chroma_sample_location"] = siting
        stream = encoding.add_stream(container, encoder_size, Fraction(10))
        frame = from_rgb(picture, Colour(siting=siting), "yuv420p10le")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    render(tmp_path / "in.mkv", tmp_path / "out.mkv", scale=scale, codec="ffv1", pix_fmt="yuv420p10")
    stored = planes(decode(tmp_path / "out.mkv"))
    rows = np.arange(stored["u"].shape[0]) * 2 + 0.5  # in luma pixels: written left-sited, between two rows
    columns = np.arange(stored["u"].shape[1]) * 2.0
    chroma = centre(stored["u"], rows, columns)
    luma = centre(stored["y"], np.arange(stored["y"].shape[0]), np.arange(stored["y"].shape[1]))
    assert np.abs(np.subtract(chroma, luma)).max() < 0.05
    assert np.abs(np.subtract(luma, ((16 * scale - 0.5), (24 * scale - 0.5)))).max() < 0.05


def centre(plane, rows, columns):
    """Where the middle of a bump is, in both directions."""
    weight = np.clip(plane - plane.min() - 0.3 * np.ptp(plane), 0, None)
    return (weight.sum(1) * rows).sum() / weight.sum(), (weight.sum(0) * columns).sum() / weight.sum()


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", None), (".webm", None), (".mkv", None), (".mov", "h264"), (".mp4", "av1")]
)
def test_hdr_is_kept(tmp_path, suffix, codec):
    write(tmp_path / "in.mkv", HDR10, "yuv420p10le", "libx265")
    rendered = render(tmp_path / "in.mkv", tmp_path / f"out{suffix}", codec=codec)
    assert not rendered.warnings
    colour = open_reader(tmp_path / f"out{suffix}").colour
    assert (colour.matrix, colour.primaries, colour.transfer, colour.bits) == (BT2020, BT2020, PQ, 10)
    assert decode(tmp_path / f"out{suffix}").format.name == "yuv420p10le"
    numbers, expected = (np.array(struct.unpack("=22i", m)[:20], float) for m in (colour.mastering, MASTERING))
    np.testing.assert_allclose(numbers[::2] / numbers[1::2], expected[::2] / expected[1::2], atol=1e-3)
    assert colour.light_level == LIGHT


def test_hdr_of_images_becomes_hdr_video(tmp_path):
    write(tmp_path / "in.mkv", HDR10, "yuv420p10le", "libx265")
    render(tmp_path / "in.mkv", tmp_path / "images")
    render(tmp_path / "images", tmp_path / "out.mp4", crf=4)
    frame = decode(tmp_path / "out.mp4")
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (BT2020, BT2020, PQ, 1)
    assert (to_rgb(frame, HDR10).rgb - wave().rgb).abs().mean() * 255 < 1


def test_hdr_in_eight_bits_is_said(tmp_path):
    write(tmp_path / "in.mkv", HDR10, "yuv420p10le", "libx265")
    rendered = render(tmp_path / "in.mkv", tmp_path / "out.mp4", pix_fmt="yuv420p")
    assert any("8 bits" in str(w) for w in rendered.warnings)
    assert decode(tmp_path / "out.mp4").color_trc == PQ


def test_tone_mapping_is_tagged(tmp_path):
    render(CASES / "hdr_pq_203nit.mp4", tmp_path / "out.mp4", tonemap="clip", pix_fmt="yuv420p")
    frame = decode(tmp_path / "out.mp4")
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (BT709, BT709, BT709)
    assert to_rgb(frame, Colour()).rgb.mul(255).round().unique().tolist() == [254]


@pytest.mark.parametrize(
    ("suffix", "options", "pixel_format"),
    [(".mov", {}, "yuva444p12le"), (".png", {}, "rgba"), (".tiff", {"image_format": "tiff"}, "rgba")],
)
def test_alpha_is_kept(tmp_path, suffix, options, pixel_format):
    write(tmp_path / "in.mov", Colour(alpha=True), None, "prores_ks", alpha=True)
    write(tmp_path / "in.mkv", Colour(IDENTITY, full_range=True, alpha=True), "bgra", alpha=True)
    target = tmp_path / (f"out{suffix}" if suffix == ".mov" else "out")
    rendered = render(tmp_path / ("in.mov" if suffix == ".mov" else "in.mkv"), target, **options)
    assert not rendered.warnings
    frame = decode(target if suffix == ".mov" else target / f"frame_000000{suffix}")
    assert frame.format.name == pixel_format
    picture = to_rgb(frame, open_reader(target).colour)
    assert (picture.alpha - wave(alpha=True).alpha).abs().max() < 0.01
    assert (picture.rgb - wave().rgb).abs().max() < 0.02


def test_alpha_in_vp9(tmp_path):
    write(tmp_path / "in.mkv", Colour(IDENTITY, full_range=True, alpha=True), "bgra", alpha=True)
    render(tmp_path / "in.mkv", tmp_path / "out.webm", scale=2)
    (first, *_) = open_reader(tmp_path / "out.webm")
    assert first.picture.alpha.shape == (72, 128)
    assert (first.picture.alpha - wave((72, 128), True).alpha).abs().mean() < 0.02
    render(tmp_path / "out.webm", tmp_path / "opaque.mkv", pix_fmt="yuv420p")
    with av.open(str(tmp_path / "opaque.mkv")) as file:  # the tag would be untrue there
        assert "alpha_mode" not in {key.lower() for key in file.streams.video[0].metadata}


def test_alpha_is_laid_on_black_where_it_cannot_be_kept(tmp_path):
    write(tmp_path / "in.mkv", Colour(IDENTITY, full_range=True, alpha=True), "bgra", alpha=True)
    rendered = render(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert [w.text for w in rendered.warnings] == [
        "libx264 in yuv420p has no transparency; transparent pictures are laid on black"
    ]
    rgb, expected = to_rgb(decode(tmp_path / "out.mp4"), Colour()).rgb, wave(alpha=True)
    assert (rgb - expected.rgb * expected.alpha).abs().mean() < 0.01


def test_grey_stays_grey(tmp_path):
    write(tmp_path / "in.mkv", Colour(BT709, full_range=True), "gray")
    render(tmp_path / "in.mkv", tmp_path / "out.mp4", scale=2)
    stored = planes(decode(tmp_path / "out.mp4"))
    assert set(np.unique(stored["u"])) == set(np.unique(stored["v"])) == {128}
    render(tmp_path / "in.mkv", tmp_path / "out")
    assert decode(tmp_path / "out" / "frame_000000.png").format.name == "gray"


@pytest.mark.parametrize(
    ("options", "suffix", "pixel_format", "error"),
    [
        ({"pix_fmt": "rgb48"}, ".png", "rgb48be", 1e-4),
        ({"image_format": "tiff", "pix_fmt": "rgb48"}, ".tiff", "rgb48le", 1e-4),
        ({"image_format": "exr"}, ".exr", "gbrpf32le", 1e-4),
        ({}, ".png", "rgb24", 0.5 / 255),
    ],
)
def test_images(tmp_path, options, suffix, pixel_format, error):
    write(tmp_path / "in.mkv", Colour(IDENTITY, 2, 2, full_range=True), "bgr0")
    source = next(iter(open_reader(tmp_path / "in.mkv"))).picture.rgb
    render(tmp_path / "in.mkv", tmp_path / "out", **options)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"frame_00000{n}{suffix}" for n in range(2)]
    frame = decode(files[0])
    assert frame.format.name == pixel_format
    rgb = to_rgb(frame, Colour(IDENTITY, full_range=True)).rgb
    if suffix == ".exr":  # light, as OpenEXR has it: sRGB's curve undone
        rgb = torch.where(rgb <= 0.0031308, rgb * 12.92, 1.055 * rgb ** (1 / 2.4) - 0.055)
    assert (rgb - source).abs().max() <= error
    again = next(iter(open_reader(tmp_path / "out"))).picture.rgb
    assert (again - source).abs().max() <= error


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("bits", [8, 10])
def test_short_clips(tmp_path, frames, bits):
    write(tmp_path / "in.mkv", Colour(bits=bits), "yuv420p" if bits == 8 else "yuv420p10le", frames=frames)
    render(tmp_path / "in.mkv", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(n, 10) for n in range(frames)]


def test_ten_bits_stay_ten_bits(tmp_path):
    write(tmp_path / "in.mkv", Colour(bits=10), "yuv420p10le")
    render(tmp_path / "in.mkv", tmp_path / "out.mp4")
    render(tmp_path / "in.mkv", tmp_path / "out")
    assert decode(tmp_path / "out.mp4").format.name == "yuv420p10le"
    assert decode(tmp_path / "out" / "frame_000000.png").format.name == "rgb48be"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("ratio", [Fraction(16, 11), Fraction(8, 9), Fraction(4, 3)])
def test_shape_of_pixels_is_in_every_container(tmp_path, suffix, ratio):
    write(tmp_path / "in.mp4", Colour(), "yuv420p", "libx264", size=(48, 64), ratio=ratio)
    render(tmp_path / "in.mp4", tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == ratio
        assert len(list(container.decode(stream))) == 2
        container.seek(0)
        assert len(list(container.decode(stream))) == 2
    if suffix in (".mkv", ".webm"):
        data = (tmp_path / f"out{suffix}").read_bytes()
        width, height = display_size(64, 48, ratio)
        assert b"\x54\xb0\x84" + width.to_bytes(4, "big") in data
        assert b"\x54\xba\x84" + height.to_bytes(4, "big") in data
    render(tmp_path / "in.mp4", tmp_path / f"square{suffix}", square_pixels=True)
    with av.open(str(tmp_path / f"square{suffix}")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio in (None, 1)
        assert stream.width == 2 * round(64 * ratio / 2)


@pytest.mark.parametrize(("size", "ratio"), [((720, 576), (16, 15)), ((1440, 1080), (4, 3)), ((720, 480), (8, 9))])
def test_display_size_is_exact(size, ratio):
    width, height = display_size(*size, Fraction(*ratio))
    assert Fraction(width, height) == Fraction(*size) * Fraction(*ratio)
    assert abs(height - size[1]) <= size[1] / 2


@pytest.mark.parametrize(
    ("colour", "options", "codec", "pixel_format"),
    [
        (Colour(), {}, "libx264", "yuv420p"),
        (Colour(bits=10), {}, "libx265", "yuv420p10le"),
        (Colour(bits=16, matrix=IDENTITY), {}, "libx265", "yuv420p10le"),
        (Colour(), {"pixel_format": "yuv420p10"}, "libx265", "yuv420p10le"),
        (Colour(), {"codec": "libx264", "pixel_format": "yuv444p"}, "libx264", "yuv444p"),
        (Colour(bits=10), {"codec": "hevc"}, "libx265", "yuv420p10le"),
        (Colour(), {"codec": "prores_ks"}, "prores_ks", "yuv422p10le"),
        (Colour(bits=10), {"codec": "libvpx-vp9"}, "libvpx-vp9", "yuv420p"),
    ],
)
def test_choices(colour, options, codec, pixel_format):
    encoding = choose_encoding(".mp4", colour, Notices(), **options)
    assert (encoding.codec, encoding.pixel_format) == (codec, pixel_format)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "nothing"}, "no encoder 'nothing'"),
        ({"codec": "aac"}, "does not encode video"),
        ({"pixel_format": "yuv999"}, "no pixel format 'yuv999'"),
        ({"codec": "libx264", "pixel_format": "rgb24"}, "libx264 does not write rgb24; it writes yuv420p"),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        choose_encoding(".mp4", Colour(), Notices(), **options)


def test_opaque_pictures_with_an_alpha_channel_are_no_loss(tmp_path):
    write(tmp_path / "in.mkv", Colour(IDENTITY, full_range=True, alpha=True), "bgra")
    rendered = render(tmp_path / "in.mkv", tmp_path / "out.mov")
    assert not rendered.warnings
    assert decode(tmp_path / "out.mov").format.name == "yuv420p"


def test_late_transparency_is_said(tmp_path):
    encoding = choose_encoding(".mkv", Colour(IDENTITY, full_range=True, alpha=True), Notices(), "ffv1", "bgra")
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = encoding.add_stream(container, SIZE, Fraction(10))
        for number in range(20):
            frame = encoding.frame(encoding.components(wave(alpha=number == 18)), SIZE)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    rendered = render(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert [str(w) for w in rendered.warnings] == ["1.80 s: a transparent picture is laid on black"]


def test_wide_gamut_images_say_so(tmp_path):
    write(tmp_path / "in.mkv", Colour(BT2020, BT2020, 14, bits=10), "yuv420p10le", "libx265")
    render(tmp_path / "in.mkv", tmp_path / "out")
    frame = decode(tmp_path / "out" / "frame_000000.png")
    assert (frame.color_primaries, frame.color_trc) == (BT2020, 14)


def test_untagged_video_is_tagged_with_what_it_was_taken_for(tmp_path):
    """Enlarged over 576 lines, players would guess another matrix."""
    write(tmp_path / "in.mp4", Colour(SMPTE170M, 2, 2), "yuv420p", "libx264")
    render(tmp_path / "in.mp4", tmp_path / "out.mp4", scale=18)
    frame = decode(tmp_path / "out.mp4")
    assert (frame.height, frame.colorspace, frame.color_primaries) == (648, SMPTE170M, 2)


def test_images_say_nothing_of_video():
    """PNG viewers would take video's transfer function for a gamma of their own."""
    assert choose_image_encoding(".png", Colour(), Notices()).colour.transfer == 2


def test_folders_of_jpegs_become_usual_video(tmp_path):
    """Not full-range BT.601, as JPEG has it."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        Image.fromarray(to_image(wave())).save(tmp_path / "in" / f"{number}.jpg", quality=95)
    render(tmp_path / "in", tmp_path / "out.mp4", crf=1)
    frame = decode(tmp_path / "out.mp4")
    assert (frame.colorspace, frame.color_range, frame.format.name) == (BT709, 1, "yuv420p")
    assert (to_rgb(frame, Colour()).rgb - wave().rgb).abs().mean() * 255 < 1.5


def test_what_is_lost_is_said():
    frame = av.VideoFrame(64, 36, "yuv420p")
    assert what_is_lost([frame]) == []
    frame.colorspace = 14
    assert what_is_lost([frame]) == ["not kept: its own YCbCr matrix (number 14 of H.273; BT.2020's is taken instead)"]


@pytest.mark.parametrize(
    ("suffix", "colour", "pixel_format"),
    [
        (".webm", Colour(IDENTITY, full_range=True, alpha=True), "bgra"),
        (".mov", Colour(IDENTITY, full_range=True, alpha=True), "bgra"),
        (".mp4", Colour(bits=10), "yuv420p10le"),
        (".webm", Colour(bits=10), "yuv420p10le"),
    ],
)
def test_joined_segments(tmp_path, suffix, colour, pixel_format):
    """Of codecs with decoding delays, side data and tags of their own: all pictures, in order, with their alpha."""
    write(tmp_path / "in.mkv", colour, pixel_format, frames=8, alpha=colour.alpha)
    render(tmp_path / "in.mkv", tmp_path / f"out{suffix}", segment_frames=3)
    reader = open_reader(tmp_path / f"out{suffix}")
    frames = list(reader)
    assert [frame.start for frame in frames] == [Fraction(n, 10) for n in range(8)]
    assert (reader.colour.alpha, reader.colour.bits > 8) == (colour.alpha, colour.bits > 8 or suffix == ".mov")
    expected = wave(alpha=colour.alpha)
    for frame in frames:
        assert (frame.picture.rgb - expected.rgb).abs().mean() < 0.01
        if colour.alpha:
            assert (frame.picture.alpha - expected.alpha).abs().mean() < 0.01


@pytest.mark.parametrize("data", [b"", b"no Matroska at all", bytes.fromhex("1a45dfa3808180"), bytes(2000)])
def test_other_files_are_left_as_they_are(tmp_path, data):
    (tmp_path / "x.mkv").write_bytes(data)
    with pytest.raises(ValueError, match="no Matroska file that FFmpeg wrote"):
        write_pixel_shape(tmp_path / "x.mkv", Fraction(4, 3))
    assert (tmp_path / "x.mkv").read_bytes() == data


def test_damaged_headers_are_refused_or_rewritten(tmp_path):
    """Bytes flipped anywhere in the header: never another exception, never another length of the file."""
    write(tmp_path / "whole.mkv", Colour(), "yuv420p")
    whole = (tmp_path / "whole.mkv").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for position in generator.integers(0, 600, 3):
            data[position] = generator.integers(256)
        (tmp_path / "x.mkv").write_bytes(data)
        with contextlib.suppress(ValueError):
            write_pixel_shape(tmp_path / "x.mkv", Fraction(16, 11))
        assert (tmp_path / "x.mkv").stat().st_size == len(whole)
