"""A render divided among processes equals the same render by one."""

import json
from fractions import Fraction

import pytest
from helpers.command_line import call, read
from helpers.videos import X264_STEPS, picture, same_pictures, write_images, write_video

from stif_rt.model.checkpoints import save_model
from stif_rt.video.job import make_job
from stif_rt.video.options import Cancellation, Cancelled, RenderOptions
from stif_rt.video.run import render_video
from stif_rt.video.shards import count_frames
from stif_rt.video.workspace import workspace_path

SIZE = (36, 64)
OPTIONS = ["--scale", 1.5, "--time-scale", 3, "--segment-frames", 4]


@pytest.fixture
def folder(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model, tmp_path / "w.safetensors")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments, status=0):
        ended, _, err = call(monkeypatch, capsys, *arguments)
        assert ended == status, err
        return err

    return run


def images(path):
    return [frame.image for frame in read(path)[1]]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "target"), [("video", "out.mkv"), ("video", "out.mp4"), ("images", "out")])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_in_any_order_equal_one_run(folder, run, kind, target, order):
    pictures = [picture(n, SIZE) for n in range(6)]
    if kind == "video":
        write_video(folder / "in.mp4", pictures, Fraction(10), sound=True)
    else:
        write_images(folder / "in", pictures)
    source = "in.mp4" if kind == "video" else "in"
    common = ["--weights", "w.safetensors", *OPTIONS, *(["--codec", "ffv1"] if target == "out.mkv" else [])]
    run("render", source, f"whole{target}", *common)
    message = run("plan", source, target, *common, "--shards", 3, "--plan", "p.json")
    assert "18 frames in 3 shards" in message
    for shard in order:
        assert f"{(4, 8, 6)[shard]} frames are finished" in run("render", "--plan", "p.json", "--shard", shard)
    message = run("join", "p.json")
    assert f"wrote 18 frames to {folder / target}" in message
    ours, whole = images(folder / target), images(folder / f"whole{target}")
    assert len(ours) == len(whole) == 18
    assert same_pictures(ours, whole, X264_STEPS if target == "out.mp4" else 0)
    assert not workspace_path(folder / target).exists()


def test_a_finished_shard_is_not_rendered_again(folder, run, monkeypatch):
    write_images(folder / "in", [picture(n, SIZE) for n in range(3)])
    run("plan", "in", "out", "--weights", "w.safetensors", *OPTIONS, "--shards", 1)
    run("render", "--plan", "out.plan.json", "--shard", 0)
    monkeypatch.setattr("stif_rt.video.shards.render_range", lambda *arguments: pytest.fail("rendered again"))
    assert "9 frames are finished" in run("render", "--plan", "out.plan.json", "--shard", 0)


@pytest.mark.slow
def test_shards_go_on_with_what_one_run_has_finished(folder, run):
    """Whose description says which dtype it took; that of a plan leaves it open."""
    write_images(folder / "in", [picture(n, SIZE) for n in range(6)])
    cancel = Cancellation()
    options = {"scale": 1.5, "time_scale": "3", "segment_frames": 4, "weights": "w.safetensors"}
    with pytest.raises(Cancelled):
        render_video("in", "out", progress=lambda progress: cancel.after_segment(), cancel=cancel, **options)
    first = (workspace_path(folder / "out") / "000000").stat().st_ino
    run("plan", "in", "out", "--weights", "w.safetensors", *OPTIONS, "--shards", 2)
    run("render", "--plan", "out.plan.json", "--shard", 0)
    assert (workspace_path(folder / "out") / "000000").stat().st_ino == first
    run("render", "--plan", "out.plan.json", "--shard", 1)
    assert "wrote 18 frames" in run("join", "out.plan.json")


def test_shards_refuse_the_segments_of_another_render(folder, run):
    write_images(folder / "in", [picture(n, SIZE) for n in range(3)])
    run("plan", "in", "out", "--weights", "w.safetensors", *OPTIONS, "--shards", 1)
    run("plan", "in", "out", "--weights", "w.safetensors", "--scale", 2, "--shards", 1, "--plan", "other.json")
    run("render", "--plan", "out.plan.json", "--shard", 0)
    said = run("render", "--plan", "other.json", "--shard", 0, status=1)
    assert "holds segments of another render: scale was 1.5, is 2.0" in said


def test_bundled_weights_are_planned_by_name(folder, run):
    """Other machines have them at another place."""
    write_images(folder / "in", [picture(n, SIZE) for n in range(3)])
    run("plan", "in", "out", "--scale", 2)
    assert json.loads((folder / "out.plan.json").read_text())["weights"] == "stif-s"
    run("plan", "in", "out", "--weights", "w.safetensors", "--plan", "other.json")
    assert json.loads((folder / "other.json").read_text())["weights"] == str(folder / "w.safetensors")


@pytest.mark.slow
def test_local_processes_equal_one_run(folder, run):
    write_video(folder / "in.mp4", [picture(n, SIZE) for n in range(6)], Fraction(10), sound=True)
    common = ["--weights", "w.safetensors", *OPTIONS, "--device", "cpu", "--codec", "ffv1"]
    run("render", "in.mp4", "whole.mkv", *common)
    assert "wrote 18 frames" in run("render", "in.mp4", "out.mkv", *common, "--jobs", 2)
    assert same_pictures(images(folder / "out.mkv"), images(folder / "whole.mkv"))
    assert sorted(path.name for path in folder.iterdir()) == ["in.mp4", "out.mkv", "w.safetensors", "whole.mkv"]


@pytest.mark.slow
def test_what_the_processes_warn_of_is_said_once(folder, run):
    write_images(folder / "in", [picture(n, SIZE) for n in range(4)])
    (folder / "in" / "002.png").write_bytes(b"broken")
    message = run("render", "in", "out", "--weights", "w.safetensors", *OPTIONS, "--jobs", 2, status=3)
    assert message.count("warning: 002.png: the file cannot be read as an image") == 1


@pytest.mark.slow
def test_a_process_that_fails_is_explained(folder, run):
    write_images(folder / "in", [picture(n, SIZE) for n in range(3)])
    message = run("render", "in", "out", "--weights", "w.safetensors", "--jobs", 2, "--kernels", "magic", status=1)
    assert "2 of 2 processes failed" in message
    assert "magic" in message
    assert sorted(path.name for path in folder.iterdir()) == ["in", "w.safetensors"]


@pytest.fixture
def planned(folder, run):
    write_images(folder / "in", [picture(n, SIZE) for n in range(3)])
    run("plan", "in", "out", "--weights", "w.safetensors", *OPTIONS, "--shards", 2)
    return folder / "out.plan.json"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["render", "--plan", "out.plan.json", "--shard", 2], 1, "the plan has shards 0 to 1"),
        (["render", "--plan", "out.plan.json"], 2, "--plan needs --shard"),
        (["render", "in", "out", "--plan", "out.plan.json", "--shard", 0], 2, "no input or output"),
        (["render", "--plan", "w.safetensors", "--shard", 0], 1, "is not a plan"),
        (["render", "--plan", "nothing.json", "--shard", 0], 1, "nothing.json"),
        (["join", "out.plan.json"], 1, "3 of 3 segments are not rendered yet"),
        (["plan", "in", "out", "--shards", 0], 2, "shards"),
        (["plan", "in", "out", "--shards", 2], 1, "out.plan.json exists; give --overwrite"),
        (["plan", "nowhere", "other"], 1, "nowhere does not exist"),
    ],
)
def test_mistakes_are_explained(planned, run, arguments, status, message):
    assert message in run(*arguments, status=status)


def test_input_that_has_changed_is_noticed(planned, run, folder):
    write_images(folder / "more", [picture(9, SIZE)])
    (folder / "more" / "000.png").rename(folder / "in" / "009.png")
    assert "is not what it was when the plan was made" in run("render", "--plan", planned, "--shard", 0, status=1)


def test_damaged_plan(planned, run):
    plan = json.loads(planned.read_text())
    for damaged in ("", "[]", json.dumps(plan | {"format": 99}), json.dumps({"format": 1})):
        planned.write_text(damaged)
        assert "is not a plan" in run("join", planned, status=1)


@pytest.mark.parametrize("options", [{}, {"fps": 7}, {"start": 0.15}, {"end": 0.33, "time_scale": 4}, {"start": 0.39}])
def test_frames_are_counted_exactly(folder, options):
    write_video(folder / "in.mkv", [picture(n) for n in range(4)], times=[Fraction(n, 1000) for n in (0, 70, 250, 400)])
    job = make_job(folder / "in.mkv", folder / "out.mkv", RenderOptions(**options))
    assert count_frames(job) == sum(len(pair.times) for pair in job.pairs()) > 0
