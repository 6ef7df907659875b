"""``stif-rt render`` as people and programs use it."""

import io
import json
import shlex
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.command_line import call, read
from helpers.videos import picture, write_images, write_video
from typer.testing import CliRunner

from stif_rt import cli
from stif_rt.cli import options
from stif_rt.engines import ENGINES
from stif_rt.model.checkpoints import save_model
from stif_rt.ops.implicit import BACKENDS
from stif_rt.video import estimate
from stif_rt.video.reader import read_image
from stif_rt.video.y4m import PipeReader, PipeWriter

SIZE = (36, 64)


@pytest.fixture
def folder(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model, tmp_path / "w.safetensors")
    write_video(tmp_path / "in.mp4", [picture(n, SIZE) for n in range(6)], Fraction(10), sound=True)
    write_images(tmp_path / "images", [picture(n, SIZE) for n in range(6)])
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch, capfd):
    def run(*arguments, status=0):
        ended, out, err = call(monkeypatch, capfd, "render", *arguments, "--weights", "w.safetensors")
        assert ended == status, err
        return out, err

    return run


def names(folder):
    return {path.name for path in folder.iterdir()} - {"in.mp4", "images", "w.safetensors"}


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_rates_that_the_container_cannot_hold_are_refused_before_anything_is_rendered(run, folder, suffix):
    _, err = run("in.mp4", f"out{suffix}", "-s", 1, "-r", 1200, status=1)
    assert "holds at most 1000 frames per second" in err
    assert not names(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "frames", "rate", "size"),
    [
        (["-s", 2, "-m", 2], 12, 20, (128, 72)),
        (["-s", 1, "-r", 25], 15, 25, (64, 36)),
        (["--width", 32], 6, 10, (32, 18)),
        (["-w", 32, "--height", -1], 6, 10, (32, 18)),
        (["--height", 18], 6, 10, (32, 18)),
        (["-w", 40, "--height", 40], 6, 10, (40, 40)),
        (["--size", "40x40", "--fit", "cover"], 6, 10, (40, 40)),
        (["-s", 1, "--slow-motion", 3], 18, 10, (64, 36)),
        (["-s", 1, "--time-scale", 4, "--fps", 24], 24, 24, (64, 36)),
        (["-s", 1, "--start", 0.2, "--end", "0:00.4"], 2, 10, (64, 36)),
        (["-s", 2, "--region", "10,4,20,12"], 6, 10, (20, 12)),
        (["-s", 1, "-c", "ffv1"], 6, 10, (64, 36)),
        (["-s", 1, "-e", "g=1", "-e", "bf=0", "--preset", "ultrafast", "--crf", 30], 6, 10, (64, 36)),
    ],
)
def test_short_and_long_options(run, folder, arguments, frames, rate, size):
    _, err = run("-i", "in.mp4", "-o", "out.mkv", *arguments)
    reader, shown = read(folder / "out.mkv")
    assert (len(shown), reader.rate, (reader.width, reader.height)) == (frames, rate, size)
    assert f"wrote {frames} frames to out.mkv: {size[0]}x{size[1]} at {rate}/s" in err
    assert names(folder) == {"out.mkv"}


@pytest.mark.slow
def test_slow_motion_stretches_the_sound(run, folder):
    run("in.mp4", "slow.mkv", "--scale", 1, "--slow-motion", 4)
    run("in.mp4", "silent.mkv", "--scale", 1, "--slow-motion", 4, "--slow-audio", "drop", status=0)
    with av.open("slow.mkv") as slow, av.open("silent.mkv") as silent:
        samples = sum(frame.samples for frame in slow.decode(audio=0))
        assert abs(samples / 48000 - 2.4) < 0.15
        assert not silent.streams.audio


@pytest.mark.slow
def test_a_region_is_that_part_of_the_whole(run, folder):
    run("images", "whole", "--scale", 2)
    run("images", "part", "--scale", 2, "--region", "10,4,21,13")
    whole, part = (read_image(folder / name / "frame_000003.png") for name in ("whole", "part"))
    assert np.abs(part.astype(int) - whole[4:17, 10:31]).max() <= 1


@pytest.mark.slow
def test_a_preview_is_one_picture_of_the_whole(run, folder):
    run("images", "whole", "--scale", 2, "--time-scale", 2)
    _, err = run("images", "detail.png", "--scale", 2, "--preview", Fraction(3, 2) / 24, "--region", "8,8,32,16")
    assert "wrote 1 frame to detail.png: 32x16" in err
    whole = read_image(folder / "whole" / "frame_000003.png")
    assert np.abs(read_image(folder / "detail.png").astype(int) - whole[8:24, 8:40]).max() <= 1
    run("images", "detail.png", "--preview", 0, status=1)
    run("images", "detail.mp4", "--preview", 0, status=1)
    run("images", "late.png", "--preview", 100, status=1)
    assert names(folder) == {"whole", "detail.png"}


def test_several_inputs_go_to_a_folder(run, folder):
    (folder / "in.mp4").rename(folder / "a.mp4")
    write_video(folder / "b.mkv", [picture(n, SIZE) for n in range(2)])
    (folder / "broken.mp4").write_text("text")
    _, err = run("a.mp4", "broken.mp4", "b.mkv", "images", "--output", "out", "--scale", 1, status=1)
    assert "error: broken.mp4: " in err
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.mp4", "b.mkv", "images"]
    (folder / "broken.mp4").unlink()
    write_video(folder / "broken.mp4", [picture(n, SIZE) for n in range(2)])
    _, err = run("a.mp4", "broken.mp4", "b.mkv", "images", "--output", "out", "--scale", 1, "--resume")
    assert err.count("is there already") == 3
    assert len(read(folder / "out" / "broken.mp4")[1]) == 2
    _, err = run("a.mp4", "b.mkv", "out.mp4", status=1)
    assert "2 inputs need a folder" in err


@pytest.mark.slow
@pytest.mark.parametrize("depth", [8, 10])
def test_y4m_through_pipes(folder, depth):
    """From a pipe to a pipe, at scale 1, pictures stay as they are."""
    with av.open(str(folder / "in.mp4")) as container:
        name = "yuv420p" if depth == 8 else "yuv420p10le"
        frames = [frame.reformat(format=name) for frame in container.decode(video=0)]
    planes = [
        b"".join(
            bytes(memoryview(p))[row * p.line_size :][: p.width * ((depth + 7) // 8)]
            for p in f.planes
            for row in range(p.height)
        )
        for f in frames
    ]
    kind = "420mpeg2" if depth == 8 else "420p10"
    head = f"YUV4MPEG2 W64 H36 F10:1 Ip A1:1 C{kind} XCOLORRANGE=LIMITED\n".encode()
    stream = head + b"".join(b"FRAME\n" + plane for plane in planes)
    command = [sys.executable, "-m", "stif_rt.cli", "render", "-", "-", "--scale", "1", "--weights", "w.safetensors"]
    done = subprocess.run(command, input=stream, capture_output=True, check=True)
    first, _, rest = done.stdout.partition(b"\n")
    assert first + b"\n" == head
    length = len(planes[0])
    returned = [rest[n * (length + 6) + 6 :][:length] for n in range(6)]
    assert len(rest) == 6 * (length + 6)
    kind = np.uint8 if depth == 8 else np.uint16
    for ours, theirs in zip(returned, planes, strict=True):
        a, b = (np.frombuffer(data, kind).astype(int) for data in (ours, theirs))
        assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize("missing", [0, 1, 100, 64 * 36 * 3 // 2 + 2])
def test_y4m_that_ends_early_or_is_none(tmp_path, missing):
    (tmp_path / "text").write_bytes(b"not a video")
    with pytest.raises(ValueError, match="is not YUV4MPEG2"):
        PipeReader(notices(), source=str(tmp_path / "text"))
    whole = io.BytesIO()
    write_y4m(whole, 3)
    (tmp_path / "short").write_bytes(whole.getvalue()[: len(whole.getvalue()) - missing])
    reader = PipeReader(notices(), source=str(tmp_path / "short"))
    assert (reader.width, reader.height, reader.rate) == (64, 36, 10)
    assert len(list(reader)) == (2 if missing else 3)
    message = ["standard input ends in the middle of a picture"] if missing else []
    assert [notice.text for notice in reader.notices] == message
    with pytest.raises(ValueError, match="once only"):
        list(reader)


def notices():
    from stif_rt.video.notices import Notices

    return Notices()


def write_y4m(stream, count):
    from stif_rt.video.colour import IDENTITY, Colour, from_image
    from stif_rt.video.encoding import choose_encoding

    encoding = choose_encoding(".mkv", Colour(IDENTITY), notices(), "rawvideo")
    writer = PipeWriter(stream, SIZE, Fraction(10), encoding)
    for n in range(count):
        writer.write(encoding.components(from_image(picture(n, SIZE))))


@pytest.mark.slow
def test_a_reader_of_the_pipe_that_goes_away(folder):
    words = f"{sys.executable} -m stif_rt.cli render in.mp4 - --scale 8 --weights w.safetensors | head -c 100 > part"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the program that reads standard output has ended" in done.stderr
    assert "Traceback" not in done.stderr


def events(err):
    return [json.loads(line) for line in err.replace("} {", "}\n{").splitlines()]


def test_json_for_programs(run, folder, monkeypatch):
    monkeypatch.setattr("stif_rt.cli.progress.JSON_EVERY", 0)
    (folder / "images" / "002.png").write_bytes(b"broken")
    _, err = run("images", "out.mkv", "--scale", 2, "--progress", "json", status=3)
    seen = events(err)
    assert [event["event"] for event in seen] == ["start", *["progress"] * 6, "warning", "finished"]
    assert seen[0] | {"total": 6} == {
        "event": "start", "input": "images", "output": "out.mkv", "width": 128, "height": 72, "fps": 24.0, "total": 6
    }  # fmt: skip
    assert [event["frames"] for event in seen[1:-2]] == list(range(1, 7))
    assert seen[-2]["places"] == ["002.png"]
    assert seen[-1]["frames"] == 6
    assert seen[-1]["warnings"] == 1
    _, err = run("nowhere.mp4", "new.mkv", "--progress", "json", status=1)
    assert events(err) == [{"event": "error", "message": "nowhere.mp4 does not exist"}]


def test_quiet_and_strict(run, folder):
    assert run("images", "a.mkv", "--quiet", "--scale", 1) == ("", "")
    (folder / "images" / "002.png").write_bytes(b"broken")
    _, err = run("images", "b.mkv", "--quiet", "--scale", 1, status=3)
    assert err == "warning: 002.png: the file cannot be read as an image; it is left out"
    _, err = run("images", "c.mkv", "--strict", "--scale", 1, status=1)
    assert "error: 002.png: the file cannot be read" in err
    assert names(folder) == {"a.mkv", "b.mkv"}


def test_dry_run_says_what_would_be_done(run, folder):
    _, err = run("in.mp4", "out.mp4", "--scale", 2, "--fps", 60, "--dry-run")
    assert "64x36 at 10/s -> 128x72 at 60/s" in err
    assert "out.mp4: 36 frames, 0.60 s long, libx264, yuv420p, about" in err
    assert not names(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("free", "status", "message"), [(10, 1, "left"), (3000, 3, "may need"), (10**9, 0, "wrote 6")])
def test_disk_space_is_checked_first(run, folder, monkeypatch, free, status, message):
    usage = estimate.shutil.disk_usage(folder)._replace(free=free)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: usage)
    _, err = run("in.mp4", "out.mp4", "--scale", 2, status=status)
    assert message in err
    assert names(folder) == (set() if status == 1 else {"out.mp4"})


@pytest.mark.slow
def test_a_picture_of_another_shape_is_said(run, folder):
    _, err = run("in.mp4", "out.mp4", "--size", "40x40")
    assert "40x40 (a picture of 40x22 with black bars)" in err
    _, err = run("in.mp4", "full.mp4", "--size", "40x40", "--fit", "stretch")
    assert "bars" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a [b] c.mp4", "12:30.mp4", "%d.mp4", "new\nline.mp4", "n" * 250 + ".mp4", "./-x.mp4"]
)
def test_any_name(run, folder, name):
    run("in.mp4", name, "--scale", 1)
    assert len(read(folder / name)[1]) == 6


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "give an input and an output"),
        (["in.mp4"], 2, "give an input and an output"),
        (["in.mp4", "out.mp4", "--input-fps", 12], 1, "--input-fps is for folders of images"),
        (["in.mp4", "out.mp4", "--fit", "squash"], 1, "--fit squash: there are contain, cover, stretch"),
        (["in.mp4", "out.mp4", "--region", "1,2,3"], 1, "--region 1,2,3: give X,Y,WIDTH,HEIGHT"),
        (["in.mp4", "out.mp4", "-w", 40, "--size", "40x40"], 1, "either --size or --width"),
        (["in.mp4", "out.mp4", "-w", 41], 1, "must be even"),
        (["in.mp4", "out.mp4", "--start", "soon"], 1, "--start soon: give seconds"),
        (["in.mp4", "out.mp4", "--start", 5], 1, "is not within the input"),
        (["in.mp4", "out.mp4", "--start", 0.4, "--end", 0.2], 1, "is not after"),
        (["in.mp4", "out.mp4", "-c", "h265"], 1, "no encoder 'h265'"),
        (["in.mp4", "out.mp4", "-c", "aac"], 1, "does not encode video"),
        (["in.mp4", "out.mp4", "-e", "nonsense"], 1, "-e nonsense: give KEY=VALUE"),
        (["in.mp4", "out.mp4", "-e", "nonsense=1"], 1, "libx264 has no option nonsense"),
        (["in.mp4", "out.mp4", "--preset", "warp"], 1, "it refuses one of "),
        (["in.mp4", "in.mp4/out.mp4"], 1, "is a file, not a folder"),
        (["in.mp4", "out.mp4", "--cuts", "nowhere.txt"], 1, "nowhere.txt"),
        (["in.mp4", "out.mp4", "--progress", "loud"], 1, "--progress loud"),
        (["in.mp4", "out.mp4", "--slow-audio", "loud"], 1, "--slow-audio loud"),
        (["in.mp4", "out.mp4", "--crf", 99], 2, "--crf"),
        (["in.mp4", "out.mp4", "--sclae", 2], 2, "--sclae"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(run, folder, arguments, status, message):
    _, err = run(*arguments, status=status)
    assert message in err.replace(" │ │ ", " ")
    assert "Traceback" not in err
    assert not names(folder)


WITHOUT_TORCH = """
import sys
from stif_rt import cli
sys.argv = ["stif-rt", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as end:
    heavy = {"torch", "numpy", "av"} & sys.modules.keys()
    sys.exit(f"imported {heavy}" if heavy else f"status {end.code}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "render"),
        (["--version"], 0, "stif-rt "),
        (["render", "--help"], 0, "Exit status"),
        (["plan", "--help"], 0, "--shards"),
        (["join", "--help"], 0, "shards are rendered"),
        (["render", "--sclae"], 2, "--sclae"),
        (["render"], 2, "give an input"),
        (["rendr"], 2, "rendr"),
        (["--show-completion"], 0, "complete"),
    ],
)
def test_quick_answers_do_not_import_pytorch(arguments, status, message):
    command = shlex.join([sys.executable, "-c", WITHOUT_TORCH, *arguments])
    # from bash, whatever shell the tests were started from: completion is that of the shell above it
    done = subprocess.run(["bash", "-c", f"{command}\nexit $?"], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"status {status}"
    assert message in done.stdout + done.stderr


def test_completion_offers_commands_and_options():
    environment = {"_STIF_RT_COMPLETE": "complete_bash", "COMP_WORDS": "stif-rt rend", "COMP_CWORD": "1"}
    assert CliRunner().invoke(cli.app, env=environment, prog_name="stif-rt").output.split() == ["render"]
    environment = {"_STIF_RT_COMPLETE": "complete_bash", "COMP_WORDS": "stif-rt render --slow", "COMP_CWORD": "2"}
    offered = CliRunner().invoke(cli.app, env=environment, prog_name="stif-rt").output.split()
    assert offered == ["--slow-motion", "--slow-audio"]


def test_help_names_what_there_is():
    assert tuple(BACKENDS) == options.BACKENDS
    assert tuple(ENGINES) == options.ENGINES
