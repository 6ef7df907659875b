import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import call
from helpers.videos import picture, write_images, write_video
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from stif_rt.cli.evaluate import show_means
from stif_rt.data import datasets
from stif_rt.data.clips import Clip
from stif_rt.data.datasets import DATASETS, load_dataset
from stif_rt.data.resize import degrade
from stif_rt.evaluation import tables
from stif_rt.evaluation.methods import BASELINE, Window, bicubic, external, predictions, runtime_method
from stif_rt.evaluation.metrics import Score, luma_psnr, psnr, ssim
from stif_rt.evaluation.protocol import Result, evaluate, render, summarise, windows
from stif_rt.evaluation.run import Plan, run_evaluation
from stif_rt.evaluation.validation import append_points, validate
from stif_rt.model.checkpoints import save_model
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime
from stif_rt.video.reader import read_image
from stif_rt.video.writer import write_png


def noise(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).random(shape)).float()


def test_psnr_by_hand():
    assert psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)) == pytest.approx(20)
    half = torch.zeros(3, 4, 4)
    half[:, :2] = 0.1
    assert psnr(half, torch.zeros(3, 4, 4)) == pytest.approx(20 + 10 * math.log10(2))
    assert psnr(half, half) == 100


def test_luma_psnr_by_hand():
    """Green 0.1 brighter everywhere: luma differs by 128.553 / 255 * 0.1; a third of the RGB values differ by 0.1."""
    truth = torch.zeros(3, 4, 4)
    greener = truth.clone()
    greener[1] = 0.1
    assert psnr(greener, truth) == pytest.approx(20 + 10 * math.log10(3))
    assert luma_psnr(greener, truth) == pytest.approx(-20 * math.log10(12.8553 / 255))


def test_metrics_agree_with_the_library():
    a, b = noise(0, 3, 20, 24), noise(1, 3, 20, 24)
    planes = [x.movedim(0, -1).double().numpy() for x in (a, b)]
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(*planes, data_range=1))
    luma = [rgb2ycbcr(plane)[..., 0] for plane in planes]
    assert luma_psnr(a, b) == pytest.approx(peak_signal_noise_ratio(*luma, data_range=255))


def wang(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two planes as Wang et al. define it, written out for every place of an 11x11 Gaussian window."""
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(g, g) / g.sum() ** 2
    scores = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            covariance = (weights * (p - mp) * (q - mq)).sum()
            c1, c2 = 0.01**2, 0.03**2
            scores.append((2 * mp * mq + c1) * (2 * covariance + c2) / (mp**2 + mq**2 + c1) / (vp + vq + c2))
    return float(np.mean(scores))


def test_ssim_by_hand():
    a = noise(0, 3, 16, 18)
    b = (a + 0.1 * noise(1, 3, 16, 18)).clamp(0, 1)
    expected = np.mean([wang(x.double().numpy(), y.double().numpy()) for x, y in zip(a, b, strict=True)])
    assert ssim(a, b, "gaussian") == pytest.approx(expected, abs=1e-6)
    assert ssim(a, a, "gaussian") == pytest.approx(1)
    assert ssim(a, b, "uniform") != pytest.approx(expected, abs=1e-4)
    # Two flat pictures: only the means count
    flat = ssim(torch.full((3, 12, 12), 0.5), torch.full((3, 12, 12), 0.25), "gaussian")
    assert flat == pytest.approx((2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4), abs=1e-6)
    with pytest.raises(ValueError, match="11x11"):
        ssim(a[:, :8], b[:, :8], "gaussian")


def clip(frames=20, size=(16, 24), name="c"):
    pictures = [picture(n, size) for n in range(frames)]
    return Clip(name, np.stack(pictures), [(0, frames)])


def test_windows_follow_each_other_or_are_spread():
    every = list(windows([clip()], 9, 4, None))
    assert [window.first for window in every] == [0, 8]
    assert [window.first for window in windows([clip()], 5, 4, 4)] == [0, 4, 8, 12]
    assert every[1].times == [n / 8 for n in range(9)]
    assert torch.equal(every[1].truth, torch.from_numpy(clip().frames[8:17]).movedim(-1, 1) / 255)
    torch.testing.assert_close(every[1].inputs, degrade(every[1].truth[[0, -1]], (4, 6)))


def test_whole_scales_crop_to_a_multiple():
    window = next(windows([clip(size=(19, 26))], 3, 4, 1))
    assert window.size == (16, 24)
    assert window.inputs.shape[-2:] == (4, 6)
    window = next(windows([clip(size=(19, 26))], 3, 2.5, 1))
    assert window.size == (19, 26)
    assert window.inputs.shape[-2:] == (8, 10)


def test_frames_of_the_means():
    """Frame n of nine has a PSNR of n: the paper's center is frames 0, 4, 8, and its average all of them."""
    scores = [Score(float(n), float(n) + 1, 0.1 * n) for n in range(9)]
    means = summarise([Result("a", 0, 4, {BASELINE: scores})])
    actual = {mean.frames: mean.psnr for mean in means if mean.clip is None and mean.texture == "all"}
    assert actual == {"first and last": 4, "middle": 4, "center": 4, "average": 4}
    scores[0] = Score(30.0, 30.0, 1.0)
    means = summarise([Result("a", 0, 4, {BASELINE: scores})])
    actual = {mean.frames: mean.psnr for mean in means if mean.clip is None and mean.texture == "all"}
    assert actual == {"first and last": 19, "middle": 4, "center": 14, "average": pytest.approx(66 / 9)}
    even = summarise([Result("a", 0, 4, {BASELINE: scores[:4]})])
    assert {mean.frames: mean.psnr for mean in even}["middle"] == 1.5


def test_summary_separates_textured_from_smooth():
    def result(name, this, baseline):
        scores = {BASELINE: baseline, "this": this}
        return Result(name, 0, 4, {method: [Score(p, p) for p in values] for method, values in scores.items()})

    means = summarise(
        [
            result("a", [30.0, 20.0, 32.0], [28.0, 18.0, 30.0]),
            result("b", [34.0, 24.0, 36.0], [30.0, 20.0, 30.0]),
            result("b", [50.0, 40.0, 50.0], [52.0, 40.0, 52.0]),
        ]
    )
    actual = {(m.texture, m.clip, m.frames, m.method): (m.number, m.psnr, m.ssim) for m in means}
    assert actual["textured", None, "first and last", "this"] == (2, 33.0, None)
    assert actual["textured", None, "first and last", BASELINE] == (2, 29.5, None)
    assert actual["textured", None, "middle", "this"] == (2, 22.0, None)
    assert actual["smooth", "b", "first and last", BASELINE] == (1, 52.0, None)
    assert actual["all", "b", "middle", "this"] == (2, 32.0, None)
    assert ("smooth", "a", "middle", "this") not in actual


def test_untrained_residual_model_scores_near_its_baseline():
    """It is a bilinear blend, so a little below a bicubic one."""
    torch.manual_seed(0)
    config = Config(front_blocks=0, back_blocks=0, recurrent=False, residual=True, flow=False, upsampling_head=False)
    methods = {"this": runtime_method(Runtime.from_model(STIF(config)))}
    for window in windows([clip(7, (48, 64))], 3, 4, 2):
        scores = evaluate(window, methods).scores
        assert 0 < np.mean([s.psnr for s in scores[BASELINE]]) - np.mean([s.psnr for s in scores["this"]]) < 8


def blank(frames, times, size):
    assert frames.shape == (2, 3, 4, 6)
    return torch.full((len(times), 3, *size), 25.6 / 255)


def black_window():
    return next(windows([Clip("c", np.zeros((5, 16, 24, 3), np.uint8), [(0, 5)])], 5, 4, 1))


def test_other_networks_can_be_scored():
    result = evaluate(black_window(), {"blank": external(f"{__name__}:blank")})
    assert [s.psnr for s in result.scores["blank"]] == pytest.approx([20 * math.log10(255 / 26)] * 5)  # rounded to 26


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("blank", "", "give module:function, such as"),
        (":blank", "", "give module:function"),
        ("mynet:", "", "give module:function"),
        ("mynet:f:g", "", "give module:function"),
        ("no.such.module:f", "", "no.such.module cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("mynet:f", "import no_such_package", "mynet cannot be imported: ModuleNotFoundError: .*no_such_package"),
        ("mynet:f", "f = 1 +", "mynet cannot be imported: SyntaxError"),
        ("mynet:f", "raise KeyError('weights')", "mynet cannot be imported: KeyError: 'weights'"),
        ("mynet:f", "g = len", "mynet has no function f"),
        ("mynet:f", "f = 3", "mynet has no function f"),
    ],
)
def test_a_function_that_is_not_there_is_named(tmp_path, monkeypatch, target, source, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    (tmp_path / "mynet.py").write_text(source)
    with pytest.raises(ValueError, match=f"^--method {target}: .*{message}"):
        external(target)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda window: torch.zeros(2, 3, 4, 4), r"mine returned \[2, 3, 4, 4\] instead of \[5, 3, 16, 24\]"),
        (lambda window: torch.full((5, 3, 16, 24), float("nan")), "mine returned values that are not finite, for c"),
    ],
)
def test_pictures_that_cannot_be_scored_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        evaluate(black_window(), {"mine": function})


def fails(frames, times, size):
    return {}["weights"]


def returns_a_list(frames, times, size):
    return [frames]


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("fails", RuntimeError, "failed: KeyError: 'weights'"),
        ("returns_a_list", ValueError, "must return a tensor, not list"),
    ],
)
def test_what_a_function_does_wrong_is_said(function, kind, message):
    with pytest.raises(kind, match=f"^--method {__name__}:{function} {message}"):
        external(f"{__name__}:{function}")(black_window())


def test_predictions_are_found_by_number(tmp_path):
    source = clip(9)
    (tmp_path / "made" / "c").mkdir(parents=True)
    for number, frame in enumerate(source.frames):
        write_png(tmp_path / "made" / "c" / f"out_{number:04d}.png", frame)
    method = predictions(tmp_path / "made")
    for window in windows([source], 5, 4, None):
        assert [s.psnr for s in evaluate(window, {"exact": method}).scores["exact"]] == [100] * 5
    with pytest.raises(FileNotFoundError, match=r"no frame 9, such as 000009\.png"):
        method(next(windows([clip(12)], 11, 4, None)))
    with pytest.raises(ValueError, match="24x16 instead of 40x32"):
        method(next(windows([clip(9, (32, 40))], 5, 4, None)))


def test_datasets_are_found(tmp_path, caplog):
    small = [picture(n, (8, 12)) for n in range(3)]
    for name in ("GOPR0384_11_00", "GOPR0410_11_00", "GOPR9999_11_00"):
        for kind in ("sharp", "blur"):
            write_images(tmp_path / "gopro" / "test" / name / kind, small)
    clips = load_dataset("gopro", [tmp_path / "gopro"], tmp_path / "cache", 1)
    assert [c.name for c in clips] == ["GOPR0384_11_00", "GOPR0410_11_00"]
    assert "not complete" in caplog.text
    assert "GOPR0881_11_01" in caplog.text

    (tmp_path / "adobe").mkdir()
    write_video(tmp_path / "adobe" / "IMG_0004a.mov", small)
    write_images(tmp_path / "adobe" / "IMG_0001", small)
    write_images(tmp_path / "adobe" / "IMG_0006", small)  # of the training split
    assert [c.name for c in load_dataset("adobe240", [tmp_path / "adobe"], tmp_path / "cache", 1)] == [
        "IMG_0001",
        "IMG_0004a",
    ]
    for name in DATASETS["vid4"].clips:
        write_images(tmp_path / "vid4" / "GT" / name, small)
    caplog.clear()
    assert len(load_dataset("vid4", [tmp_path / "vid4"], tmp_path / "cache", 1)) == 4
    assert not caplog.text
    assert len(load_dataset(None, [tmp_path / "vid4"], tmp_path / "cache", 1)) == 4


def test_missing_data_says_what_to_download(tmp_path):
    for name, dataset in DATASETS.items():
        with pytest.raises(FileNotFoundError) as error:
            load_dataset(name, [tmp_path / "none"], tmp_path / "cache", 1)
        assert dataset.source in str(error.value)
        assert dataset.layout in str(error.value)
    with pytest.raises(ValueError, match="gopro"):
        load_dataset("reds", [tmp_path], tmp_path, 1)
    assert {len(d.clips) for d in (datasets.DATASETS["gopro"], datasets.DATASETS["adobe240"])} == {11, 17}


def test_files(tmp_path):
    methods = {"this": lambda window: bicubic(window) * 0.9}
    results = [evaluate(window, methods, "gaussian") for window in windows([clip(9, (48, 64))], 9, 4, None)]
    means = summarise(results)
    tables.write(tmp_path, results, means, "gopro")
    text = (tmp_path / "results.md").read_text()
    assert "windows of 9 frames" in text
    assert "| all |  | center | the paper's model, all 11 clips |  | 30.26 | 0.8792 |" in text
    assert "| all |  | average | the paper's model, all 11 clips |  | 29.41 | 0.8669 |" in text
    assert text.count("the paper's model") == 2
    assert "the paper" not in tables.markdown(means, None)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == len(means)
    assert float(rows[0]["psnr"]) == means[0].psnr
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["windows"][0]["scores"]["this"][8]["psnr"] == results[0].scores["this"][8].psnr
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.csv", "results.json"}


def test_strip_shows_the_place_that_moves(tmp_path):
    frames = np.zeros((3, 256, 384, 3), np.uint8)
    frames[2, 128:, 256:] = 200
    window = next(windows([Clip("c", frames, [(0, 3)])], 3, 4, 1))
    truth = Window("c", 0, 4, window.inputs, window.truth)
    pictures = {BASELINE: render(truth, bicubic, BASELINE), "this": dict(enumerate(truth.truth + 0.2))}
    path = tables.write_strip(tmp_path, truth, pictures)
    image = read_image(path)
    assert path.name == "strip_c_x4_3.png"
    assert image.shape == (128, 4 * 128, 3)
    assert (image[:, 256:384] == 51).all()
    assert (image[:, 384:] == 0).all()
    assert abs(int(image[64, 128 + 64, 0]) - 100) <= 1  # the blend of both frames, in the place that changes


def test_clips_of_one_name_stay_apart(tmp_path, capsys):
    """GoPro-like folders, brackets, and names that only look alike as names of files."""
    names = ("one/frames", "two/frames", "one%2Fframes", "[red]walk", "a|b")
    results = []
    for seed, name in enumerate(names):
        frames = np.random.default_rng(seed).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
        results += run_evaluation([Clip(name, frames, [(0, 3)])], {}, Plan(scales=(2.0,)), tmp_path)
    assert len(list(tmp_path.glob("strip_*.png"))) == len(names)
    means = summarise(results)
    assert {mean.clip for mean in means} == {None, *names}
    tables.write(tmp_path, results, means, None)
    assert {row["clip"] for row in csv.DictReader((tmp_path / "results.csv").open())} == {"", *names}
    text = (tmp_path / "results.md").read_text()
    assert "| [red]walk | 1 |" in text
    assert r"| a\|b | 1 |" in text
    show_means(means, 2.0, 3)
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


def test_methods_may_have_brackets(capsys):
    scores = {BASELINE: [Score(30, 31)] * 3, "[b]n[/b]": [Score(32, 33)] * 3, "[/]": [Score(1, 2)] * 3}
    show_means(summarise([Result("c", 0, 4.0, scores)]), 4.0, 3)
    shown = capsys.readouterr().out
    assert "[b]n[/b]" in shown
    assert "[/]" in shown


def test_long_names_make_strips(tmp_path):
    names = ["x" * 300 + end for end in "ab"]
    window = black_window()
    paths = {tables.write_strip(tmp_path, dataclasses.replace(window, clip=name), {}) for name in names}
    assert len(paths) == 2
    assert all(path.exists() for path in paths)


def test_predictions_of_nested_clips_and_other_encodings(tmp_path):
    for folder, name in (("one/frames", "one/frames"), (os.fsdecode(b"caf\xe9"), "café")):
        source = clip(3, name=name)
        try:
            write_images(tmp_path / folder, list(source.frames))
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        (window,) = windows([source], 3, 4, 1)
        assert [s.psnr for s in evaluate(window, {"exact": predictions(tmp_path)}).scores["exact"]] == [100] * 3
    with pytest.raises(FileNotFoundError, match=r"--predictions: there is no folder .*nowhere"):
        predictions(tmp_path / "nowhere")


@pytest.fixture
def evaluated(tmp_path):
    """A folder with small weights, a clip of seven frames, and the same frames as predictions."""
    torch.manual_seed(0)
    config = Config(front_blocks=0, back_blocks=0, recurrent=False, residual=True, upsampling_head=False)
    save_model(STIF(config), tmp_path / "w.safetensors")
    for folder in ("data", "made"):
        write_images(tmp_path / folder / "city", [picture(n, (24, 32)) for n in range(7)])
    return tmp_path


def options(folder):
    data, cache, weights = (str(folder / name) for name in ("data", "cache", "w.safetensors"))
    return ["eval", data, "--cache", cache, "--weights", weights, "--device", "cpu"]


@pytest.mark.slow
def test_bundled_weights_are_named_or_fit_the_scale(evaluated, monkeypatch, capsys):
    """At x1 the default is stif-i and at x2 stif-s, as in a render; a name takes one for both."""

    def scores(*weights):
        arguments = (
            "--device",
            "cpu",
            "--max-windows",
            1,
            "--scale",
            1,
            "--scale",
            2,
            "--output",
            evaluated / "results",
        )
        status, _, err = call(monkeypatch, capsys, *options(evaluated)[:4], *arguments, *weights)
        assert status == 0, err
        rows = csv.DictReader((evaluated / "results" / "results.csv").open())
        return {row["scale"]: row["psnr"] for row in rows if (row["method"], row["frames"]) == ("this", "average")}

    fitting, one, other = scores(), scores("--weights", "stif-i"), scores("--weights", "stif-s")
    assert fitting["1.0"] == one["1.0"] != other["1.0"]
    assert fitting["2.0"] == other["2.0"] != one["2.0"]


def test_bundled_weights_of_another_name_are_refused(evaluated, monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, *options(evaluated)[:4], "--weights", "stif-j")
    assert status == 1
    assert "'stif-j'" in err
    assert "bundled are: stif-i, stif-s" in err


def test_several_scales_and_lengths(evaluated, monkeypatch, capsys):
    arguments = (
        "--scale",
        2,
        "--scale",
        3,
        "--frames-per-window",
        3,
        "--frames-per-window",
        5,
        "--frames-per-window",
        30,
        "--max-windows",
        2,
    )
    status, out, err = call(monkeypatch, capsys, *options(evaluated), *arguments)
    assert status == 0, err
    assert out.count("RGB PSNR") == 4
    assert err.count("no clip has 30 frames") == 2


def test_tables_and_strips(evaluated, monkeypatch, capsys, caplog):
    out = evaluated / "out"
    arguments = ("--dataset", "vid4", "--table", 1, "--predictions", f"exact={evaluated / 'made'}", "--output", out)
    status, _, err = call(monkeypatch, capsys, *options(evaluated), *arguments)
    assert status == 0, err
    assert "not complete" in caplog.text
    text = (out / "results.md").read_text()
    assert "| all | 3 | average | exact | 100.00 | 100.00 | 1.0000 |" in text
    assert "the paper's model, all 4 clips |  | 25.61 |" in text
    truth = read_image(out / "strip_city_x4_3.png")[:, -24:]
    frames = [picture(n, (24, 32)).astype(float) for n in range(7)]
    busiest = max((0, 2, 4), key=lambda n: np.abs(frames[n + 2] - frames[n]).mean())
    assert any(np.array_equal(truth, frames[busiest + 1][:, x : x + 24]) for x in range(9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "6"], "1, 2, 3, 4, 5"),
        (["--table", "1", "--scale", "2"], "either"),
        (["--predictions", "folder"], "NAME="),
        (["--predictions", "x=no-such-folder"], "there is no folder no-such-folder"),
        (["--method", "this=json:dumps"], "a name of your own"),
        (["--method", "x=json:dumps", "--method", "x=json:dumps"], "a name of your own"),
        (["--method", "x=json"], "give module:function"),
        (["--frames-per-window", "30"], "no clip has 30 frames"),
        (["--dataset", "gopro"], "GOPRO_Large_all"),
        (["--max-cache", "many"], "--max-cache many: give a number of bytes"),
        (["--max-cache", "1kB"], "1 clip would take 16.1 kB in"),
    ],
)
def test_errors_of_the_command_line(evaluated, monkeypatch, capsys, arguments, message):
    status, _, err = call(monkeypatch, capsys, *options(evaluated), *arguments)
    assert status == 1
    assert message in err


@pytest.mark.slow
def test_the_console_script_finds_modules_of_the_current_folder(evaluated):
    (evaluated / "mynet.py").write_text(
        "import torch\ndef f(frames, times, size): return torch.zeros(len(times), 3, *size)\n"
    )
    script = Path(sys.executable).with_name("stif-rt")
    if not script.exists():
        pytest.skip("the console script is not installed")
    done = subprocess.run(
        [script, *options(evaluated), "--method", "mine=mynet:f"],
        cwd=evaluated,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout


@pytest.mark.slow
def test_a_terminal_without_the_characters_of_a_name(evaluated):
    (evaluated / "data" / "city").rename(evaluated / "data" / "café")
    done = subprocess.run(
        [sys.executable, "-m", "stif_rt.cli", *options(evaluated)],
        cwd=evaluated,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert r"caf\xe9" in done.stdout


def test_validation_is_a_curve_of_means(tmp_path):
    torch.manual_seed(0)
    config = Config(front_blocks=0, back_blocks=0, recurrent=False, residual=True, flow=False, upsampling_head=False)
    model = STIF(config)
    points = validate(model, [clip(7, (24, 32))], 2.0, "cpu")
    results = [evaluate(window, {}) for window in windows([clip(7, (24, 32))], 3, 2.0, 4)]
    baseline = {(m.texture, m.frames): m.psnr for m in summarise(results) if m.clip is None}
    assert {(p.texture, p.frames) for p in points} <= set(baseline)
    assert {p.frames for p in points} == {"first and last", "middle", "average"}
    assert all(p.bicubic == pytest.approx(baseline[p.texture, p.frames]) for p in points)
    assert all(0 < p.psnr < 60 for p in points)
    for iteration in (10, 20):
        append_points(tmp_path / "validation.csv", iteration, points)
    rows = list(csv.DictReader((tmp_path / "validation.csv").open()))
    assert [row["iteration"] for row in rows] == ["10"] * len(points) + ["20"] * len(points)
    assert float(rows[0]["psnr"]) == pytest.approx(points[0].psnr, abs=1e-3)
    with pytest.raises(ValueError, match="no clip of --validation has 3 frames"):
        validate(model, [clip(2)], 2.0, "cpu")
