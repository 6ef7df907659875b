"""Whatever stops a render: what was finished is kept, nothing half is left, the rest equals an uninterrupted run."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import av
import pytest
from helpers.command_line import call
from helpers.videos import X264_STEPS, picture, same_pictures, write_images, write_video

from stif_rt.model.checkpoints import save_model
from stif_rt.video import run, workspace
from stif_rt.video.job import Job
from stif_rt.video.render import NetworkRenderer
from stif_rt.video.workspace import workspace_path

SIZE = (36, 64)
FRAMES = 6
SEGMENT = 5


@pytest.fixture(autouse=True)
def signals_are_not_ignored():
    """As they are where nohup or a shell in the background runs the tests."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    previous = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("stops")
    save_model(tiny_model, folder / "w.safetensors")
    write_video(folder / "in.mp4", [picture(n, SIZE) for n in range(FRAMES)], Fraction(10), sound=True)
    write_images(folder / "images", [picture(n, SIZE) for n in range(FRAMES)])
    return folder


def arguments(folder, source, target, *more):
    weights = folder / "w.safetensors"
    options = ["--scale", 1.5, "--time-scale", 3, "--segment-frames", SEGMENT]
    if target.suffix == ".mkv":
        options += ["--codec", "ffv1"]  # lossless: what is compared is what the network made
    return ["render", folder / source, target, "--weights", weights, *options, *more]


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """The frames of a run that nothing stopped, as video and as images."""
    patch = pytest.MonkeyPatch()
    results = {}
    for name, source in (("whole.mkv", "in.mp4"), ("whole", "images")):
        patch.setattr("sys.argv", ["stif-rt", *map(str, arguments(folder, source, folder / name))])
        from stif_rt import cli

        cli.app(standalone_mode=False)
        results[source] = decoded(folder / name)
    patch.undo()
    return results


def decoded(path):
    if path.is_dir():
        files = sorted(path.iterdir())
        assert [file.name for file in files] == [f"frame_{n:06d}.png" for n in range(len(files))]
        return [av.open(str(file)).decode(video=0).__next__().to_ndarray(format="rgb24") for file in files]
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def after(count, action):
    """A renderer that does something when it has made that many pictures, counted over all pairs."""

    class Renderer(NetworkRenderer):
        made = 0

        def __call__(self, before, after, times):
            for image in super().__call__(before, after, times):
                yield image
                Renderer.made += 1
                if Renderer.made == count:
                    action()

    return Renderer


def kill(*numbers):
    """An action: sends signals to this process, and waits for them as a long computation would."""

    def action():
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    return action


def once_finished(target, action, segment=0):
    """The action, when a segment of a render is finished, however long that takes on a busy machine."""

    def waiting():
        space, end = workspace_path(target), time.monotonic() + 60
        while not any(path.stem == f"{segment:06d}" for path in space.iterdir()) and time.monotonic() < end:
            time.sleep(0.01)
        action()

    return waiting


CASES = [("in.mp4", "out.mkv"), ("images", "out")]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), CASES)
@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ((signal.SIGTERM,), 143),
        ((signal.SIGHUP,), 129),
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGINT,), 130),
    ],
)
def test_signals_keep_finished_segments(
    monkeypatch, capsys, tmp_path, folder, uninterrupted, source, target, signals, status
):
    target = tmp_path / target
    monkeypatch.setattr(run, "NetworkRenderer", after(9, once_finished(target, kill(*signals))))
    ended, _, err = call(monkeypatch, capsys, *arguments(folder, source, target))
    assert ended == status
    assert "--resume goes on" in err
    assert ("stopping when this segment is finished" in err) == (signal.SIGINT in signals)
    space = workspace_path(target)
    assert [path.name for path in tmp_path.iterdir()] == [space.name]
    finished = sorted(p.stem for p in space.iterdir() if p.stem.isdigit())
    assert finished == (["000000", "000001"] if signals == (signal.SIGINT,) else ["000000"])
    assert not list(space.glob("partial*"))
    monkeypatch.undo()
    ended, _, err = call(monkeypatch, capsys, *arguments(folder, source, target, "--resume"))
    assert ended == 0, err
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert same_pictures(decoded(target), uninterrupted[source])


@pytest.mark.slow
def test_signal_before_a_segment_is_finished_leaves_nothing(monkeypatch, capsys, tmp_path, folder):
    monkeypatch.setattr(run, "NetworkRenderer", after(2, kill(signal.SIGTERM)))
    ended, _, _ = call(monkeypatch, capsys, *arguments(folder, "in.mp4", tmp_path / "out.mkv"))
    assert ended == 143
    assert not list(tmp_path.iterdir())


def fail(error):
    def action():
        raise error

    return action


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), CASES)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("out of memory")])
def test_failures_midway_keep_finished_segments(
    monkeypatch, capsys, tmp_path, folder, uninterrupted, source, target, error
):
    target = tmp_path / target
    monkeypatch.setattr(run, "NetworkRenderer", after(13, once_finished(target, fail(error))))
    ended, _, err = call(monkeypatch, capsys, *arguments(folder, source, target))
    assert ended == 1
    assert str(error) in err
    assert "--resume goes on" in err
    assert not target.exists()
    monkeypatch.undo()
    assert call(monkeypatch, capsys, *arguments(folder, source, target, "--resume"))[0] == 0
    assert same_pictures(decoded(target), uninterrupted[source])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.mkv", "out.mp4"])
def test_a_killed_process_can_be_resumed(monkeypatch, capsys, tmp_path, folder, uninterrupted, name):
    """Killed at any time: what lies there is finished segments, and files that the next run removes."""
    target = tmp_path / name
    segment = workspace_path(target) / f"000000{target.suffix}"
    command = [
        sys.executable,
        "-m",
        "stif_rt.cli",
        *map(str, arguments(folder, "in.mp4", target, "--progress", "json")),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not segment.exists():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    if not target.exists():  # it had not been faster
        assert segment.exists()
        assert call(monkeypatch, capsys, *arguments(folder, "in.mp4", target, "--resume"))[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if target.suffix == ".mkv":
        assert same_pictures(decoded(target), uninterrupted["in.mp4"])
    else:
        call(monkeypatch, capsys, *arguments(folder, "in.mp4", tmp_path / "whole.mp4"))
        assert same_pictures(decoded(target), decoded(tmp_path / "whole.mp4"), X264_STEPS)


@pytest.mark.slow
def test_a_lost_segment_is_rendered_again(monkeypatch, capsys, tmp_path, folder, uninterrupted):
    target = tmp_path / "out.mkv"
    monkeypatch.setattr(run, "NetworkRenderer", after(17, once_finished(target, kill(signal.SIGTERM), segment=1)))
    call(monkeypatch, capsys, *arguments(folder, "in.mp4", target))
    (workspace_path(target) / "000001.mkv").unlink()
    monkeypatch.undo()
    assert call(monkeypatch, capsys, *arguments(folder, "in.mp4", target, "--resume"))[0] == 0
    assert same_pictures(decoded(target), uninterrupted["in.mp4"])


@pytest.mark.slow
def test_warnings_of_the_first_run_are_not_forgotten(monkeypatch, capsys, tmp_path, folder):
    """The second run does not read again what they are about."""
    original = Job.pairs

    def pairs(self, first=0, stop=None):
        self.reader.notices.add("damaged", f"from frame {first}")
        return original(self, first, stop)

    monkeypatch.setattr(Job, "pairs", pairs)
    with monkeypatch.context() as patch:
        target = tmp_path / "out.mkv"
        patch.setattr(run, "NetworkRenderer", after(12, once_finished(target, kill(signal.SIGTERM))))
        ended, _, err = call(patch, capsys, *arguments(folder, "in.mp4", target))
    assert (ended, err.count("warning: from frame 0: damaged")) == (143, 1)
    ended, _, err = call(monkeypatch, capsys, *arguments(folder, "in.mp4", tmp_path / "out.mkv", "--resume"))
    assert (ended, err.count(" and 1 more: damaged")) == (3, 1), err


@pytest.fixture
def stopped(monkeypatch, capsys, tmp_path, folder):
    """A target of which a first segment is finished."""
    target = tmp_path / "out.mkv"
    with monkeypatch.context() as patch:
        patch.setattr(run, "NetworkRenderer", after(7, once_finished(target, kill(signal.SIGTERM))))
        call(patch, capsys, *arguments(folder, "in.mp4", target))
    return target


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "holds 1 finished segments of an earlier run: give --resume"),
        (["--resume", "--crf", 30], "cannot be resumed: crf was None, is 30"),
        (["--resume", "--no-audio"], "cannot be resumed: audio was True, is False"),
    ],
)
def test_work_of_another_run_is_not_mixed_in(monkeypatch, capsys, folder, stopped, more, message):
    status, _, err = call(monkeypatch, capsys, *arguments(folder, "in.mp4", stopped, *more))
    assert status == 1
    assert message in err
    assert (workspace_path(stopped) / "000000.mkv").exists()


def test_overwrite_starts_anew(monkeypatch, capsys, folder, stopped, uninterrupted):
    status, _, err = call(monkeypatch, capsys, *arguments(folder, "in.mp4", stopped, "--overwrite"))
    assert status == 0, err
    assert same_pictures(decoded(stopped), uninterrupted["in.mp4"])


def test_result_of_another_process_is_not_replaced(monkeypatch, capsys, tmp_path, folder):
    """One that appears while this run renders."""
    target = tmp_path / "out.mkv"
    monkeypatch.setattr(run, "NetworkRenderer", after(9, lambda: target.write_text("theirs")))
    status, _, err = call(monkeypatch, capsys, *arguments(folder, "in.mp4", target))
    assert status == 1
    assert "has appeared meanwhile" in err
    assert target.read_text() == "theirs"


@pytest.mark.slow
def test_two_runs_to_one_target(monkeypatch, capsys, tmp_path, folder, uninterrupted):
    target = tmp_path / "out.mkv"
    hold, held = threading.Event(), threading.Event()

    def wait():
        held.set()
        hold.wait(20)

    renderer = after(3, wait)
    monkeypatch.setattr(run, "NetworkRenderer", renderer)
    from stif_rt.video.run import render_video

    options = {"scale": 1.5, "time_scale": 3, "weights": folder / "w.safetensors", "segment_frames": SEGMENT}
    options["codec"] = "ffv1"
    first = threading.Thread(target=render_video, args=(folder / "in.mp4", target), kwargs=options)
    first.start()
    assert held.wait(20)
    status, _, err = call(monkeypatch, capsys, *arguments(folder, "in.mp4", target))
    hold.set()
    first.join()
    assert status == 1
    assert "another process is working on" in err
    assert same_pictures(decoded(target), uninterrupted["in.mp4"])


@pytest.mark.slow
@pytest.mark.parametrize("closing", ["2>&-", "2>/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize("form", ["plain"])
def test_standard_error_that_is_gone_ends_nothing(tmp_path, folder, uninterrupted, closing, form):
    target = tmp_path / "out.mkv"
    words = [sys.executable, "-m", "stif_rt.cli", *map(str, arguments(folder, "in.mp4", target, "--progress", form))]
    command = f"exec {' '.join(words)} {closing}"
    assert subprocess.run(command, shell=True).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]
    assert same_pictures(decoded(target), uninterrupted["in.mp4"])


def test_segments_reach_the_disk_before_they_count(monkeypatch, tmp_path):
    """The order that a power cut must not change: contents, then name."""
    calls = []
    monkeypatch.setattr(workspace.os, "fsync", lambda descriptor: calls.append("fsync"))
    with workspace.open_workspace(tmp_path / "out.mkv", ".mkv") as space:
        with space.writing(0) as path:
            path.write_bytes(b"x")
            assert not space.finished()
        calls.append(f"finished {space.finished()}")
    assert calls == ["fsync", "finished [0]"]
