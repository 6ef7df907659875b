"""Files that are damaged, oddly timed or oddly made: how they were made is in tests/data/cases/README.md."""

import os
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.videos import picture, write_images, write_video

from stif_rt.video.notices import Notices
from stif_rt.video.reader import jpeg_is_complete, open_reader
from stif_rt.video.writer import write_png

CASES = Path(__file__).parent / "data" / "cases"


def read(path, **options):
    reader = open_reader(Path(path), **options)
    return reader, list(reader), [str(notice) for notice in reader.notices]


def starts(frames):
    return [float(frame.start) for frame in frames]


JUMP = "1.00 s: timestamps jump; what follows is moved to continue"
ENTIRE = {  # name: frames, seconds, notices; the pictures are evenly spaced
    "audio_dup_dts.mkv": (12, 0.5, []),
    "cat_overlap.ts": (50, 2.0, [JUMP]),
    "cat_reset.ts": (50, 2.0, [JUMP]),
    "cat_reset_sound.ts": (50, 2.0, [JUMP]),
    "jump_1h.ts": (50, 2.0, [JUMP]),
    "h264_bframes.avi": (50, 1.98, []),
    "repeated_pictures.ogv": (13, 13 / 24, []),
    "second_is_default.mkv": (24, 1.0, []),
    "two_sounds_subtitles.mkv": (12, 0.5, []),
    "sound_wma.wmv": (50, 2.0, []),
}


@pytest.mark.parametrize("name", ENTIRE)
def test_every_picture_is_used_evenly(name):
    frames, seconds, message = ENTIRE[name]
    reader, given, notices = read(CASES / name)
    assert len(given) == frames
    assert float(given[-1].end) == pytest.approx(seconds, abs=0.002)
    steps = np.diff(starts(given))
    np.testing.assert_allclose(steps, 1 / float(reader.rate), atol=0.001)
    assert notices == message


def test_the_default_stream_is_read():
    reader, _, _ = read(CASES / "second_is_default.mkv")
    assert (reader.width, reader.height, reader.rate) == (128, 72, 24)


def test_long_gaps_stay():
    _, frames, notices = read(CASES / "slideshow.mp4")
    assert starts(frames) == [0, 4, 8, 12]
    assert notices == []


def test_wrong_nominal_rates_are_measured():
    reader, frames, _ = read(CASES / "timebase_1000.wmv")
    assert len(frames) == 24
    assert float(reader.rate) == pytest.approx(45.6, abs=0.1)
    assert float(frames[-1].end * reader.rate) == pytest.approx(24)


def test_pictures_that_cannot_be_decoded_are_left_out():
    _, frames, notices = read(CASES / "damaged_av1.mkv")
    assert 18 <= len(frames) <= 20  # a decoder's threads and PyAV before 18 lose those behind an error
    assert len(notices) == 1
    assert re.fullmatch(r"0\.84 s and \d+ more: a picture cannot be decoded; it is left out", notices[0])
    with pytest.raises(ValueError, match=r"0\.84 s: a picture cannot be decoded"):
        read(CASES / "damaged_av1.mkv", notices=Notices(strict=True))


def test_the_last_picture_is_held_where_those_behind_it_are_lost():
    _, frames, _ = read(CASES / "damaged_av1.mkv")
    assert float(frames[-1].end) == pytest.approx(1.6)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi"])
def test_a_damaged_end_costs_no_time(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10, options={"bf": "0", "g": "30"})
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
        images = [np.full((36, 64, 3), 20 * n, np.uint8) for n in range(12)]
        packets = [p for image in images for p in stream.encode(av.VideoFrame.from_ndarray(image))] + stream.encode()
        for number, packet in enumerate(packets):
            if number >= 9:
                damaged = av.Packet(b"\xff" * packet.size)
                damaged.pts, damaged.dts, damaged.time_base = packet.pts, packet.dts, packet.time_base
                damaged.duration, damaged.stream = packet.duration, stream
                packet = damaged
            file.mux(packet)
    _, frames, notices = read(path)
    assert (len(frames), frames[0].start, frames[-1].end) == (9, 0, Fraction(12, 10))
    assert notices == ["0.90 s and 2 more: a picture cannot be decoded; it is left out"]


def test_a_file_cut_off_gives_all_that_is_there():
    _, frames, notices = read(CASES / "truncated.mp4")
    assert len(frames) == 58
    assert notices[-1] == "the file ends early: 2.38 of 4.02 s are there"


def test_other_sizes_are_brought_to_the_first():
    reader, frames, notices = read(CASES / "size_change.ts")
    assert (reader.width, reader.height) == (64, 36)
    assert {frame.image.shape[:2] for frame in frames} == {(36, 64)}
    assert len(frames) == 50
    assert notices == [JUMP, "1.00 s and 24 more: pictures of 128x72 are resized to 64x36, as the first one"]
    difference = np.abs(frames[24].image.astype(float) - frames[25].image).mean()  # the scene goes on
    assert difference < 20


@pytest.mark.parametrize(
    ("name", "message"), [("song_cover.mp3", "has no video"), ("anim.webp", "animated WebP is not supported")]
)
def test_what_is_no_video_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        open_reader(CASES / name)


@pytest.mark.parametrize("name", ["plain", "cat_reset_sound.ts", "h264_bframes.avi", "damaged_av1.mkv"])
def test_iterating_again_gives_the_same(name, tmp_path):
    path = write_video(tmp_path / "v.mp4", [picture(n) for n in range(20)]) if name == "plain" else CASES / name
    reader = open_reader(path)
    first_time, again = list(reader), list(reader)
    assert [frame[:2] for frame in first_time] == [frame[:2] for frame in again]
    assert all(np.array_equal(a.luma, b.luma) for a, b in zip(first_time, again, strict=True))
    assert len(reader.notices) <= 1


PARTS = {
    ".mp4": ("libx264", {"g": "12", "bf": "2"}),
    ".mov": ("libx264", {"g": "12", "x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
    ".mkv": ("libx265", {"x265-params": "keyint=12:log-level=none"}),
    ".webm": ("libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    ".ts": ("libx264", {"g": "12", "bf": "2"}),
    ".avi": ("mpeg4", {"g": "12"}),
}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Six seconds in each container."""
    folder = tmp_path_factory.mktemp("numbered")
    for suffix, (codec, options) in PARTS.items():
        with av.open(str(folder / f"v{suffix}"), "w") as container:
            stream = container.add_stream(codec, rate=10, options=options)
            stream.width, stream.height, stream.pix_fmt = 32, 18, "yuv420p"
            for n in range(60):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(n), format="rgb24")))
            container.mux(stream.encode(None))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("suffix", PARTS)
@pytest.mark.parametrize(
    ("start", "end", "context"), [("0", "1", 0), ("3.1", "3.5", 0), ("59/10", None, 2), ("4", "4", 1), ("2.45", "9", 7)]
)
def test_parts_equal_those_of_the_whole(numbered, suffix, start, end, context):
    path = numbered / f"v{suffix}"
    reader = open_reader(path)
    whole = list(reader)
    assert len(whole) == 60
    start, end = Fraction(start), None if end is None else Fraction(end)
    first = max(n for n, frame in enumerate(whole) if frame.start <= start)
    last = next((n for n, frame in enumerate(whole) if end is not None and frame.start >= end and n > first), 59)
    expected = whole[max(0, first - context) : last + 1 + context]
    part = list(reader.read(start, end, context))
    assert [frame[:2] for frame in part] == [frame[:2] for frame in expected]
    assert all(np.array_equal(a.luma, b.luma) for a, b in zip(part, expected, strict=True))
    assert reader.starts() == [frame.start for frame in whole]
    assert [str(notice) for notice in reader.notices] == []


def test_names_of_images_are_no_patterns():
    _, frames, _ = read(CASES / "percent")
    assert [int(frame.image[0, 0].argmax()) for frame in frames] == [1, 2, 0]  # 000, 001, %03d


def test_circled_digits_are_letters():
    assert len(read(CASES / "folder_circled_digits")[1]) == 2


def test_an_image_of_another_size_is_known_before_the_first_frame():
    reader = open_reader(CASES / "folder_sizes")
    assert [str(notice) for notice in reader.notices] == [
        "6.png: an image of 32x18 is resized to 64x36, as the first one"
    ]
    assert {frame.image.shape[:2] for frame in reader} == {(36, 64)}


def test_half_a_jpeg_is_left_out():
    reader, frames, notices = read(CASES / "folder_truncated_jpg")
    assert notices == ["3.jpg: the JPEG file ends early; it is left out"]
    assert [frame.start * reader.rate for frame in frames] == [0, 1, 3]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_are_complete_to_the_last_byte(progressive, share):
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
        file, "jpeg", progressive=progressive
    )
    data = file.getvalue()
    assert jpeg_is_complete(data)
    assert jpeg_is_complete(data + b"a trailer of the camera\xff\xd8")
    assert not jpeg_is_complete(data[: int(len(data) * share)])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_damaged_images_are_left_out_wherever_they_are(tmp_path, suffix):
    from PIL import Image

    for n in range(5):
        Image.fromarray(picture(n)).save(tmp_path / f"{n}{suffix}")
    for n in (0, 2, 4):
        path = tmp_path / f"{n}{suffix}"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader, frames, notices = read(tmp_path)
    assert [frame.start * reader.rate for frame in frames] == [0, 2]
    assert frames[-1].end * reader.rate == 4
    assert len(notices) == 1
    assert f"0{suffix} and 2 more" in notices[0]


@pytest.mark.parametrize(
    "name", ["a:b", "-o", "[x]{y}*?", "new\nline", "%03d", "f_%d_%s", "ü日本", "x" * 245, "file:x", "pipe:0", "a#b%20"]
)
@pytest.mark.parametrize("kind", ["video", "image", "folder"])
def test_any_name_is_read(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "folder":
        write_images(Path(name), [picture(n) for n in range(2)])
    elif kind == "image":
        write_png(Path(f"{name}.png"), picture(0))
    else:
        os.rename(write_video(tmp_path / "v.mp4", [picture(n) for n in range(2)]), f"{name}.mp4")
    path = Path(name + {"folder": "", "image": ".png", "video": ".mp4"}[kind])
    assert len(read(path)[1]) == (1 if kind == "image" else 2)


@pytest.mark.parametrize(
    ("suffix", "what"),
    [(".mkv", "title"), (".mp4", "title"), (".avi", "title"), (".mkv", "chapter"), (".mp4", "chapter")],
)
def test_latin_1_metadata(tmp_path, suffix, what):
    path = tmp_path / f"v{suffix}"
    with av.open(str(path), "w") as container:
        if what == "title":
            container.metadata["title"] = "XXXXYYYY"
        else:
            chapter = {"id": 1, "start": 0, "end": 1000, "time_base": Fraction(1, 1000)}
            container.set_chapters([chapter | {"metadata": {"title": "XXXXYYYY"}}])
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 18, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"XXXXYYYY", b"Caf\xe9 M\xfc."))
    _, frames, notices = read(path)
    assert len(frames) == 1
    assert notices == ["metadata that is not UTF-8 is read as Latin-1"]


def write_moving(path, codec, pictures=8, **attributes):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 32, 18
        for key, value in attributes.items():
            setattr(stream, key, value)
        for n in range(pictures):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(picture(n), format="rgb24").reformat(format=stream.pix_fmt))
            )
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.gif", "gif", "rgb8"), ("a.apng", "apng", "rgb24")])
@pytest.mark.parametrize("suffix", [None, ".png"])
def test_animated_images(tmp_path, name, codec, pix_fmt, suffix):
    path = write_moving(tmp_path / name, codec, pix_fmt=pix_fmt)
    if suffix is not None and codec == "apng":
        path = path.rename(path.with_suffix(suffix))
    _, frames, _ = read(path)
    assert len(frames) == 8
    np.testing.assert_allclose(starts(frames), np.arange(8) / 10, atol=0.001)


def test_a_cover_that_is_not_flagged_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mkv"), "w") as container:
        sound = container.add_stream("aac", rate=48000, layout="mono")
        cover = container.add_stream("mjpeg", rate=10)
        cover.width, cover.height, cover.pix_fmt = 32, 18, "yuvj420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24").reformat(format="yuvj420p")))
        container.mux(cover.encode(None))
        for n in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 48000, 1024 * n
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(ValueError, match="no video"):
        open_reader(tmp_path / "song.mkv")
