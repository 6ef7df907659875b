import os
import platform
import re
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
from stif_rt.engines import torch_compiled
from stif_rt.model.checkpoints import save_model
from stif_rt.ops import native
from stif_rt.ops.implicit import triton_backend
from stif_rt.runtime import Runtime
from stif_rt.video.reader import read_image


@pytest.fixture
def weights(tiny_model, tmp_path):
    (tmp_path / "weights").mkdir()
    save_model(tiny_model, tmp_path / "weights" / "w.safetensors")
    return str(tmp_path / "weights" / "w.safetensors")


@pytest.mark.slow
def test_video_with_sound(monkeypatch, capsys, tmp_path, weights):
    source = write_video(tmp_path / "in.mp4", [picture(n) for n in range(8)], Fraction(10), sound=True)
    target = tmp_path / "out.mp4"
    status, _, err = call(
        monkeypatch, capsys, "render", source, target, "--weights", weights, "--scale", 2, "--time-scale", 4
    )
    assert status == 0, err
    assert "wrote 32 frames" in err
    reader, frames = read(target)
    assert (reader.width, reader.height, reader.rate) == (64, 36, 40)
    assert [f.start for f in frames] == [Fraction(n, 40) for n in range(32)]
    with av.open(str(source)) as a, av.open(str(target)) as b:
        packets = [
            [(float(p.pts * p.time_base), bytes(p)) for p in f.demux(audio=0) if p.pts is not None] for f in (a, b)
        ]
        assert [data for _, data in packets[0]] == [data for _, data in packets[1]]
        np.testing.assert_allclose([t for t, _ in packets[0]], [t for t, _ in packets[1]], atol=1e-3)
        assert abs(a.duration - b.duration) / av.time_base < 0.1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "weights"]


@pytest.mark.slow
def test_images_equal_the_runtime(monkeypatch, capsys, tmp_path, weights):
    pictures = [picture(n) for n in range(3)]
    source = write_images(tmp_path / "in", pictures)
    status, _, err = call(
        monkeypatch,
        capsys,
        "render",
        source,
        tmp_path / "out",
        "--weights",
        weights,
        "--size",
        "45x31",
        "--fit",
        "stretch",
        "--time-scale",
        2,
    )
    assert status == 0, err
    runtime = Runtime.load(weights)
    expected = []
    for n in range(2):
        runtime.encode(pictures[n], pictures[n + 1])
        expected += list(runtime.render([0, 0.5], size=(31, 45), output="uint8"))
    expected += [runtime.render(1, size=(31, 45), output="uint8")] * 2
    actual = [read_image(path) for path in sorted((tmp_path / "out").iterdir())]
    assert len(actual) == 6
    for a, b in zip(actual, expected, strict=True):
        assert np.array_equal(a, b.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        ("60000/1001", Fraction(60000, 1001)),
        ("24", Fraction(24)),
        ("59.94005994005994", Fraction(60000, 1001)),
        ("7.5", Fraction(15, 2)),
    ],
)
def test_any_rate(monkeypatch, capsys, tmp_path, weights, fps, rate):
    source = write_video(tmp_path / "in.mp4", [picture(n) for n in range(4)], Fraction(30000, 1001))
    status, _, err = call(
        monkeypatch, capsys, "render", source, tmp_path / "out.mkv", "--weights", weights, "--scale", 1, "--fps", fps
    )
    assert status == 0, err
    reader, frames = read(tmp_path / "out.mkv")
    assert len(frames) == -(-Fraction(4 * 1001, 30000) * rate // 1)
    if int(av.__version__.split(".")[0]) >= 18:
        assert abs(reader.rate - rate) < Fraction(1, 100)
    else:  # the newest for Python 3.10 cannot write the rate of joined streams: whole milliseconds are what there is
        assert abs(1 / reader.rate - 1 / rate) < Fraction(1, 1000)


@pytest.mark.slow
def test_odd_sizes_become_even_in_video_files(monkeypatch, capsys, tmp_path, weights):
    source = write_images(tmp_path / "in", [picture(n, (9, 15)) for n in range(2)])
    status, _, err = call(monkeypatch, capsys, "render", source, tmp_path / "o.mp4", "--weights", weights, "--scale", 3)
    assert status == 0, err
    assert read(tmp_path / "o.mp4")[1][0].image.shape == (28, 44, 3)


def test_one_image(monkeypatch, capsys, tmp_path, weights):
    source = write_images(tmp_path / "in", [picture(0)])
    status, _, err = call(monkeypatch, capsys, "render", source, tmp_path / "out", "--weights", weights, "--scale", 1.5)
    assert status == 0, err
    assert read_image(tmp_path / "out" / "frame_000000.png").shape == (27, 48, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4", "out.mp4"], "nowhere.mp4 does not exist"),
        (["text.mp4", "out.mp4"], "cannot be read as a video"),
        (["in.mp4", "in.mp4"], "input itself"),
        (["in.mp4", "out.xyz"], "cannot write .xyz"),
        (["none [rarbg].mp4", "out.mp4"], "none [rarbg].mp4 does not exist"),
        (["in.mp4", "out.mp4", "--scale", "1e9"], "from 1x1"),
        (["in.mp4", "out.mp4", "--fps", "1e12"], "frames per second"),
        (["in.mp4", "taken.mp4"], "--overwrite"),
        (["in.mp4", "none/out.mp4"], "does not exist"),
        (["in.mp4", "out.mp4", "--scale", "0"], "positive"),
        (["in.mp4", "out.mp4", "--size", "1920"], "WIDTHxHEIGHT"),
        (["in.mp4", "out.mp4", "--size", "33x20"], "even"),
        (["in.mp4", "out.mp4", "--size", "32x20", "--scale", "2"], "not both"),
        (["in.mp4", "out.mp4", "--fps", "fast"], "--fps fast"),
        (["in.mp4", "out.mp4", "--fps", "1/0"], "--fps 1/0"),
        (["in.mp4", "out.mp4", "--time-scale", "-1"], "positive"),
        (["in.mp4", "out.mp4", "--fps", "60", "--time-scale", "2", "--slow-motion", "3"], "leave out one of"),
        (["in.mp4", "out.mp4", "--weights", "nothing.pth"], "nothing.pth do not exist"),
        (["in.mp4", "out.mp4", "--weights", "text.mp4"], "plain tensors"),
        (["in.mp4", "out.mp4", "--kernels", "magic"], "magic"),
        (["in.mp4", "out.mp4", "--encoder", "magic"], "magic"),
        (["in.mp4", "out.mp4", "--dtype", "int4"], "int4"),
        (["in.mp4", "out.mp4", "--device", "toaster"], "toaster"),
    ],
)
def test_mistakes_are_explained(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "in.mp4", [picture(n) for n in range(2)])
    (tmp_path / "text.mp4").write_text("text")
    (tmp_path / "taken.mp4").write_text("old")
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    status, _, err = call(monkeypatch, capsys, "render", *arguments)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_damage_midway_is_said_and_costs_its_place_only(monkeypatch, capsys, tmp_path, weights):
    source = write_images(tmp_path / "in", [picture(0), picture(1)])
    (source / "zzz.png").write_bytes(b"broken")
    status, _, err = call(
        monkeypatch, capsys, "render", source, tmp_path / "out.mp4", "--weights", weights, "--scale", 1
    )
    assert status == 3, err
    assert "zzz.png: the file cannot be read as an image; it is left out" in err
    assert len(read(tmp_path / "out.mp4")[1]) == 3


def test_sound_that_does_not_fit_is_encoded_anew(monkeypatch, capsys, tmp_path, weights):
    source = write_video(tmp_path / "in.mp4", [picture(n) for n in range(2)], sound=True)
    status, _, err = call(
        monkeypatch, capsys, "render", source, tmp_path / "out.webm", "--weights", weights, "--scale", 1
    )
    assert status == 3, err
    assert "the sound (aac) cannot be stored in .webm as it is; it is encoded as libopus" in err
    with av.open(str(tmp_path / "out.webm")) as file:
        assert [stream.codec_context.codec.canonical_name for stream in file.streams] == ["vp9", "opus"]


def test_info_lists_everything(monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "info")
    assert status == 0
    for word in ("stif-rt", "torch", "CPU", "encoder torch", "kernels reference", "bfloat16"):
        assert word in out


def test_info_says_what_auto_takes_and_groups_what_cannot_run(monkeypatch, capsys):
    monkeypatch.setattr(torch_compiled, "unavailable_reason", lambda device, dtype: "it has no compiler today")
    monkeypatch.setattr(triton_backend, "unavailable_reason", lambda *_: "it has no compiler today")
    monkeypatch.setattr(native, "load_library", lambda: "it was not built")
    runtime = Runtime.load()
    status, out, _ = call(monkeypatch, capsys, "info")
    out = " ".join(out.split())
    dtype = str(runtime.dtype).removeprefix("torch.")
    assert (status, f"auto takes: device {runtime.device}, dtype {dtype}, encoder torch, kernels" in out) == (0, True)
    assert out.count("it has no compiler today") == 1
    assert re.search(r"encoder compiled on cpu; [^:]*kernels triton on cpu[^:]*: it has no compiler today", out)
    assert "Native CPU kernels: no, it was not built" in out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["render", "--help"], ["train", "--help"], ["eval", "--help"], ["info", "--help"]]
)
def test_help(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.skipif(os.name != "posix", reason="only POSIX deletes a folder that is in use")
def test_a_deleted_current_folder_is_said(monkeypatch, capsys, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, _, err = call(monkeypatch, capsys, "info")
    assert status == 1
    assert err.strip() == "error: the current folder has been deleted; change to another one"


FAULTS = """
import resource
from stif_rt.cli import keep_freed_memory
done = keep_freed_memory()
for n in range(20):
    if n == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (40 << 20)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("variable", [None, "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_memory_that_is_freed_is_kept(variable):
    """40 MiB, freed and taken again, are not cleared by the system again; unless the user has said how memory goes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC"))}
    environment |= {"MALLOC_ARENA_MAX": "4"} if variable == "MALLOC_ARENA_MAX" else {}
    environment |= {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"} if variable == "GLIBC_TUNABLES" else {}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    assert kept == str(variable is None)
    if variable is None:
        assert int(faults) < 1000
    elif variable == "GLIBC_TUNABLES":
        assert int(faults) > 1000


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "a count", "a policy"],
)
def test_idle_threads_sleep_soon(given, expected):
    """Before PyTorch is loaded, and unless the user has said how threads wait."""
    code = "import os, sys; from stif_rt import cli; cli.let_threads_sleep(); "
    code += "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_WAIT"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(expected), "False"]
