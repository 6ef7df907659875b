import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.videos import picture

from stif_rt.data.clips import Clip, load_pictures
from stif_rt.data.resize import degrade
from stif_rt.data.synthetic_motion import render_motion
from stif_rt.training.examples import Batches, Recipe
from stif_rt.training.train import flow_error

SIDE = 48
RECIPE = Recipe(patch=12, scale=4.0, window=5, targets=3, synthetic=1.0, largest_motion=4.0)


def smooth_picture(seed: int) -> np.ndarray:
    noise = torch.from_numpy(np.random.default_rng(seed).random((1, 3, 10, 12))).float()
    return (F.interpolate(noise, (90, 110), mode="bicubic").clamp(0, 1)[0].movedim(0, -1) * 255).byte().numpy()


def scene(seed: int, layers: int, times=(0.25, 0.5, 1.0), largest=16.0):
    pictures = [smooth_picture(10 * seed + n) for n in range(layers)]
    return render_motion(pictures, list(times), SIDE, largest, np.random.default_rng(seed))


def read(image, flow):
    """The image [3, h, w] where the flow [h, w, 2] points."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    position = (2 * (torch.stack((x, y), -1) + flow) + 1) / SIDE - 1
    return F.grid_sample(image[None], position[None], "bicubic", "border", align_corners=False)[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("layers", [1, 3])
def test_flow_finds_every_visible_point_in_the_inputs(seed, layers):
    images, flow, visible = scene(seed, layers)
    assert visible.mean() > 0.4
    for n in range(3):
        for k in (0, 1):
            difference = (read(images[k], flow[n, ..., 2 * k : 2 * k + 2]) - images[2 + n]).abs().amax(0)
            seen = visible[n, ..., k] > 0
            assert difference[seen].quantile(0.95) < 0.03


def test_hidden_points_are_told():
    """Somewhere a cut-out covers what moves behind it, and there the place that the flow points to looks different."""
    wrong = 0
    for seed in range(6):
        images, flow, visible = scene(seed, 3)
        background = scene(seed, 1)[2]
        hidden = (visible[0, ..., 0] == 0) & (background[0, ..., 0] == 1)
        difference = (read(images[0], flow[0, ..., :2]) - images[2]).abs().amax(0)
        wrong += int((difference[hidden] > 0.1).sum())
    assert wrong > 50


def test_motion_is_linear_in_time():
    _, flow, _ = scene(3, 1, times=(0.0, 1.0, 0.5))
    assert flow[0, ..., :2].abs().max() == 0
    assert flow[1, ..., 2:].abs().max() == 0
    torch.testing.assert_close(flow[2, ..., :2], -flow[2, ..., 2:])
    assert flow.abs().max() > 2


def test_largest_speed_is_kept():
    """Rotation, zoom and wave come on top of the translation, each at most a tenth of a pixel per pixel."""
    speeds = [scene(seed, 1, times=(0.5,), largest=10.0)[1].norm(dim=-1).max() for seed in range(8)]
    assert max(speeds) < 10 + 0.3 * 2 * SIDE


def clip() -> Clip:
    return Clip("c", np.stack([picture(n, (64, 80)) for n in range(5)]), [(0, 5)])


def test_examples_in_motion_are_consistent():
    batch = Batches([clip()], RECIPE, 4, 0, [smooth_picture(0), smooth_picture(1)[:20, :30]])[0]
    assert batch.flow.shape == (4, 3, SIDE, SIDE, 4)
    assert batch.visible.shape == (4, 3, SIDE, SIDE, 2)
    assert set(batch.visible.unique().tolist()) == {0.0, 1.0}
    assert set((4 * batch.times).flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    for frames, times, truth in zip(batch.frames, batch.times, batch.truth, strict=True):
        for t, image in zip(times, truth, strict=True):
            if t in (0, 1):
                torch.testing.assert_close(degrade(image, (12, 12)), frames[int(t)])


def test_share_of_examples_in_motion():
    batch = Batches([clip()], Recipe(patch=8, window=3, targets=1, synthetic=0.5), 40, 0)[0]
    known = batch.visible.flatten(1).any(1)
    assert 10 < known.sum() < 30


@pytest.mark.parametrize("seed", [6, 7, 8, 21])
def test_black_over_a_picture_is_not_negative(seed):
    """Sampling can round a coverage of 1 up; a negative colour would become NaN in the gamma that follows."""
    background = np.random.default_rng(0).integers(1, 255, (60, 60, 3)).astype(np.uint8)
    pictures = [background, np.zeros_like(background)]
    images, _, _ = render_motion(pictures, [0.3], 75, 6.0, np.random.default_rng(seed))
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_place_that_changes_most_is_taken():
    """The left half stands still."""
    frames = np.zeros((3, 40, 200, 3), np.uint8)
    frames[2, :, 100:] = 200
    recipe = Recipe(patch=8, window=3, targets=1)

    def moving(candidates):
        batch = Batches([Clip("c", frames, [(0, 3)])], Recipe(**{**vars(recipe), "candidates": candidates}), 60, 0)[0]
        return ((batch.frames[:, 0] - batch.frames[:, 1]).abs().flatten(1).amax(1) > 0).float().mean()

    assert moving(1) < 0.75
    assert moving(4) > 0.9


def test_the_place_with_most_detail_is_taken():
    """Nothing moves; the right half has texture."""
    frames = np.full((3, 40, 200, 3), 100, np.uint8)
    frames[:, :, 100:] = np.random.default_rng(0).integers(0, 255, (1, 40, 100, 3))

    def textured(candidates):
        recipe = Recipe(patch=8, window=3, targets=1, candidates=candidates)
        batch = Batches([Clip("c", frames, [(0, 3)])], recipe, 60, 0)[0]
        return (batch.frames[:, 0].flatten(1).std(1) > 0.01).float().mean()

    assert textured(1) < 0.75
    assert textured(4) > 0.9


def test_flow_error_counts_input_pixels_where_visible():
    batch = Batches([clip()], RECIPE, 2, 0)[0]
    assert flow_error(batch.flow, batch) == pytest.approx(0.01, abs=1e-4)
    moved = batch.flow + torch.tensor((12.0, 16.0, 0.0, 0.0))  # 5 input pixels off in frame 0, right in frame 1
    share = batch.visible[..., 0].sum() / batch.visible.sum()
    assert flow_error(moved, batch) == pytest.approx(float(5 * share + 0.01 * (1 - share)), abs=1e-3)
    nothing = batch._replace(visible=torch.zeros_like(batch.visible))
    assert flow_error(moved, nothing) == 0


def test_pictures_are_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images"):
        load_pictures(tmp_path)
    from helpers.videos import write_images

    write_images(tmp_path / "a", [picture(0), picture(1)])
    assert [p.shape for p in load_pictures(tmp_path)] == [picture(0).shape] * 2
