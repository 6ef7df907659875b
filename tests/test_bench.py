"""Benchmarks: what they measure is what they say, and no failure of a method ends a run."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.command_line import call

from benchmarks import figure3, growth, measure
from benchmarks.interface import Setup, Unsupported
from benchmarks.measure import Line, Results, free_memory, survivable
from benchmarks.methods import METHODS
from stif_rt import speed as speed_module
from stif_rt.cli import bench
from stif_rt.ops.implicit import BACKENDS
from stif_rt.runtime import Runtime, choose_dtype
from stif_rt.timing import time_steps

CPU = torch.device("cpu")
SIZE = (8, 12)
FRAMES = torch.rand(1, 2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def methods():
    return measure.Loaded(CPU, False, [])


def frames(methods, name, time_scale, size=(32, 48)):
    method = methods(Line(name, "float32"))
    with torch.inference_mode():
        return [frame.reshape(3, *size) for frame in method.frames(method.encode(FRAMES), time_scale, size)]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_all_frames_of_a_pair(methods, name):
    made = frames(methods, name, 4)
    assert len(made) == 4
    assert all(torch.isfinite(frame).all() for frame in made)
    assert len({frame.sum().item() for frame in made}) == 4


@pytest.mark.slow
def test_runtime_and_plain_model_make_the_same_frames(methods):
    for fast, plain in zip(frames(methods, "stif-rt", 3), frames(methods, "stif", 3), strict=True):
        torch.testing.assert_close(fast, plain.clamp(0, 1), atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.inference_mode()
def test_peers_make_the_frames_that_are_asked_for(methods):
    zooming, tmnet, both = (methods(Line(name, "float32")) for name in ("zooming_slowmo", "tmnet", "super_slomo+edvr"))
    torch.testing.assert_close(torch.stack(frames(methods, "zooming_slowmo", 2)), zooming.network(FRAMES)[0, :2])

    times = torch.tensor([[0.25, 0.5, 0.75]])
    torch.testing.assert_close(torch.stack(frames(methods, "tmnet", 4)), tmnet.network(FRAMES, times)[0, :4])

    padded = torch.nn.functional.pad(FRAMES[0], (0, 20, 0, 24), mode="replicate")[None]
    middle = both.interpolation.network(padded, [0.5])[:, 0, :, :8, :12].clamp(0, 1)
    first, second = FRAMES.unbind(1)
    window = torch.stack((*[first] * 4, middle, second, second), 1)
    torch.testing.assert_close(
        frames(methods, "super_slomo+edvr", 2)[0], both.enlarger.network(window)[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.slow
def test_what_a_method_cannot_do_is_said(methods, monkeypatch):
    with pytest.raises(Unsupported, match="power of two"):
        frames(methods, "zooming_slowmo", 3)
    with pytest.raises(Unsupported, match="4 times only"):
        frames(methods, "tmnet", 2, (24, 36))
    monkeypatch.setattr(BACKENDS["reference"], "unavailable_reason", lambda *_: "no such unit")
    with pytest.raises(Unsupported, match="cannot run: no such unit"):
        METHODS["stif-rt"][1](Setup(CPU, kernels="reference"))


def test_laps_are_the_time_of_each_step():
    actual = time_steps((time.sleep(seconds) for seconds in (0.01, 0.05)), CPU)
    assert len(actual) == 2
    assert actual[0] >= 0.01
    assert actual[1] >= 0.05


def run(folder, *options):
    figure3.app(["--output", str(folder), "--size", "12x8", "--device", "cpu", *options], standalone_mode=False)
    return json.loads((folder / "figure3.json").read_text())


@pytest.fixture
def light(monkeypatch):
    """Methods without networks, so that what surrounds them is tested."""

    class Fails(METHODS["bicubic"][1]):
        def frames(self, pair, time_scale, size):
            if time_scale == 2:
                raise Unsupported("two frames")
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    class Broken(METHODS["bicubic"][1]):
        def frames(self, pair, time_scale, size):
            raise RuntimeError("a mistake")

    bicubic = METHODS["bicubic"][1]
    for name, method in (("stif-rt", bicubic), ("stif", bicubic), ("tmnet", Fails), ("zooming_slowmo", Broken)):
        monkeypatch.setitem(METHODS, name, (METHODS[name][0], method))


CHOICE = ("--method", "stif-rt", "--method", "bicubic", "--method", "tmnet", "--time-scale", "2", "--time-scale", "5")


@pytest.mark.slow
def test_figure3_writes_everything_and_marks_failures(light, tmp_path):
    content = run(tmp_path, *CHOICE, "--rounds", "2")
    made = [(s["method"], s["time_scale"], s["round"]) for s in content["samples"] if "error" not in s]
    assert sorted(made) == [(m, n, r) for m in ("bicubic", "stif-rt") for n in (2, 5) for r in (0, 1)]
    assert all(len(s["frames"]) == s["time_scale"] for s in content["samples"] if "error" not in s)
    failed = {s["time_scale"]: s["error"] for s in content["samples"] if "error" in s}
    assert failed == {2: "not supported: two frames", 5: "out of memory"}

    assert {path.name for path in tmp_path.iterdir()} == {
        f"figure3.{kind}" for kind in ("json", "csv", "md", "png", "svg")
    }
    with (tmp_path / "figure3.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["samples"])
    text = (tmp_path / "figure3.md").read_text()
    assert "| TMNet, float32 | not supported | out of memory |" in text
    assert "12x8 to 48x32" in text
    assert "11,312,698" in text
    assert "Median (and smallest to largest) of 2 samples." in text


@pytest.mark.slow
def test_figure3_says_that_it_has_one_sample(light, tmp_path, capsys):
    """Where the time does not suffice for more."""
    choice = ("--method", "bicubic", "--time-scale", "2")
    run(tmp_path, *choice, "--rounds", "3", "--seconds", "0")
    said = capsys.readouterr().err
    assert "stopped after 1 of 3 rounds, since the next one would end after 0 s; one sample of each point" in said
    assert (
        "One sample of each point, so that it is not known how far they scatter."
        in (tmp_path / "figure3.md").read_text()
    )
    run(tmp_path, *choice, "--rounds", "2", "--seconds", "60")
    assert "Median (and smallest to largest) of 2 samples." in (tmp_path / "figure3.md").read_text()
    assert "stopped" not in capsys.readouterr().err


@pytest.mark.slow
def test_figure3_takes_any_two_stages(tmp_path):
    content = run(tmp_path, "--method", "bicubic", "--method", "blend+bicubic", "--time-scale", "3", "--rounds", "1")
    assert {s["method"]: len(s["frames"]) for s in content["samples"]} == {"bicubic": 3, "blend+bicubic": 3}
    assert "| blend + bicubic, float32 |" in (tmp_path / "figure3.md").read_text()
    with pytest.raises(ValueError, match="unknown method 'blend\\+espcn'"):
        run(tmp_path, "--method", "blend+espcn")


@pytest.mark.slow
def test_figure3_goes_on_where_it_ended(light, tmp_path):
    before = run(tmp_path, *CHOICE, "--rounds", "1")["samples"]
    after = run(tmp_path, *CHOICE, "--rounds", "2", "--method", "stif")["samples"]
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert len({json.dumps([s[k] for k in ("method", "time_scale", "round")]) for s in after}) == len(after)
    with pytest.raises(ValueError, match=r"another kind.*--fresh"):
        run(tmp_path, *CHOICE, "--compile")
    assert len(run(tmp_path, "--method", "bicubic", "--time-scale", "2", "--rounds", "1", "--fresh")["samples"]) == 1


def test_a_mistake_is_not_a_mark(light, tmp_path):
    with pytest.raises(RuntimeError, match="a mistake"):
        run(tmp_path, "--method", "zooming_slowmo", "--time-scale", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "10x8"), "multiples of 4"),
        (("--method", "dain"), r"unknown method 'dain'"),
        (("--dtype", "int8"), r"unknown dtype 'int8'"),
        (("--weights", "tmnet=nowhere.pth"), r"NETWORK=FILE"),
    ],
)
def test_unusable_options_are_explained(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *options)


@pytest.mark.slow
def test_growth_measures_time_and_memory(light, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "MEGAPIXELS", [0.1, 0.4])
    growth.app(["--output", str(tmp_path), "--size", "12x8", "--quick", "--device", "cpu"], standalone_mode=False)
    samples = json.loads((tmp_path / "growth.json").read_text())["samples"]
    assert len(samples) == 2 * (2 + 2)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".md", ".png", ".svg"}
    assert "STIF, plain PyTorch" in (tmp_path / "growth.md").read_text()


def test_peak_memory_is_what_was_needed_at_most():
    peak = measure.PeakMemory(CPU)
    torch.ones(30 << 20)  # 120 MiB, freed at once
    torch.ones(5 << 20)
    assert 110 << 20 < peak.bytes() < 200 << 20


def test_too_large_an_allocation_is_survived():
    beyond = free_memory() + (4 << 30)
    with survivable(memory_limit=True) as failure:
        torch.ones(beyond, dtype=torch.uint8)
    assert failure == {"error": "out of memory"}
    assert torch.ones(1 << 20).sum() == 1 << 20
    with pytest.raises(RuntimeError, match="a mistake"), survivable(memory_limit=True):
        raise RuntimeError("a mistake")


def test_lines_name_backends_once():
    lines = measure.plan(["stif-rt", "bicubic"], ["float32"], ["auto", "reference", "auto"], CPU)
    assert [line.kernels for line in lines if line.method == "stif-rt"] == list(
        dict.fromkeys((speed_module.backend_of("auto", Runtime.load().config, CPU, torch.float32), "reference"))
    )
    assert [line.kernels for line in lines if line.method == "bicubic"] == [""]
    assert set(BACKENDS) >= {line.kernels for line in lines} - {""}


def test_results_are_never_half_written(light, tmp_path, monkeypatch):
    results = Results(tmp_path, "figure3", {}, CPU, False)
    results.measure_sample(lambda: {"encode": 1.0, "frames": [1.0]}, Line("bicubic", "float32"), time_scale=1, round=0)
    before = results.path.read_text()
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.measure_sample(
            lambda: {"encode": 1.0, "frames": [1.0]}, Line("bicubic", "float32"), time_scale=1, round=1
        )
    assert results.path.read_text() == before


def test_speed_at_other_sizes():
    speed = speed_module.Speed("stif-s", "reference", "float32", (10, 20), (40, 80), encode=1.0, render=0.5)
    assert speed.frames_per_second(8) == pytest.approx(8 / 5)
    assert speed.megapixels_per_second(8) == pytest.approx(8 / 5 * 3200 / 1e6)
    larger = speed.scaled_to((20, 40), (40, 160))
    assert (larger.encode, larger.render) == (4.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "auto"])
def test_quick(monkeypatch, capsys, dtype):
    monkeypatch.setattr(speed_module, "SECONDS_PER_MODEL", 0)
    options = ["--size", "24x16", "--scale", "2", "--device", "cpu"] + (["--dtype", dtype] if dtype else [])
    status, out, err = call(monkeypatch, capsys, "bench", "quick", *options)
    assert status == 0, err
    fastest = str(choose_dtype("auto", CPU)).removeprefix("torch.")
    assert f"24x16 to 48x32, 8 times the frames, {fastest}" in out
    for name in ("│ stif-s ", "│ stif ", "frames/s"):
        assert name in out


def test_quick_says_what_a_size_looks_like(monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, "bench", "quick", "--size", "24")
    assert status == 1
    assert "--size 24: give WIDTHxHEIGHT" in err


@pytest.mark.slow
def test_figures_need_the_checkout(monkeypatch, capsys, tmp_path, light):
    options = (
        "--method",
        "bicubic",
        "--size",
        "12x8",
        "--time-scale",
        "2",
        "--device",
        "cpu",
        "--output",
        tmp_path / "o",
    )
    status, _, err = call(monkeypatch, capsys, "bench", "figure3", *options)
    assert status == 0, err
    assert (tmp_path / "o" / "figure3.md").exists()
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "stif_rt" / "cli" / "bench.py"))
    status, _, err = call(monkeypatch, capsys, "bench", "figure3", *options)
    assert status == 1
    assert "source code" in err


@pytest.mark.slow
def test_figure3_runs_as_a_module():
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.figure3", "--output", "unused", "--size", "5x5"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "multiples of 4" in done.stderr
    assert "Traceback" not in done.stderr
