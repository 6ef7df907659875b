"""The paper's tables, run again: rows, what they wait for, and the methods of the source checkout."""

import collections
import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import call
from helpers.videos import picture, write_images

from benchmarks.interface import Setup, Unsupported
from benchmarks.methods import find_method
from benchmarks.peers import PEERS
from benchmarks.two_stage import ENLARGERS, INTERPOLATORS
from stif_rt.data.clips import Clip
from stif_rt.data.resize import imresize
from stif_rt.evaluation import methods, published
from stif_rt.evaluation.methods import OURS, Window
from stif_rt.evaluation.paper import Reproduction
from stif_rt.evaluation.protocol import score_pictures, windows
from stif_rt.evaluation.published import TABLES, Figure
from stif_rt.model.checkpoints import save_model
from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.stif import STIF

CPU = torch.device("cpu")


def clip(frames, size=(48, 64), shots=None):
    return Clip("c", np.stack([picture(n, size) for n in range(frames)]), shots or [(0, frames)])


def test_the_papers_figures():
    rows = {(number, row.label): row for number, table in TABLES.items() for row in table.rows}
    assert len(rows) == 13 + 4 + 2 + 4 + 3
    assert all(len(row.figures) == len(TABLES[number].columns) for (number, _), row in rows.items())
    assert rows[1, "DAIN + BasicVSR"].figures[-1] == Figure(26.23, 0.7725)
    assert rows[1, "Zooming SlowMo"].figures[2] is None
    assert rows[2, "STIF"].figures[5] == Figure(23.70, 0.6830)  # time x12, space x12
    assert rows[3, "STIF"].figures == (Figure(30.26, 0.8792), Figure(23.45, 0.6710))
    assert rows[4, "STIF (-m)"].figures[3] == Figure(29.04, 0.8606)
    assert rows[5, "STIF (two stages)"].figures[0] == Figure(29.61, 0.8734)


def test_every_row_can_be_run():
    """Its method exists, and what it waits for is a network of the source checkout or a model of this package."""
    for table in TABLES.values():
        for row in table.rows:
            method, needed = published.row_networks(row.method, {})
            assert needed
            if method not in published.MODELS:
                assert find_method(method).label
    assert set(published.NETWORKS) == set(PEERS) - {"stif"}
    for name in ("stif-f", "stif-m", "stif-single"):
        assert f"--config {name}" in published.MODELS[name]
        assert name in CONFIGS
    assert CONFIGS["stif-single"].single_function


def reproduce(number, dataset, files):
    """A table whose methods return the truth of what they are asked for, and count the questions."""
    positions = collections.defaultdict(list)

    def method(name):
        def answer(window):
            positions[name].append(window.positions)
            return window.truth

        return answer

    paper = Reproduction(number, dataset)
    made = paper.add_methods(
        {OURS: method(OURS)}, dict.fromkeys(files, Path("w")), lambda path: method("model"), method
    )
    return paper, made, positions


def test_rows_without_weights_say_which_file_they_wait_for():
    paper, made, _ = reproduce(1, "gopro", ["super_slomo", "basicvsr"])
    assert set(made) == {OURS, "super_slomo+bicubic", "super_slomo+basicvsr"}
    text = paper.markdown([])
    lines = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("|")][2:]
    assert lines == [*(row.label for row in TABLES[1].rows), "this (the bundled weights)"]
    assert "| STIF | (paper: 25.61 / 0.7709) | waits (paper: 30.26 / 0.8792) |" in text
    assert "- SuperSloMo + EDVR: waits for --weights edvr=FILE (EDVR_L_x4_SR_Vimeo90K_official-162b54e4.pth)" in text
    assert "- QVI + EDVR: waits for --weights qvi=FILE (model.pt) and --weights edvr=FILE" in text
    assert "- STIF-fixed: waits for --weights stif-fixed=FILE" in text
    assert "SuperSloMo + BasicVSR: waits" not in text


def test_rows_render_only_the_frames_that_the_paper_has_figures_of():
    paper, _, _ = reproduce(1, "gopro", ["zooming_slowmo", "tmnet", "stif", "stif-fixed"])
    assert (paper.lengths, paper.scales) == ([9], [4])
    center, every = [0, 4, 8], list(range(9))
    expected = {"zooming_slowmo": center, "stif-fixed": center, "tmnet": every, OURS: every}
    assert paper.numbers(9, 4) == expected
    paper, _, _ = reproduce(3, None, ["zooming_slowmo", "stif"])
    assert (paper.lengths, paper.scales) == ([9], [4, 16])
    assert paper.numbers(9, 4) == {"zooming_slowmo": center, OURS: center}
    assert paper.numbers(9, 16) == {"zooming_slowmo": every[::2], OURS: every[::2]}
    paper, _, _ = reproduce(2, "gopro", ["tmnet"])
    assert (paper.lengths, paper.scales) == ([7, 13, 17], [4, 6, 12])
    assert set(paper.numbers(7, 4)) == {OURS, "tmnet"}
    assert set(paper.numbers(17, 6)) == {OURS}
    with pytest.raises(ValueError, match="--table 3 is about the data sets gopro, not vid4"):
        Reproduction(3, "vid4")


def test_a_method_that_is_a_row_is_no_further_row():
    paper = Reproduction(1, "gopro")
    given = dict.fromkeys((OURS, "super_slomo+bicubic", "mine"), lambda group: group.truth)
    made = paper.add_methods(given, {"super_slomo": Path("w")}, lambda path: None, lambda name: None)
    assert paper.others == {OURS: "this (the bundled weights)", "mine": "mine"}
    assert made["super_slomo+bicubic"] is given["super_slomo+bicubic"]


def test_which_liif_runs_is_said():
    paper, made, _ = reproduce(2, "gopro", ["super_slomo", "liif_rdn", "liif_edsr"])
    assert paper.names["SuperSloMo + LIIF"] == "super_slomo+liif_rdn"
    paper, made, _ = reproduce(2, "gopro", ["super_slomo", "liif_edsr"])
    assert "super_slomo+liif_edsr" in made
    assert "run as super_slomo+liif_edsr" in paper.markdown([])
    assert "DAIN + LIIF: waits for --weights dain=FILE (best.pth)\n" in paper.markdown([])


def test_means_of_a_table_are_of_the_columns_frames():
    """Frame n of nine is n/100 off: the means are those of the center and of all."""
    paper, _, _ = reproduce(4, "gopro", ["stif"])
    window = next(windows([clip(9)], 9, 4, None))
    off = {n: window.truth[n] * 0 + n / 100 for n in range(9)}
    dark = Window("c", 0, 4, window.inputs * 0, window.truth * 0)
    result = score_pictures(dark, {"bicubic + blend": off, OURS: off}, "gaussian")
    expected = {n: float(-20 * np.log10(n / 100 * (65.481 + 128.553 + 24.966) / 255)) if n else 100.0 for n in range(9)}
    row = next(line for line in paper.markdown([result]).splitlines() if line.startswith("| STIF |"))
    center, average = (float(cell.split(" / ")[0]) for cell in row.split(" | ")[1:3])
    assert center == pytest.approx(np.mean([expected[n] for n in (0, 4, 8)]), abs=0.006)
    assert average == pytest.approx(np.mean(list(expected.values())), abs=0.006)


def test_outer_frames_are_given_where_the_shot_has_them():
    """For QVI: as far before and after the window as its own ends are apart."""
    source = clip(13, shots=[(0, 9), (9, 13)])
    by_start = {window.first: window for window in windows([source], 3, 2, None)}
    assert list(by_start) == [0, 2, 4, 6, 9]
    assert [first for first, window in by_start.items() if window.outer is not None] == [2, 4]
    for n, first in enumerate((0, 6)):
        torch.testing.assert_close(by_start[2].outer[n], by_start[first].inputs[0])


@pytest.fixture(scope="module")
def setup():
    return Setup(CPU, remember=True)


def inputs(size=(32, 40), count=4):
    return torch.rand(1, count, 3, *size, generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def test_trivial_stages_are_the_baseline(setup):
    method = find_method("blend+bicubic").build(setup)
    pair = inputs((5, 7), 2)
    first, second = (imresize(frame, (11, 20)) for frame in pair[0])
    for t, made in zip((0, 0.25, 1), method.at(method.encode(pair), [0, 0.25, 1], (11, 20)), strict=True):
        torch.testing.assert_close(made[0], torch.lerp(first, second, t), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("qvi+basicvsr", (128, 160)), ("super_slomo+liif_edsr", (50, 90)), ("blend+edvr", (24, 20))]
)
@torch.inference_mode()
def test_two_stages_are_one_after_the_other(setup, name, size):
    """Interpolation at the input's size, clamped, then enlargement of the whole sequence with both ends."""
    method = find_method(name).build(setup)
    frames = inputs((6, 5) if name == "blend+edvr" else (32, 40), method.inputs)
    made = list(method.at(method.encode(frames), [0.25, 0.5], size))
    first, second = frames[:, frames.shape[1] // 2 - 1], frames[:, frames.shape[1] // 2]
    interpolator, _, enlarger = name.partition("+")
    if interpolator == "blend":
        between = [torch.lerp(first, second, t) for t in (0.25, 0.5)]
    else:
        between = list(setup.ready(interpolator)(frames, [0.25, 0.5]).clamp(0, 1).unbind(1))
    sequence, network = [first, *between, second], setup.ready(enlarger)
    if enlarger == "basicvsr":
        expected = list(network(torch.stack(sequence, 1))[:, 1:3].unbind(1))
    elif enlarger == "edvr":
        padded = [torch.nn.functional.pad(frame, (0, 3, 0, 2), mode="replicate") for frame in sequence]
        windows = [[padded[min(max(n + k, 0), 3)] for k in range(-3, 4)] for n in (1, 2)]
        expected = [network(torch.stack(window, 1))[..., : size[0], : size[1]] for window in windows]
    else:
        expected = [network(frame, size) for frame in between]
    for actual, wanted in zip(made, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.inference_mode()
def test_rows_with_one_interpolator_share_its_frames(setup, monkeypatch):
    calls = []
    network = setup.ready("super_slomo")
    monkeypatch.setattr(network, "render", lambda *given, render=network.render: calls.append(1) or render(*given))
    frames = inputs((32, 32), 2)
    for name in ("super_slomo+bicubic", "super_slomo+liif_edsr"):
        method = find_method(name).build(setup)
        made = list(method.at(method.encode(frames.clone()), [0.0, 0.25, 0.75, 1.0], (64, 64)))
        assert len(made) == 4
    assert len(calls) == 2


@pytest.mark.slow
@torch.inference_mode()
def test_zooming_slowmo_twice_for_sixteen_times_the_size(setup):
    method = find_method("zooming_slowmo").build(setup)
    frames = inputs((5, 6), 2)
    made = list(method.at(method.encode(frames), [0, 0.25, 0.5, 0.75, 1], (80, 96)))
    padded = torch.nn.functional.pad(frames[0], (0, 2, 0, 3), mode="replicate")[None]
    enlarged = method.network(padded)[..., :20, :24].clamp(0, 1)
    torch.testing.assert_close(torch.stack(made), method.network(enlarged)[0])
    for times, size, message in (
        ([0, 1 / 3], (20, 24), "halves"),
        ([0, 0.5], (80, 96), "4 times"),
        ([0], (9, 9), "4 times"),
    ):
        with pytest.raises(Unsupported, match=message):
            list(method.at(frames, times, size))


def test_unknown_methods_say_what_there_is(setup):
    with pytest.raises(ValueError, match=r"unknown method 'tnmet'; there are: stif-rt, .*INTERPOLATOR\+ENLARGER"):
        find_method("tnmet")
    with pytest.raises(ValueError, match="one of super_slomo, qvi, dain, blend, dis, rife, then"):
        find_method("dain+espcn")
    with pytest.raises(ValueError, match=r"DAIN needs weights: give --weights dain=FILE, published as best\.pth"):
        find_method("dain+bicubic").build(Setup(CPU, random=False))
    assert {"super_slomo", "qvi", "dain"} < set(INTERPOLATORS)
    assert set(ENLARGERS) == {"bicubic", "edvr", "basicvsr", "liif_edsr", "liif_rdn"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A clip, and weights of small networks."""
    folder = tmp_path_factory.mktemp("tables")
    write_images(folder / "data" / "city", [picture(n, (48, 64)) for n in range(9)])
    for name in ("liif_edsr", "zooming_slowmo"):
        torch.manual_seed(0)
        torch.save(PEERS[name].build().half().state_dict(), folder / f"{name}.pth")
    config = Config(front_blocks=0, back_blocks=0, recurrent=False, residual=True, upsampling_head=False)
    save_model(STIF(config), folder / "stif.safetensors")
    return folder


@pytest.fixture
def evaluate(files, monkeypatch, capsys):
    def command(*options):
        return call(monkeypatch, capsys, "eval", files / "data", "--cache", files / "cache", *options)

    return command


@pytest.mark.slow
def test_peers_from_the_command_line(evaluate, files, tmp_path, monkeypatch):
    weights = ["--weights", f"liif_edsr={files / 'liif_edsr.pth'}", "--weights", files / "stif.safetensors"]
    options = ["--frames-per-window", 5, "--max-windows", 1, "--scale", 2.5, *weights]
    status, _out, error = evaluate(*options, "--method", "blend+liif_edsr", "--output", tmp_path)
    assert status == 0, error
    assert "| all | 1 | average | blend+liif_edsr |" in (tmp_path / "results.md").read_text()
    for more, message in (
        (["--method", "blend+liif_rdn"], "LIIF (RDN) needs weights: give --weights liif_rdn=FILE"),
        (["--method", "blend+espcn"], "unknown method"),
        (["--method", "blend+liif_rdn", "--weights", f"liif_rdn={files / 'liif_edsr.pth'}"], "does not fit LIIF (RDN)"),
        (["--weights", f"edrv={files / 'liif_edsr.pth'}"], "no network 'edrv'"),
        (["--weights", "edvr=nowhere.pth"], "nowhere.pth does not exist"),
    ):
        status, _out, error = evaluate(*options, *more)
        assert status == 1
        assert message in error
    monkeypatch.setattr(methods, "__file__", str(tmp_path / "site-packages" / "stif_rt" / "evaluation" / "methods.py"))
    status, _out, error = evaluate(*options, "--method", "blend+liif_edsr")
    assert status == 1
    assert "needs the source code of stif-rt" in error


@pytest.mark.slow
def test_table_3_from_the_command_line(evaluate, files, tmp_path):
    """Zooming SlowMo once and twice; the model of the table beside it."""
    given = ["--weights", f"zooming_slowmo={files / 'zooming_slowmo.pth'}", "--weights", files / "stif.safetensors"]
    status, out, error = evaluate("--table", 3, *given, "--output", tmp_path)
    assert status == 0, error
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("## Table 3 of the paper")
    for row, figures in (("Zooming SlowMo", "30.69 / 0.8847"), ("STIF", "30.26 / 0.8792")):
        pattern = rf"\| {row} \| [\d.]+ / -?[\d.]+ \(paper: {figures}\) \| [\d.]+ / -?[\d.]+ \(paper: "
        assert re.search(pattern, text), text
        assert re.search(pattern, out)
    assert "waits" not in text


@pytest.mark.slow
def test_table_4_runs_every_design(evaluate, files, tmp_path):
    """Weights of each row by its name; what design they are is read from the files."""
    tiny = {"front_blocks": 0, "back_blocks": 0, "recurrent": False, "upsampling_head": False}
    given = []
    for name in ("stif", "stif-f", "stif-m", "stif-single"):
        save_model(STIF(dataclasses.replace(CONFIGS[name], **tiny)), tmp_path / f"{name}.safetensors")
        given += ["--weights", f"{name}={tmp_path / name}.safetensors"]
    status, out, error = evaluate("--table", 4, *given)
    assert status == 0, error
    for row in TABLES[4].rows:
        assert re.search(rf"\| {re.escape(row.label)} \| [\d.]+ / -?[\d.]+ \(paper", out), out
    assert "this" not in out
    assert "waits" not in out


@pytest.mark.slow
def test_a_row_that_cannot_do_it_is_noted(evaluate, files):
    """QVI needs 32 pixels on each side, which the 16x12 of this clip are not."""
    torch.manual_seed(0)
    torch.save(PEERS["qvi"].build().half().state_dict(), files / "qvi.pth")
    status, out, error = evaluate(
        "--table", 1, "--weights", f"qvi={files / 'qvi.pth'}", "--weights", files / "stif.safetensors"
    )
    assert status == 0, error
    assert "| QVI + Bicubic | cannot (paper: 22.11 / 0.5498) | cannot (paper: 26.50 / 0.7791) |" in out
    assert "- QVI + Bicubic: cannot do time x2, space x4: QVI needs frames of 32x32 pixels or more" in out
    assert "- DAIN + EDVR: waits for" in out


def test_a_strip_needs_no_second_rendering(evaluate, files, tmp_path, monkeypatch):
    sizes = []

    def counted(frames, times, size):
        sizes.append(size)
        return torch.zeros(len(times), 3, *size)

    monkeypatch.setitem(sys.modules, "counted", type("module", (), {"counted": counted}))
    options = ["--frames-per-window", 3, "--max-windows", 2, "--scale", 4, "--weights", files / "stif.safetensors"]
    status, _out, error = evaluate(*options, "--method", "black=counted:counted", "--output", tmp_path)
    assert status == 0, error
    assert len(sizes) == 2
    assert (tmp_path / "strip_city_x4_3.png").exists()
