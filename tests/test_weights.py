"""Bundled weights by name, and those that fit a scale, whether or not all of them are bundled yet."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.cases import LEARNED, MOTION
from helpers.command_line import call
from helpers.models import fill_model
from helpers.videos import picture, write_images

from stif_rt.model.checkpoints import save_model
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime, bundled_weights, find_weights, weights, weights_for_scale


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A package with the default weights only."""
    target = tmp_path / "weights"
    target.mkdir()
    shutil.copyfile(bundled_weights(), target / "stif-s.safetensors")
    monkeypatch.setattr(weights, "WEIGHTS_FOLDER", target)
    return target


@pytest.fixture
def with_stif_i(folder):
    config = Config(**(MOTION | {"front_blocks": 0}), **LEARNED, feature_stride=2, decoder_widths=(64, 64, 64))
    save_model(fill_model(STIF(config)), folder / "stif-i.safetensors", torch.float16)
    return folder


def test_names_and_paths(monkeypatch, with_stif_i, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_weights(None) == find_weights("stif-s") == with_stif_i / "stif-s.safetensors"
    assert find_weights("stif-i") == with_stif_i / "stif-i.safetensors"
    (tmp_path / "stif-i").mkdir()  # a bundle of that name
    assert str(find_weights("stif-i")) == "stif-i"
    for path in ("x/stif-s", "stif-s.pth"):
        assert find_weights(path) == Path(path)


def test_runtime_by_name(with_stif_i):
    runtime = Runtime.load("stif-i", device="cpu", dtype="float32", kernels="reference")
    assert (runtime.weights, runtime.config.feature_stride) == ("stif-i", 2)
    assert runtime.encode(*torch.rand(2, 3, 9, 13)).velocity.shape == (2, 9, 13)


def test_unknown_names_list_those_that_there_are(with_stif_i):
    with pytest.raises(FileNotFoundError, match=r"'stif-x'.*bundled are: stif-i, stif-s"):
        Runtime.load("stif-x")


def test_fit_of_a_scale_without_stif_i(folder):
    assert [weights_for_scale(scale) for scale in (1, 4)] == ["stif-s", "stif-s"]


def test_fit_of_a_scale_with_stif_i(with_stif_i):
    assert [weights_for_scale(scale) for scale in (0.5, 1, 1.49, 1.5, 4)] == ["stif-i"] * 3 + ["stif-s"] * 2


@pytest.mark.parametrize(
    ("options", "weights"),
    [(["--scale", 1], "stif-i"), (["--scale", 2], "stif-s"), (["--weights", "stif-i", "--scale", 2], None)],
)
def test_render_says_which_weights_fit(monkeypatch, capsys, tmp_path, with_stif_i, options, weights):
    source = write_images(tmp_path / "in", [picture(n) for n in range(2)])
    loaded = []
    load = Runtime.load.__func__
    monkeypatch.setattr(Runtime, "load", classmethod(lambda cls, *a, **k: loaded.append(a[0]) or load(cls, *a, **k)))
    status, _, err = call(monkeypatch, capsys, "render", source, tmp_path / "out", "--device", "cpu", *options)
    assert status == 0, err
    assert [str(name) for name in loaded] == [weights or "stif-i"]
    assert (f"weights: {weights}" in err) == (weights is not None)


def test_render_of_unknown_weights(monkeypatch, capsys, tmp_path, with_stif_i):
    source = write_images(tmp_path / "in", [picture(n) for n in range(2)])
    status, _, err = call(monkeypatch, capsys, "render", source, tmp_path / "out", "--weights", "stif-x")
    assert (status, "bundled are: stif-i, stif-s" in err, (tmp_path / "out").exists()) == (1, True, False)
