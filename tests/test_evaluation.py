import math

import numpy as np
import pytest
import torch
from videos import picture, write_images

from stif_rt.evaluation import Window, evaluate, psnr, summarise
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime
from stif_rt.training.data import Clip, load_clip


def test_psnr_by_hand():
    assert psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)) == pytest.approx(20)
    half = torch.zeros(3, 4, 4)
    half[:, :2] = 0.1
    assert psnr(half, torch.zeros(3, 4, 4)) == pytest.approx(20 + 10 * math.log10(2))
    assert psnr(half, half) == 100


def test_summary_separates_textured_from_smooth():
    windows = [
        Window("a", [30.0, 20.0, 32.0], [28.0, 18.0, 30.0]),
        Window("b", [34.0, 24.0, 36.0], [30.0, 20.0, 30.0]),
        Window("b", [50.0, 40.0, 50.0], [52.0, 40.0, 52.0]),
    ]
    rows = {name: (number, means) for name, number, means in summarise(windows)}
    assert rows["textured"][0] == 2
    assert rows["textured"][1]["ends"] == (33.0, 29.5)
    assert rows["textured"][1]["between"] == (22.0, 19.0)
    assert rows["smooth, b"][1]["ends"] == (50.0, 52.0)
    assert set(rows) == {"textured", "textured, a", "textured, b", "smooth", "smooth, b"}


def test_untrained_residual_model_scores_near_its_baseline(tmp_path):
    """It is a bilinear blend, so a little below a bicubic one."""
    clip = load_clip(write_images(tmp_path / "c", [picture(n, (48, 64)) for n in range(7)]), tmp_path / "cache", 1)
    torch.manual_seed(0)
    config = Config(front_blocks=0, back_blocks=0, recurrent=False, residual=True, flow=False, upsampling_head=False)
    windows = list(evaluate(Runtime.from_model(STIF(config)), [clip], 3, 4, 2))
    assert len(windows) == 2
    for window in windows:
        assert len(window.ours) == 3
        assert 0 < np.mean(window.bicubic) - np.mean(window.ours) < 8


def test_windows_are_spread_and_limited():
    clip = Clip("c", np.zeros((20, 8, 8, 3), np.uint8), [(0, 20)])

    class Blank:
        device = torch.device("cpu")

        def encode(self, a, b):
            assert a.shape == b.shape == (3, 2, 2)

        def render(self, t, size):
            return torch.full((3, *size), 0.1)

    windows = list(evaluate(Blank(), [clip], 5, 4, 4))
    assert len(windows) == 4
    assert windows[0].ours == pytest.approx([20.0] * 5)
