"""Clips and their frames: what is found, what it is called, when it is decoded anew."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.videos import picture, write_images, write_video

from stif_rt.data import frame_cache
from stif_rt.data.clips import find_clips, load_clip, load_clips, load_pictures, name_clips
from stif_rt.data.datasets import find_dataset
from stif_rt.video.writer import write_png

SMALL = [picture(n, (12, 16)) for n in range(3)]


def below(root, paths):
    return [path.relative_to(root).as_posix() for path in paths]


def test_published_layouts_need_no_configuration(tmp_path):
    for name in ("sharp", "blur", "blur_gamma"):
        write_images(tmp_path / "gopro" / "GOPR1" / name, SMALL[:1])
    write_images(tmp_path / "calendar", SMALL[:1])
    write_video(tmp_path / "adobe.mp4", SMALL[:1])
    (tmp_path / "readme.txt").write_text("")
    assert below(tmp_path, find_clips(tmp_path)) == ["adobe.mp4", "calendar", "gopro/GOPR1/sharp"]
    assert find_clips(tmp_path / "adobe.mp4") == [tmp_path / "adobe.mp4"]
    assert list(name_clips([tmp_path])) == ["adobe", "calendar", "gopro/GOPR1"]
    assert list(name_clips([tmp_path / "gopro" / "GOPR1"])) == ["GOPR1"]


@pytest.mark.parametrize(
    "names",
    [
        ["blur"],
        ["blurry night", "deblurred", "motion_blur"],
        ["test_blur/000", "test_sharp/000"],
        ["blur/a", "sharp/a"],
    ],
)
def test_a_name_with_blur_in_it_is_no_reason_to_leave_out(tmp_path, names):
    for name in names:
        write_images(tmp_path / name, SMALL[:1])
    assert below(tmp_path, find_clips(tmp_path)) == names


def test_blur_and_sharp_of_different_frames_are_two_clips(tmp_path):
    write_images(tmp_path / "sharp", SMALL)
    write_images(tmp_path / "blur", SMALL[:2])
    assert below(tmp_path, find_clips(tmp_path)) == ["blur", "sharp"]
    assert find_clips(tmp_path / "blur") == [tmp_path / "blur"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    write_images(tmp_path / "a", SMALL)
    (tmp_path / "a" / "._000.png").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._000.png").write_bytes(bytes(100))
    (tmp_path / "._film.mp4").write_bytes(bytes(100))
    write_images(tmp_path / ".trash", SMALL)
    assert below(tmp_path, find_clips(tmp_path)) == ["a"]
    assert len(load_pictures(tmp_path)) == 3
    assert len(load_clip(tmp_path / "a", tmp_path / ".cache", 1).frames) == 3


def test_links_are_followed_and_lead_to_each_clip_once(tmp_path):
    write_images(tmp_path / "disk" / "there", SMALL)
    write_video(tmp_path / "disk" / "film.mp4", SMALL)
    write_images(tmp_path / "data" / "here", SMALL)
    data = tmp_path / "data"
    for name, target in (
        ("there", "../disk/there"),
        ("film.mp4", "../disk/film.mp4"),
        ("again", "here"),
        ("loop", "."),
        ("above", ".."),
        ("broken", "nowhere"),
        ("broken.mp4", "nowhere.mp4"),
    ):
        (data / name).symlink_to(target)
    assert {path.resolve() for path in find_clips(data)} == {
        path.resolve() for path in (data / "here", tmp_path / "disk" / "there", tmp_path / "disk" / "film.mp4")
    }
    assert len(find_clips(data)) == 3
    assert data / "here" in find_clips(data)
    assert len(load_pictures(data)) == 6
    (data / "above").unlink()
    assert below(data, find_clips(data)) == ["film.mp4", "here", "there"]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        find_clips(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        load_pictures(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no videos and no folders of images below"):
        find_clips(tmp_path)
    with pytest.raises(FileNotFoundError, match="no images below"):
        load_pictures(tmp_path)


@pytest.mark.parametrize(
    ("clips", "roots", "names"),
    [
        (["d/one/frames", "d/two/frames"], ["d"], ["one/frames", "two/frames"]),
        (["d/a/sharp", "d/b/sharp"], ["d"], ["a", "b"]),
        (["d/a", "d/a/sharp"], ["d"], ["a", "a/sharp"]),
        (["d/x.v1", "d/x.v2"], ["d"], ["x.v1", "x.v2"]),
        (["d/x", "d/x.mp4", "d/x.mov"], ["d"], ["x", "x.mov", "x.mp4"]),
        (["d/[red]walk", "d/a b"], ["d"], ["[red]walk", "a b"]),
        (["d/x", "e/x", "e/y"], ["d", "e"], ["d/x", "e/x", "y"]),
        (["p/d/x", "q/d/x"], ["p/d", "q/d"], ["p/d/x", "q/d/x"]),
        (["p/sharp", "q/sharp"], ["p/sharp", "q/sharp"], ["p/sharp", "q/sharp"]),
        (["d/x"], ["d", "d/x", "d"], ["x"]),
    ],
)
def test_names_are_unique(tmp_path, monkeypatch, clips, roots, names):
    for clip in clips:
        if clip.endswith((".mp4", ".mov")):
            (tmp_path / clip).parent.mkdir(exist_ok=True)
            (tmp_path / clip).write_bytes(b"")
        else:
            (tmp_path / clip).mkdir(parents=True)
            write_png(tmp_path / clip / "0.png", SMALL[0])
    assert sorted(name_clips([tmp_path / root for root in roots])) == names
    monkeypatch.chdir(tmp_path)
    relative = name_clips([Path(root) for root in roots])
    assert sorted(relative) == names
    assert len({path.resolve() for path in relative.values()}) == len(clips)


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    try:
        write_images(tmp_path / os.fsdecode(b"caf\xe9"), SMALL)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    write_images(tmp_path / "café", SMALL)
    names = name_clips([tmp_path])
    assert len(names) == 2
    for name in names:
        assert "café" in name.encode("utf-8").decode()
    assert len(load_clips([tmp_path], tmp_path / ".cache", 1)) == 2


def test_the_cache_holds_the_frames(tmp_path):
    clip = load_clip(write_images(tmp_path / "clip", SMALL), tmp_path / "cache", 1)
    assert (clip.name, clip.shots) == ("clip", [(0, 3)])
    assert np.array_equal(clip.frames, SMALL)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(files) == 2
    load_clip(tmp_path / "clip", tmp_path / "cache", 1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files
    assert load_clip(tmp_path / "clip", tmp_path / "cache", 2).frames.shape == (3, 6, 8, 3)
    assert len(list((tmp_path / "cache").iterdir())) == 4


def rewrite_in_place(folder):
    for number in range(3):
        write_png(folder.parent / "new.png", 255 - SMALL[number])
        (folder / f"{number:03d}.png").write_bytes((folder.parent / "new.png").read_bytes())


def add_one(folder):
    write_png(folder / "003.png", SMALL[0])


def remove_one(folder):
    (folder / "002.png").unlink()


def swap_two(folder):
    for old, new in (("000", "x"), ("001", "000"), ("x", "001")):
        (folder / f"{old}.png").rename(folder / f"{new}.png")


def another_folder_under_the_name(folder):
    folder.rename(folder.with_name("old"))
    write_images(folder, [255 - image for image in SMALL])


@pytest.mark.parametrize("change", [rewrite_in_place, add_one, remove_one, swap_two, another_folder_under_the_name])
def test_changed_frames_are_decoded_again(tmp_path, change):
    folder = write_images(tmp_path / "data" / "clip", SMALL)
    load_clip(folder, tmp_path / "cache", 1)
    change(folder)
    fresh = load_clip(folder, tmp_path / "other cache", 1).frames
    assert np.array_equal(load_clip(folder, tmp_path / "cache", 1).frames, fresh)
    assert not np.array_equal(fresh, SMALL)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # what was decoded from the old frames is gone


def test_a_new_time_of_change_of_the_inode_is_enough(tmp_path):
    folder = write_images(tmp_path / "clip", SMALL)
    for file in folder.iterdir():  # one colour, so that files of one size differ
        write_png(file, np.full((12, 16, 3), 50, np.uint8))
    load_clip(folder, tmp_path / "cache", 1)
    for file in folder.iterdir():
        before = file.stat()
        write_png(tmp_path / "new.png", np.full((12, 16, 3), 51, np.uint8))
        shutil.copyfile(tmp_path / "new.png", file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (load_clip(folder, tmp_path / "cache", 1).frames == 51).all()


def test_a_rewritten_video_is_decoded_again(tmp_path):
    file = write_video(tmp_path / "v.mp4", SMALL)
    before = load_clip(file, tmp_path / "cache", 1)
    assert before.name == "v"
    file.unlink()
    write_video(file, [255 - image for image in SMALL])
    after = load_clip(file, tmp_path / "cache", 1)
    assert np.abs(after.frames.astype(int) - (255 - np.stack(SMALL))).mean() < 8


@pytest.mark.parametrize("damage", ["frames gone", "frames cut short", "index empty", "index of other frames"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    folder = write_images(tmp_path / "clip", SMALL)
    load_clip(folder, tmp_path / "cache", 1)
    frames, index = next((tmp_path / "cache").glob("*.npy")), next((tmp_path / "cache").glob("*.json"))
    if damage == "frames gone":
        frames.unlink()
    elif damage == "frames cut short":
        frames.write_bytes(frames.read_bytes()[:-10])
    elif damage == "index empty":
        index.write_text("")
    else:
        index.write_text(json.dumps({"shots": [[0, 7]]}))
    assert np.array_equal(load_clip(folder, tmp_path / "cache", 1).frames, SMALL)


def test_a_cache_of_another_format_is_not_read(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "clip", SMALL)
    load_clip(folder, tmp_path / "cache", 1)
    np.save(next((tmp_path / "cache").glob("*.npy")), np.zeros((3, 12, 16, 3), np.uint8))
    monkeypatch.setattr(frame_cache, "FORMAT", frame_cache.FORMAT + 1)
    assert np.array_equal(load_clip(folder, tmp_path / "cache", 1).frames, SMALL)


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path):
    folder = write_images(tmp_path / "clip", SMALL)
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"decoded frames, .*file.* cannot be written: .*--cache"):
            load_clip(folder, cache, 1)
    if os.geteuid():
        cache = tmp_path / "read only"
        cache.mkdir(mode=0o500)
        with pytest.raises(OSError, match="cannot be written: Permission denied"):
            load_clip(folder, cache, 1)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(file, shape):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = write_images(tmp_path / "clip", SMALL)
    monkeypatch.setattr(frame_cache, "_write_header", full)
    with pytest.raises(OSError, match="cannot be written: No space left on device"):
        load_clip(folder, tmp_path / "cache", 1)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(("write", "name"), [(write_images, "clip"), (write_video, "clip.mp4")])
def test_too_much_for_the_cache_is_refused_before_decoding(tmp_path, write, name):
    source = write(tmp_path / name, SMALL)
    size = 3 * 12 * 16 * 3
    with pytest.raises(
        OSError, match=r"1 clip would take 1\.73 kB in .*cache .*more than the 1\.73 kB of --max-cache.*--downscale"
    ):
        load_clips([source], tmp_path / "cache", 1, max_cache=size - 1)
    assert not (tmp_path / "cache").exists()
    load_clips([source], tmp_path / "cache", 2, max_cache=size // 4)
    load_clips([source], tmp_path / "cache", 1, max_cache=size)
    load_clips([source], tmp_path / "cache", 1, max_cache=0)  # it is there: nothing is added


def test_more_than_is_free_is_refused(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="where 100 bytes are free: give another --cache"):
        load_clips([write_images(tmp_path / "clip", SMALL)], tmp_path / "cache", 1)


def test_copies_in_a_data_set_are_not_mixed_up(tmp_path):
    """Vid4 is distributed with its small copies beside it."""
    for kind in ("BIx4", "GT"):
        for name in ("calendar", "city", "foliage", "walk"):
            write_images(tmp_path / kind / name, SMALL[:1])
    assert set(find_dataset("vid4", [tmp_path]).values()) == set((tmp_path / "GT").iterdir())
    shutil.move(tmp_path / "GT", tmp_path / "HR")
    with pytest.raises(ValueError, match=r"calendar is there more than once, as .*BIx4.* and .*HR"):
        find_dataset("vid4", [tmp_path])


def test_several_at_once_decode_once(tmp_path, monkeypatch):
    folder, decoded = write_images(tmp_path / "clip", SMALL), []
    decode = frame_cache._decode

    def count(entry):
        decoded.append(entry)
        decode(entry)

    monkeypatch.setattr(frame_cache, "_decode", count)
    with ThreadPoolExecutor(4) as pool:
        clips = list(pool.map(lambda _: load_clip(folder, tmp_path / "cache", 1), range(4)))
    assert len(decoded) == 1
    assert all(np.array_equal(clip.frames, SMALL) for clip in clips)
