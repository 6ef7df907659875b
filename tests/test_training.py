import csv
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from helpers.cases import LEARNED, MOTION
from helpers.models import TINY, fill_model
from helpers.videos import picture, write_images, write_video
from typer.testing import CliRunner

from benchmarks import training_curve
from stif_rt.cli.train import train as train_command
from stif_rt.data.clips import Clip, find_clips, load_clip
from stif_rt.data.resize import degrade
from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.stif import STIF
from stif_rt.runtime.weights import WEIGHTS_FOLDER
from stif_rt.training.examples import Batch, Batches, Recipe
from stif_rt.training.labels import label_flow
from stif_rt.training.train import FastForm, Options, charbonnier, flow_error, levels_error, parameter_groups, train

CPU = torch.device("cpu")
CONFIG = Config(**TINY, grid="centres", residual=True, flow_unit="input")
MOVING = {1: Config(**MOTION, **LEARNED), 2: Config(**(MOTION | {"front_blocks": 0}), **LEARNED, feature_stride=2)}
RECIPE = Recipe(patch=8, scale=2.0, min_window=2, window=4, targets=2, photometric=True)
SMALL = Options(
    recipe=RECIPE,
    stage_one=4,
    stage_two=3,
    min_scale=1.0,
    max_scale=2.0,
    batch=2,
    learning_rate=1e-3,
    period=7,
    save_every=2,
)


@pytest.fixture
def clips(tmp_path):
    return [load_clip(write_video(tmp_path / "v.mp4", [picture(n, (40, 48)) for n in range(9)]), tmp_path / "cache", 1)]


def fresh() -> STIF:
    torch.manual_seed(0)
    return STIF(CONFIG)


def test_layouts_are_found(tmp_path):
    (tmp_path / "gopro" / "GOPR1").mkdir(parents=True)
    for name in ("sharp", "blur"):
        write_images(tmp_path / "gopro" / "GOPR1" / name, [picture(0)])
    write_images(tmp_path / "calendar", [picture(0)])
    write_video(tmp_path / "adobe.mp4", [picture(0)])
    (tmp_path / "readme.txt").write_text("")
    assert [str(p.relative_to(tmp_path)) for p in find_clips(tmp_path)] == [
        "adobe.mp4",
        "calendar",
        "gopro/GOPR1/sharp",
    ]
    assert find_clips(tmp_path / "adobe.mp4") == [tmp_path / "adobe.mp4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        find_clips(tmp_path / "empty")


def test_clips_are_cached_and_cut_into_shots(tmp_path):
    pictures = [picture(n) for n in range(4)] + [255 - picture(n) for n in range(5)]
    folder = write_images(tmp_path / "clip", pictures)
    clip = load_clip(folder, tmp_path / "cache", 1)
    assert clip.shots == [(0, 4), (4, 9)]
    assert np.array_equal(clip.frames, pictures)
    assert clip.windows(3) == [0, 1, 4, 5, 6]
    assert clip.windows(6) == []
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert np.array_equal(load_clip(folder, tmp_path / "cache", 1).frames, pictures)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == files
    assert load_clip(folder, tmp_path / "cache", 2).frames.shape == (9, 9, 16, 3)


def test_one_example_in_five_is_dark():
    frames = np.full((2, 16, 16, 3), 255, np.uint8)
    recipe = Recipe(patch=4, window=2, photometric=True)
    brightness = Batches([Clip("white", frames, [(0, 2)])], recipe, 400, 0)[0].frames.flatten(1).mean(1)
    assert 0.13 < (brightness < 0.49).float().mean() < 0.27
    assert brightness.min() < 0.05


def test_batches_depend_on_their_number_only(clips):
    data = Batches(clips, RECIPE, 3, seed=5)
    a, b, c = data[4], data[4], data[5]
    assert torch.equal(a.frames, b.frames)
    assert torch.equal(a.truth, b.truth)
    assert not torch.equal(a.truth, c.truth)
    assert a.frames.shape == (3, 2, 3, 8, 8)
    assert a.truth.shape == (3, 2, 3, 16, 16)
    assert a.times.shape == (3, 2)


def test_examples_are_consistent():
    """Frame n is a flat grey of level n: times, targets and inputs must tell the same story."""
    frames = np.broadcast_to((20 * np.arange(10, dtype=np.uint8)).reshape(10, 1, 1, 1), (10, 40, 40, 3))
    clip = Clip("ramp", frames, [(0, 10)])
    batch = Batches([clip], dataclasses.replace(RECIPE, min_window=3, window=9, photometric=False, targets=3), 64, 0)[0]
    start, end = (batch.frames[:, k].mean((1, 2, 3)) for k in (0, 1))
    expected = start[:, None] + (end - start)[:, None] * batch.times
    torch.testing.assert_close(batch.truth.mean((2, 3, 4)), expected, atol=1e-4, rtol=0)
    lengths = ((end - start).abs() * 255 / 20 + 1).round().unique().tolist()
    assert lengths == [3, 4, 5, 6, 7, 8, 9]
    assert (end > start).any()
    assert (end < start).any()
    assert batch.times.min() == 0
    assert batch.times.max() == 1


def test_inputs_are_the_degraded_truth(clips):
    recipe = dataclasses.replace(RECIPE, window=2, photometric=False)
    batch = Batches(clips, recipe, 8, 0)[0]
    for frames, times, truth in zip(batch.frames, batch.times, batch.truth, strict=True):
        for t, picture_ in zip(times, truth, strict=True):
            torch.testing.assert_close(degrade(picture_, (8, 8)), frames[int(t)])


def test_windows_have_an_order():
    with pytest.raises(ValueError, match="min_window is 5, more than window, which is 3"):
        Recipe(window=3, min_window=5)


def test_scale_is_drawn_per_batch(clips):
    data = Batches(clips, dataclasses.replace(RECIPE, scale=4.0), 1, 0, (), (1.0, 4.0))
    sides = {data[n].truth.shape[-1] for n in range(40)}
    assert min(sides) < 14
    assert max(sides) > 26
    assert all(8 <= side <= 32 for side in sides)


def test_unusable_clips_are_refused(clips):
    with pytest.raises(ValueError, match="10 frames without a cut"):
        Batches(clips, dataclasses.replace(RECIPE, min_window=2, window=10), 1, 0)
    with pytest.raises(ValueError, match="48x48"):
        Batches(clips, dataclasses.replace(RECIPE, patch=24), 1, 0)


def test_fast_form_is_the_model(clips):
    batch = Batches(clips, RECIPE, 2, 0)[0]
    model = fresh()
    made = FastForm(model, "float32")(batch.frames, batch.times, (16, 16))
    assert made.velocities is None
    for n in range(2):
        expected = model.decode(model.encode(batch.frames), batch.frames, batch.times[:, n], (16, 16))
        torch.testing.assert_close(made.rgb[:, n], expected.rgb, atol=1e-5, rtol=0)
        torch.testing.assert_close(made.flow[:, n], expected.flow.movedim(1, -1), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("context", [0, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_fast_form_of_a_network_with_velocity_is_the_model(stride, context):
    """The head sees all that is shown, also where that fills no pyramid; the rest sees what the context surrounds."""
    model, side = fill_model(STIF(MOVING[stride])), 40 - 2 * context
    torch.manual_seed(0)
    frames, times = torch.rand(1, 2, 3, 40, 40), torch.tensor([[0.3]])
    made = FastForm(model, "float32")(frames, times, (2 * side, 2 * side), context)
    with torch.no_grad():
        padded = F.pad(frames[0], (0, 24, 0, 24), mode="replicate")[None]
        v = model.encode(padded).velocity[..., : 40 // stride, : 40 // stride]
        inner, border = slice(context, 40 - context), context // stride
        v = v[..., border : border + side // stride, border : border + side // stride]
        frames = frames[..., inner, inner]
        features = model.encoder.align(*(model.encoder.extract(frames[:, k], False)[0] for k in (0, 1)), v)
        expected = model.decode(features, frames, times[:, 0], (2 * side, 2 * side))
    torch.testing.assert_close(made.rgb[:, 0], expected.rgb, atol=1e-4, rtol=0)
    torch.testing.assert_close(made.flow[:, 0], expected.flow.movedim(1, -1), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_head_that_is_not_trained_stays_as_it_is(clips, tmp_path):
    recipe = dataclasses.replace(RECIPE, patch=12, context=2, scale=1.5, synthetic=0.5)
    options = dataclasses.replace(SMALL, recipe=recipe, stage_one=2, stage_two=0, motion_share=0.0, blend_weight=0.1)
    torch.manual_seed(0)
    model = STIF(MOVING[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, clips, options, tmp_path, CPU, 0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if name.startswith("velocity_head.")]


@pytest.mark.slow
def test_only_the_head_is_trained_on_flow_alone(clips, tmp_path):
    """And it learns: the same batch again and again, of still pictures in motion."""
    recipe = Recipe(
        32, scale=1.0, window=3, targets=1, synthetic=1.0, largest_motion=6.0, middle=1.0, noise=0.01, exposure=0.05
    )
    options = dataclasses.replace(SMALL, recipe=recipe, stage_one=12, stage_two=0, flow_only=True, smooth_weight=0.01)
    torch.manual_seed(0)
    model = STIF(MOVING[2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses: list[float] = []
    picture_ = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    one = Batches(clips, recipe, 2, 0, [picture_])[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "__getitem__", lambda self, number: one)
        train(model, clips, options, tmp_path, CPU, 0, lambda step: losses.append(step.loss))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("velocity_head.") for name in changed)
    assert losses[-1] < 0.9 * losses[0]


def test_velocity_is_known_midway_only():
    flow = torch.zeros(1, 2, 16, 16, 4)
    flow[..., 0], flow[..., 2] = -3, 5  # a velocity of 8 output pixels along x
    batch = Batch(
        torch.rand(1, 2, 3, 8, 8),
        torch.tensor([[0.5, 0.25]]),
        torch.rand(1, 2, 3, 16, 16),
        flow,
        flow[..., :2] * 0 + 1,
        context=0,
    )
    right = torch.tensor((4.0, 0.0)).view(1, 2, 1, 1)  # in input pixels
    assert levels_error((right.expand(1, 2, 2, 2), right.expand(1, 2, 4, 4)), batch).item() == pytest.approx(0.00075)
    wrong = torch.zeros(1, 2, 4, 4)
    assert levels_error((wrong, wrong), batch).item() == pytest.approx(0.05 * 1.5 * 4, rel=1e-3)
    other = batch._replace(times=torch.tensor([[0.4, 0.25]]))
    assert levels_error((wrong, wrong), other).item() == 0


@pytest.mark.parametrize("unit", [1, 2])
def test_patches_shrink_above_the_usual_scale(clips, unit):
    """The truth is never larger than at the usual scale, which keeps its share of the batches."""
    recipe = dataclasses.replace(RECIPE, patch=8, context=2, scale=1.5, window=2, photometric=False)
    data = Batches(clips, recipe, 1, 0, scales=(1.0, 3.0), usual=0.5, unit=unit)
    batches = [data[n] for n in range(60)]
    assert 15 <= sum(batch.scale == 1.5 for batch in batches) <= 45
    for batch in batches:
        side = batch.frames.shape[-1] - 2 * batch.context
        assert side % unit == 0
        assert batch.context % unit == 0
        assert batch.truth.shape[-1] == round(side * batch.scale) <= 12 + 3 * unit
        assert batch.flow.shape[2:4] == batch.visible.shape[2:4] == batch.truth.shape[-2:]
    assert {1.0, 3.0} >= {round(batch.scale) for batch in batches} - {2.0}
    assert len({batch.frames.shape[-1] for batch in batches}) > 1


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_context_surrounds_the_patch(clips, scale):
    recipe = dataclasses.replace(RECIPE, context=2, scale=scale, window=2, photometric=False)
    batch = Batches(clips, recipe, 4, 0)[0]
    assert batch.frames.shape[-1] == 12
    assert batch.truth.shape[-1] == round(8 * scale)
    if scale == 1:
        for frames, times, truth in zip(batch.frames, batch.times, batch.truth, strict=True):
            for t, target in zip(times, truth, strict=True):
                torch.testing.assert_close(frames[int(t), :, 2:-2, 2:-2], target, atol=0.01, rtol=0)


def test_labels_of_film_are_its_flow():
    """A picture that moves by (4, -2) pixels from each of three frames to the next."""
    noise = np.random.default_rng(0).random((24, 24))
    small = torch.from_numpy(noise)[None, None]
    texture = F.interpolate(small, (192, 192), mode="bicubic")[0, 0].numpy()
    frames = [texture[48 + 2 * n : 144 + 2 * n, 48 - 4 * n : 144 - 4 * n] for n in range(3)]
    window = np.stack([np.repeat((255 * frame.clip(0, 1)).astype(np.uint8)[..., None], 3, -1) for frame in frames])
    flow, visible = label_flow(window[[0, 2, 1]])
    assert flow.shape == (1, 96, 96, 4)
    inner = (0, slice(16, -16), slice(16, -16))
    assert visible[inner].mean() > 0.9
    known = flow[inner].flatten(0, 1).median(0).values
    torch.testing.assert_close(known, torch.tensor((-4.0, 2.0, 4.0, -2.0)), atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flow_only": True}, "velocity head"),
        ({"levels_weight": 0.1}, "velocity head"),
        ({"recipe": dataclasses.replace(RECIPE, context=4)}, "velocity head"),
    ],
)
def test_what_needs_a_velocity_head_says_so(clips, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        train(fresh(), clips, dataclasses.replace(SMALL, **fields), tmp_path, CPU, 0)


@pytest.mark.parametrize("scales", [None, (1.0, 1.5)])
def test_labels_need_examples_that_dis_can_take(clips, scales):
    recipe = dataclasses.replace(RECIPE, patch=6, scale=1.5, window=2, labels=True)
    with pytest.raises(
        ValueError, match=r"labels need examples of 12x12 pixels or more, and some are (9x9|6x6): enlarge"
    ):
        Batches(clips, recipe, 1, 0, scales=scales)
    Batches(clips, dataclasses.replace(recipe, patch=12), 4, 0, scales=scales)[0]


def test_learning_rate_is_a_cosine_with_restarts():
    options = Options()
    assert options.learning_rate_at(0) == pytest.approx(1e-4)
    assert options.learning_rate_at(75_000) == pytest.approx((1e-4 + 1e-7) / 2)
    assert options.learning_rate_at(149_999) == pytest.approx(1e-7, rel=1e-3)
    assert options.learning_rate_at(150_000) == pytest.approx(1e-4)


def test_loss():
    assert charbonnier(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.0])).item() == pytest.approx(1.5005, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_run_equals_an_unbroken_one(clips, tmp_path, average, workers):
    recipe = dataclasses.replace(RECIPE, candidates=2, synthetic=0.5, largest_motion=4.0)
    options = dataclasses.replace(SMALL, recipe=recipe, average=average, clip_gradient=1.0, flow_weight=0.02)
    losses: list[float] = []
    unbroken = train(fresh(), clips, options, tmp_path / "a", CPU, workers, lambda s: losses.append(s.loss))

    class Stop(Exception):
        pass

    def stop(step):
        if step.iteration == 5:
            raise Stop

    with pytest.raises(Stop):
        train(fresh(), clips, options, tmp_path / "b", CPU, workers, stop)
    again: list[float] = []
    resumed = train(STIF(CONFIG), clips, options, tmp_path / "b", CPU, workers, lambda s: again.append(s.loss))
    assert again == losses[4:]
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.slow
def test_training_learns(clips, tmp_path):
    options = dataclasses.replace(SMALL, stage_one=30, stage_two=0, batch=4, period=60, save_every=100)
    losses: list[float] = []
    train(fresh(), clips, options, tmp_path, CPU, 0, lambda s: losses.append(s.loss))
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


@pytest.mark.slow
def test_flow_is_learnt_from_known_motion(clips):
    """One batch, again and again: the first in which things move by half a pixel or more."""
    recipe = dataclasses.replace(RECIPE, synthetic=1.0, largest_motion=2.0)
    data = Batches(clips, recipe, 2, 0)
    batch = next(data[n] for n in range(20) if flow_error(torch.zeros_like(data[n].flow), data[n]) > 0.5)
    model = fresh()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    errors = []
    for _ in range(25):
        error = flow_error(FastForm(model, "float32")(batch.frames, batch.times, (16, 16)).flow, batch)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.slow
def test_mixed_precision_runs(clips, tmp_path):
    options = dataclasses.replace(SMALL, precision="bfloat16")
    losses: list[float] = []
    model = train(fresh(), clips, options, tmp_path, CPU, 0, lambda s: losses.append(s.loss))
    assert np.isfinite(losses).all()
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
def test_bfloat16_has_nearly_the_gradient_of_float32(clips):
    batch = Batches(clips, RECIPE, 2, seed=0)[0]
    gradients = []
    for precision in ("float32", "bfloat16"):
        model = fresh()
        torch.nn.init.normal_(model.implicit_functions.encode_imnet.linears[-1].weight, std=0.01)  # not zero
        made = FastForm(model, precision)(batch.frames, batch.times, (16, 16))
        charbonnier(made.rgb, batch.truth).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, exact in gradients[0].items():
        assert (gradients[1][name] - exact).norm() <= 0.08 * exact.norm(), name


@pytest.mark.slow
def test_shares_of_the_learning_rate(clips, tmp_path):
    """The first step of Adam moves each parameter by its share of the rate, also where a run resumes with another."""
    options = dataclasses.replace(SMALL, stage_one=1, stage_two=0, siren_share=0.5, warm_up=4)
    model = fresh()
    share = {id(p): group["share"] for group in parameter_groups(model, 0.5) for p in group["params"]}
    assert set(share) == {id(p) for p in model.parameters()}
    functions = model.implicit_functions
    layers = [model.encoder.conv_first, *functions.encode_imnet.linears, functions.flow_imnet.linears[-1]]
    assert [share[id(layer.weight)] for layer in layers] == [1, 0.5, 0.5, 0.5, 0.125, 0.5, 0.5]

    def moved(options):
        last = functions.encode_imnet.linears[-1].weight
        before = last.detach().clone()
        train(model, clips, options, tmp_path, CPU, 0)
        return float((last - before).detach().abs().max())

    rate = options.learning_rate_at(0)
    assert rate == pytest.approx(1e-3 / 4, rel=1e-3)
    assert moved(options) == pytest.approx(rate / 2, rel=0.02)
    assert moved(dataclasses.replace(options, stage_one=2, siren_share=0.0)) == 0


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_moves_nothing(clips, tmp_path, monkeypatch, caplog):
    from stif_rt.training import train as module

    def bottomless(output, truth):
        return 1 + torch.sqrt((output - output.detach()).abs().sum())  # 1, with an infinite slope

    monkeypatch.setattr(module, "charbonnier", bottomless)
    model = train(fresh(), clips, SMALL, tmp_path, CPU, 0)
    for name, value in fresh().state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert "iteration 7: the gradient is nan" in caplog.text


def test_a_loss_that_is_not_finite_ends_the_run(clips, tmp_path):
    model = fresh()
    model.encoder.conv_first.weight.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="iteration 1 is nan"):
        train(model, clips, SMALL, tmp_path, CPU, 0)
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.slow
def test_another_configuration_does_not_resume(clips, tmp_path):
    train(fresh(), clips, SMALL, tmp_path, CPU, 0)
    with pytest.raises(ValueError, match="another configuration"):
        train(STIF(Config(**TINY)), clips, SMALL, tmp_path, CPU, 0)


def test_both_stages_are_checked_before_the_first(clips, tmp_path):
    options = dataclasses.replace(SMALL, min_scale=1.0, max_scale=20.0)
    with pytest.raises(ValueError, match="no clip has 4 frames"):
        train(fresh(), clips, options, tmp_path, CPU, 0, lambda step: pytest.fail("an iteration was run"))


def test_patch_must_fit_the_pyramid(clips, tmp_path):
    options = dataclasses.replace(SMALL, recipe=dataclasses.replace(RECIPE, patch=10))
    with pytest.raises(ValueError, match="multiples of 4, not 10"):
        train(fresh(), clips, options, tmp_path, CPU, 0)


COMMAND = (
    "train {data} --output {output} --config stif-s-dcn --cache {cache} --patch 8 --scale 2 --max-scale 2 --window 3 "
    "--batch 2 --stage-one 2 --stage-two 1 --save-every 2 --workers 0 --device cpu --validation {data} --tensorboard "
    "--candidates 2 --synthetic 0.5 --pictures {pictures} --largest-motion 3 --flow-weight 0.02"
)


@pytest.mark.slow
def test_command_line(clips, tmp_path):
    output = tmp_path / "run"
    pictures = write_images(tmp_path / "pictures", [picture(0, (30, 40))])
    names = {"data": tmp_path / "v.mp4", "output": output, "cache": tmp_path / "cache", "pictures": pictures}
    arguments = COMMAND.format(**names).split()
    done = subprocess.run(
        [sys.executable, "-m", "stif_rt.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "over bicubic" in done.stderr
    assert "loss" in done.stderr
    assert load_model(output / "stif-s-dcn.safetensors").config.residual
    assert list(output.glob("events.*"))
    with (output / "validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["iteration"] for row in rows} == {"2", "3"}
    assert {row["frames"] for row in rows} == {"first and last", "middle", "average"}
    assert all(0 < float(row["bicubic"]) <= 100 for row in rows)


def test_curve_joins_runs(tmp_path):
    for name, gain in (("a", 0.25), ("b", 0.5)):
        (tmp_path / name).mkdir()
        rows = ["iteration,windows,frames,psnr,bicubic"]
        for iteration in (10, 20):
            rows += [f"{iteration},textured,{frames},{30 + gain},30" for frames in ("first and last", "middle")]
            rows += [f"{iteration},smooth,middle,50,60"]
        (tmp_path / name / "validation.csv").write_text("\n".join(rows))
    gains = training_curve.read([tmp_path / "a", tmp_path / "b"])
    assert gains == {frames: {10: 0.25, 20: 0.25, 30: 0.5, 40: 0.5} for frames in ("first and last", "middle")}
    training_curve.main([str(tmp_path / "a"), "--output", str(tmp_path / "curve")])
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.slow
def test_two_processes_average_their_gradients(clips, tmp_path):
    """One step of two processes with one window each is one step on the mean of both windows' gradients."""
    output = tmp_path / "run"
    arguments = (
        f"train {tmp_path / 'v.mp4'} --output {output} --config stif-s-dcn --cache {tmp_path / 'cache'} --device cpu "
    )
    arguments += "--patch 8 --scale 2 --window 3 --batch 2 --stage-one 1 --stage-two 0 --workers 0"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    launch += ["--rdzv-endpoint=localhost:0", "-m", "stif_rt.cli", *arguments.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr

    torch.manual_seed(0)
    model = STIF(CONFIGS["stif-s-dcn"]).train()
    data = Batches(clips, Recipe(patch=8, scale=2.0, window=3), 1, 0)
    for batch in (data[0], data[1]):
        made = FastForm(model, "float32")(batch.frames, batch.times, (16, 16))
        (charbonnier(made.rgb, batch.truth) / 2).backward()
    torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-15).step()
    actual = load_model(output / "stif-s-dcn.safetensors").state_dict()
    for name, value in model.state_dict().items():
        # Adam's first step is the gradient's sign: only where the gradient is nothing but rounding may it differ
        differs = (actual[name] - value).abs() > 1e-6
        assert differs.float().mean() < 0.02, name


def run_command(*arguments):
    command = [sys.executable, "-m", "stif_rt.cli", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_recipe_file_gives_the_options(clips, tmp_path):
    """What is given beside it counts more; a finished run that is resumed says so."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'config = "stif-s-dcn"\npatch = 8\nscale = 2\nmax_scale = 2.0\nwindow = 3\nbatch = 1\nstage_one = 7\n'
        'stage_two = 0\nworkers = 0\ndevice = "cpu"\n'
    )
    arguments = (tmp_path / "v.mp4", "--output", tmp_path / "run", "--recipe", recipe, "--stage-one", 1)
    done = run_command(*arguments, "--cache", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "1 of 1: loss 0." in done.stderr
    assert "s an iteration" in done.stderr
    again = run_command(*arguments, "--cache", tmp_path / "cache")
    assert again.returncode == 0, again.stderr
    assert "finished run of 1 iterations" in " ".join(again.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.toml")))
def test_bundled_recipes_train_the_bundled_weights_by_name(tmp_path, recipe):
    """One iteration of each stage that the recipe has."""
    images = np.random.default_rng(0).integers(0, 256, (9, 100, 120, 3), dtype=np.uint8)
    write_images(tmp_path / "clip", list(images))
    config = recipe.removesuffix("-flow")
    options = ("--start-from", config, "--cache", tmp_path / "cache", "--device", "cpu")
    small = ("--patch", 16, "--context", 0, "--batch", 1, "--workers", 0, "--stage-one", 1, "--warm-up", 0)
    again = () if recipe != config else ("--stage-two", 1)
    run = (tmp_path / "clip", "--output", tmp_path / "run", "--recipe", recipe, *options, *small, *again)
    done = run_command(*run)
    assert done.returncode == 0, done.stderr
    assert f"1 of {1 + len(again) // 2}: loss" in done.stderr
    assert load_model(tmp_path / "run" / f"{config}.safetensors").config == CONFIGS[config]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1e-4", "unknown key 'learning_rat'; 'learning_rate'?"),
        ('batch = "many"', "batch = 'many'"),
        ("window = 1", "window = 1"),
        ("batch = [1, 2]", "batch = [1, 2]"),
        ("batch =", "cannot be read"),
        ('precision = "float8"', "precision = 'float8'"),
        ('data = ["x"]', "unknown key 'data'"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(tmp_path, text, message):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    commands = typer.Typer()
    commands.command()(train_command)
    arguments = [tmp_path, "--output", tmp_path / "run", "--recipe", recipe]
    done = CliRunner().invoke(commands, [str(argument) for argument in arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_an_old_pytorch_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__version__", "2.5.0+cpu")
    with pytest.raises(RuntimeError, match=r"training needs PyTorch 2\.9 or later, and this is 2\.5\.0"):
        train(STIF(Config(**TINY)), [], Options(), tmp_path, torch.device("cpu"))
