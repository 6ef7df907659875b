"""Segments of a render: written in any order, by any number of processes, they join to the uninterrupted result."""

import contextlib
import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.videos import picture

from stif_rt.files import publish
from stif_rt.video import segments, workspace
from stif_rt.video.colour import IDENTITY, Colour, from_image
from stif_rt.video.encoding import choose_encoding, choose_image_encoding
from stif_rt.video.notices import Notices
from stif_rt.video.reader import read_image
from stif_rt.video.segments import check_segments, join_images, join_video, missing_runs, nothing_else, write_segments
from stif_rt.video.workspace import Busy, open_workspace, workspace_path
from stif_rt.video.writer import ImageWriter, VideoWriter

SIZE = (36, 64)  # x264 makes different files of smaller pictures from run to run
LENGTH = 5


def encode(rate, suffix):
    """``open_writer`` for pictures in that container."""

    @contextlib.contextmanager
    def open_writer(path):
        with av.open(str(path), "w") as container:
            encoding = choose_encoding(suffix, Colour(IDENTITY), Notices(), crf=4)
            writer = VideoWriter(container, SIZE, rate, encoding)
            yield lambda image: writer.write(encoding.components(from_image(image)))
            writer.finish()

    return open_writer


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        return [time for time, _ in frames], [image for _, image in frames], stream.guessed_rate


def decoding_times(path):
    with av.open(str(path)) as container:
        return [(p.dts * p.time_base, p.pts * p.time_base) for p in container.demux(video=0) if p.dts is not None]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
@pytest.mark.parametrize("frames", [1, LENGTH, 13])
def test_joined_segments_show_every_picture_once_in_order(tmp_path, suffix, frames):
    rate = Fraction(30000, 1001)
    target = tmp_path / f"out{suffix}"
    with open_workspace(target, suffix) as space:
        pictures = [picture(n, SIZE) for n in range(frames)]
        assert write_segments(space, pictures, 0, encode(rate, suffix), LENGTH) == frames
        files = check_segments(space, rate, LENGTH, frames)
        join_video(space, files, target, rate, nothing_else)
        space.delete()
    times, images, found_rate = decoded(target)
    step = Fraction(1, 1000)  # of Matroska
    assert len(times) == frames
    assert all(abs(time - n / rate) <= step for n, time in enumerate(times))
    for n, image in enumerate(images):  # beside those before and after it, which differ by a shift of one pixel
        errors = [np.abs(image.astype(int) - picture(n + shift, SIZE)).mean() for shift in (0, -1, 1)]
        assert errors[0] < 6
        assert errors[0] < min(errors[1:])
    if frames > 1:
        assert abs(found_rate - rate) < Fraction(1, 10)
    dts = [d for d, _ in decoding_times(target)]
    assert all(a < b for a, b in itertools.pairwise(dts))
    assert all(d <= p for d, p in decoding_times(target))
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_order_of_rendering_does_not_matter(tmp_path, order):
    rate, frames = Fraction(24), 13
    whole, parts = tmp_path / "whole.mp4", tmp_path / "parts.mp4"
    pictures = [picture(n, SIZE) for n in range(frames)]
    with open_workspace(whole, ".mp4") as space:
        write_segments(space, pictures, 0, encode(rate, ".mp4"), LENGTH)
        join_video(space, check_segments(space, rate, LENGTH, frames), whole, rate, nothing_else)
    for index in order:
        with open_workspace(parts, ".mp4", shard=index) as space:
            own = pictures[index * LENGTH : (index + 1) * LENGTH]
            write_segments(space, own, index, encode(rate, ".mp4"), LENGTH)
    with open_workspace(parts, ".mp4") as space:
        join_video(space, check_segments(space, rate, LENGTH, frames), parts, rate, nothing_else)
    assert decoded(parts)[0] == decoded(whole)[0]
    assert all(np.array_equal(a, b) for a, b in zip(decoded(parts)[1], decoded(whole)[1], strict=True))


@pytest.mark.parametrize("rate", [Fraction(1, 3), Fraction(24000, 1001), Fraction(240), Fraction(999)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_any_rate_is_counted_exactly(tmp_path, rate, suffix):
    target = tmp_path / f"out{suffix}"
    with open_workspace(target, suffix) as space:
        write_segments(space, [picture(n, SIZE) for n in range(12)], 0, encode(rate, suffix), LENGTH)
        join_video(space, check_segments(space, rate, LENGTH, 12), target, rate, nothing_else)
    times, _, _ = decoded(target)
    assert [round(time * rate) for time in times] == list(range(12))


def test_a_stop_keeps_what_is_finished(tmp_path):
    target = tmp_path / "out.mp4"

    def stopping():
        yield from (picture(n, SIZE) for n in range(7))
        raise KeyboardInterrupt

    def run():
        with open_workspace(target, ".mp4") as space:
            write_segments(space, stopping(), 0, encode(Fraction(10), ".mp4"), LENGTH)

    with pytest.raises(KeyboardInterrupt):
        run()
    with open_workspace(target, ".mp4") as space:
        assert space.finished() == [0]
        assert not list(space.path.glob("partial*"))
        write_segments(space, (picture(n, SIZE) for n in range(5, 8)), 1, encode(Fraction(10), ".mp4"), LENGTH)
        join_video(space, check_segments(space, Fraction(10), LENGTH, 8), target, Fraction(10), nothing_else)
    assert len(decoded(target)[0]) == 8


def test_nothing_finished_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), open_workspace(tmp_path / "out.mp4", ".mp4"):
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


def test_images_are_numbered_through(tmp_path):
    target = tmp_path / "frames"

    @contextlib.contextmanager
    def open_writer(path):
        path.mkdir()
        encoding = choose_image_encoding(".png", Colour(IDENTITY, full_range=True), Notices())
        writer = ImageWriter(path, SIZE, encoding)
        yield lambda image: writer.write(encoding.components(from_image(image)))

    with open_workspace(target, "") as space:
        pictures = [picture(n, SIZE) for n in range(8)]
        write_segments(space, pictures[5:], 1, open_writer, LENGTH)
        write_segments(space, pictures[:5], 0, open_writer, LENGTH)
        join_images(space, target, LENGTH, 8)
        space.delete()
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]
    files = sorted(target.iterdir())
    assert [file.name for file in files] == [f"frame_{n:06d}.png" for n in range(8)]
    assert all(np.array_equal(read_image(file), picture(n, SIZE)) for n, file in enumerate(files))


def rendered(target, frames=12):
    """The workspace of ``target`` with all segments of a clip finished."""
    with open_workspace(target, ".mp4") as space:
        write_segments(space, [picture(n, SIZE) for n in range(frames)], 0, encode(Fraction(10), ".mp4"), LENGTH)
        return space


def truncate(path):
    path.write_bytes(path.read_bytes()[:500])


def encode_otherwise(path):
    path.unlink()
    with av.open(str(path), "w") as container:
        encoding = choose_encoding(".mp4", Colour(IDENTITY), Notices(), crf=30)
        writer = VideoWriter(container, (20, 30), Fraction(10), encoding)
        for n in range(LENGTH):
            writer.write(encoding.components(from_image(picture(n, (20, 30)))))
        writer.finish()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "1 of 3 segments are not rendered yet, the first one is 1"),
        (truncate, "000001.mp4 cannot be read"),
        (encode_otherwise, "000001.mp4 was encoded with other settings"),
        (lambda path: path.write_bytes((path.parent / "000002.mp4").read_bytes()), "holds 2 frames instead of 5"),
    ],
)
def test_a_segment_that_does_not_fit_is_named(tmp_path, damage, message):
    space = rendered(tmp_path / "out.mp4")
    damage(space.segment(1))
    with pytest.raises(ValueError, match=message):
        check_segments(space, Fraction(10), LENGTH, 12)


@pytest.mark.parametrize(
    ("finished", "runs"),
    [
        ([], [range(6)]),
        ([0, 1], [range(2, 6)]),
        ([1, 4], [range(1), range(2, 4), range(5, 6)]),
        (range(6), []),
        ([9], [range(6)]),
    ],
)
def test_missing_runs(finished, runs):
    assert missing_runs(finished, range(6)) == runs


@pytest.mark.parametrize(("count", "shards"), [(7, 1), (7, 3), (2, 5), (0, 2)])
def test_shards_cover_all_segments_once(count, shards):
    ranges = [segments.shard_range(count, shard, shards) for shard in range(shards)]
    assert [index for part in ranges for index in part] == list(range(count))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


HOLD = """
import sys
from pathlib import Path
from stif_rt.video.workspace import open_workspace
with open_workspace(Path(sys.argv[1]), ".mp4", eval(sys.argv[2])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("theirs", "ours", "together"),
    [(None, None, False), (0, None, False), (None, 0, False), (0, 0, False), (0, 1, True)],
)
def test_two_processes_on_one_output(tmp_path, theirs, ours, together):
    target = tmp_path / "out.mp4"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, target, repr(theirs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"locked\n"
    if together:
        with open_workspace(target, ".mp4", ours):
            pass
    else:
        with (
            pytest.raises(Busy, match=r"another process is working on .*out\.mp4"),
            open_workspace(target, ".mp4", ours),
        ):
            pass
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with open_workspace(target, ".mp4"):  # a killed process holds nothing
        pass
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_not_taken(tmp_path):
    folder = workspace_path(tmp_path / "out.mp4")
    folder.mkdir()
    (folder / "holiday.txt").write_text("mine")
    with pytest.raises(ValueError, match="in the way"), open_workspace(tmp_path / "out.mp4", ".mp4"):
        pass
    assert (folder / "holiday.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["a" * 250 + ".mp4", "ü" * 125 + ".mp4", "a:b [c]\n.mp4", "-dash.mp4"])
def test_any_name_has_a_workspace(tmp_path, name):
    with open_workspace(tmp_path / name, ".mp4") as space:
        assert space.path.is_dir()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_publishing_replaces_nothing_unasked(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(workspace.os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError("no links")))
    target = tmp_path / "out"
    for text, overwrite in (("first", False), ("second", True)):
        (tmp_path / "new").write_text(text)
        publish(tmp_path / "new", target, overwrite)
        assert target.read_text() == text
        assert not (tmp_path / "new").exists()
    (tmp_path / "new").write_text("third")
    with pytest.raises(FileExistsError, match="--overwrite"):
        publish(tmp_path / "new", target, False)
    assert target.read_text() == "second"
