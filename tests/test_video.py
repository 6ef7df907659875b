from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.videos import picture, write_images, write_video

from stif_rt.video.reader import open_reader, read_image
from stif_rt.video.writer import check_target, publish_images, write_png
from stif_rt.video.writer import write_video as encode_video


def read(path):
    reader = open_reader(path)
    frames = list(reader)
    reader.close()
    return reader, frames


def test_video_times_and_pictures(tmp_path):
    pictures = [picture(n) for n in range(7)]
    reader, frames = read(write_video(tmp_path / "v.mp4", pictures, Fraction(24000, 1001)))
    assert (reader.height, reader.width, reader.rate) == (18, 32, Fraction(24000, 1001))
    assert [f.start for f in frames] == [Fraction(n * 1001, 24000) for n in range(7)]
    assert frames[-1].end == Fraction(7 * 1001, 24000)
    for frame, image in zip(frames, pictures, strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 2


def test_uneven_times(tmp_path):
    times = [Fraction(0), Fraction(1, 10), Fraction(7, 20), Fraction(2, 5)]
    _, frames = read(write_video(tmp_path / "v.mkv", [picture(n) for n in range(4)], times=times))
    assert [f.start for f in frames] == times


def test_images(tmp_path):
    pictures = [picture(n) for n in range(3)]
    reader, frames = read(write_images(tmp_path / "in", pictures))
    assert reader.frames == 3
    assert [f.start for f in frames] == [Fraction(n, 24) for n in range(3)]
    for frame, image in zip(frames, pictures, strict=True):
        assert np.array_equal(frame.image, image)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (37, 64)])
def test_png_is_lossless(tmp_path, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_png(tmp_path / "x.png", image)
    assert np.array_equal(read_image(tmp_path / "x.png"), image)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_written_colours_come_back(tmp_path, suffix):
    """Eight flat colours through 4:2:0 BT.709 and back, read by this package and tagged for others."""
    colours = np.array(
        [
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [255, 255, 0],
            [0, 0, 0],
            [255, 255, 255],
            [90, 60, 200],
            [20, 200, 160],
        ]
    )
    image = np.kron(colours.reshape(2, 4, 3), np.ones((16, 16, 1))).astype(np.uint8)
    encode_video(tmp_path / f"v{suffix}", [image] * 3, Fraction(10), crf=4)
    _, frames = read(tmp_path / f"v{suffix}")
    inner = np.s_[4:12, 4:12]
    for i in range(2):
        for j in range(4):
            actual = frames[1].image[16 * i : 16 * i + 16, 16 * j : 16 * j + 16][inner].reshape(-1, 3).mean(0)
            np.testing.assert_allclose(actual, colours[4 * i + j], atol=4)
    with av.open(str(tmp_path / f"v{suffix}")) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == 1


def test_failure_leaves_nothing_behind(tmp_path):
    def images():
        yield picture(0)
        raise RuntimeError("midway")

    (tmp_path / "old.mp4").write_bytes(b"old")
    for name in ("old.mp4", "new.mp4"):
        with pytest.raises(RuntimeError, match="midway"):
            encode_video(tmp_path / name, images(), Fraction(10))
    assert [p.name for p in tmp_path.iterdir()] == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == b"old"


def test_folder_keeps_other_files(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for numbers in ((0, 1), (2,)):
        finished = tmp_path / "finished"
        finished.mkdir()
        for index, number in enumerate(numbers):
            write_png(finished / f"frame_{index:06d}.png", picture(number))
        publish_images(finished, folder, overwrite=True)
        finished.rmdir()
    assert sorted(p.name for p in folder.iterdir()) == ["frame_000000.png", "notes.txt"]
    assert np.array_equal(read_image(folder / "frame_000000.png"), picture(2))


def test_images_are_in_natural_order(tmp_path):
    folder = write_images(tmp_path / "in", [])
    for n in (2, 10, 1):
        write_png(folder / f"{n}.png", picture(n))
    (folder / "._1.png").write_bytes(b"not an image")
    assert [np.argmax([np.array_equal(f.image, picture(n)) for n in (1, 2, 10)]) for f in read(folder)[1]] == [0, 1, 2]


def test_names_with_colons_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode_video(Path("12:30.mp4"), [picture(0)], Fraction(10))
    assert len(read(Path("12:30.mp4"))[1]) == 1


def test_size_that_cannot_be_encoded_is_explained(tmp_path):
    with pytest.raises(ValueError, match="cannot encode 40000x2 pixels of yuv420p with libx264"):
        encode_video(tmp_path / "v.mp4", [np.zeros((2, 40000, 3), np.uint8)], Fraction(10))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(18, 32), (64, 48)])
def test_sideways_video_is_turned_upright(tmp_path, size):
    path = write_video(tmp_path / "v.mp4", [picture(0, size)], turned=90)
    reader, frames = read(path)
    assert (reader.height, reader.width) == size[::-1]
    assert np.abs(frames[0].image.astype(int) - np.rot90(picture(0, size))).mean() < 2


def test_unreadable_inputs_are_explained(tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"no png")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name, message in {
        "text.mp4": "cannot be read as a video",
        "sound.mp4": "no video stream",
        "empty": "no images",
        "bad": "cannot be read as an image",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_reader(tmp_path / "nowhere.mp4")


def test_truncated_video_gives_frames_or_an_error(tmp_path):
    path = write_video(
        tmp_path / "v.mkv", [np.random.default_rng(n).integers(0, 256, (64, 64, 3), dtype=np.uint8) for n in range(8)]
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    try:
        _, frames = read(path)
    except ValueError as error:
        assert "damaged" in str(error)  # noqa: PT017 - both ends are fine, a crash is not
    else:
        assert 0 < len(frames) < 8


def test_targets_are_checked(tmp_path):
    (tmp_path / "in.mp4").write_bytes(b"x")
    (tmp_path / "taken.mp4").write_bytes(b"x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").write_bytes(b"x")
    source = tmp_path / "in.mp4"
    for target, error, message in [
        (source, ValueError, "input itself"),
        (tmp_path / "taken.mp4", FileExistsError, "--overwrite"),
        (full, FileExistsError, "--overwrite"),
        (tmp_path / "none" / "out.mp4", FileNotFoundError, "does not exist"),
        (tmp_path / "out.xyz", ValueError, r"cannot write \.xyz"),
    ]:
        with pytest.raises(error, match=message):
            check_target(target, source, overwrite=False)
    check_target(tmp_path / "taken.mp4", source, overwrite=True)
    check_target(full, source, overwrite=True)
    check_target(tmp_path / "new.mkv", source, overwrite=False)
