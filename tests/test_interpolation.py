"""``interpolate`` and ``render_video``, as other programs call them."""

import copy
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.command_line import read
from helpers.videos import picture, write_images, write_video

import stif_rt
from stif_rt import Cancellation, Cancelled, Runtime, interpolate, render_video

SIZE = (18, 32)


@pytest.fixture(scope="module")
def runtime(tiny_model):
    return Runtime.from_model(copy.deepcopy(tiny_model))


def clip(count):
    return [picture(n, SIZE) for n in range(count)]


def test_frames_between_are_those_of_the_runtime(runtime):
    out = list(interpolate(clip(3), time_scale=2, scale=2, runtime=runtime))
    expected = []
    for before, after in ((0, 1), (1, 2)):
        pair = runtime.encode(picture(before, SIZE), picture(after, SIZE))
        expected += list(pair.render([0.0, 0.5], scale=2, output="uint8"))
    expected += [pair.render(1.0, scale=2, output="uint8")] * 2
    assert len(out) == 6
    assert all(isinstance(image, np.ndarray) and image.dtype == np.uint8 for image in out)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize("keep", [True, False])
def test_frames_of_the_input_are_kept_where_the_size_stays(runtime, keep):
    out = list(interpolate(clip(4), time_scale=2, keep_frames=keep, runtime=runtime))
    assert len(out) == 8
    assert all(np.array_equal(out[2 * n], picture(n, SIZE)) == keep for n in range(4))


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "stif-i"), ({"scale": 1.25}, "stif-i"), ({"scale": 2}, "stif-s"), ({"size": (20, 36)}, "stif-i"),
     ({"size": (36, 64)}, "stif-s"), ({"size": (20, 72), "fit": "cover"}, "stif-s"),
     ({"size": (20, 72), "fit": "contain"}, "stif-i")],
)  # fmt: skip
def test_bundled_weights_are_those_that_fit_the_scale(options, name):
    made = interpolate(iter(clip(2)), time_scale=2, **options)
    expected = interpolate(clip(2), time_scale=2, weights=name, **options)
    assert all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize(("scale", "name"), [(1, "stif-i"), (2, "stif-s")])
def test_render_video_takes_the_bundled_weights_that_fit_the_scale(tmp_path, scale, name):
    write_video(tmp_path / "in.mp4", clip(2))
    for target, weights in (("default", None), ("named", name)):
        render_video(tmp_path / "in.mp4", tmp_path / target, time_scale=2, scale=scale, weights=weights)
    for path in sorted((tmp_path / "named").iterdir()):
        assert path.read_bytes() == (tmp_path / "default" / path.name).read_bytes()


def test_no_frames_of_a_size_are_no_frames():
    with pytest.raises(ValueError, match="frame"):
        list(interpolate([], size=(8, 8)))


def test_every_kind_of_frame(runtime):
    """Arrays give arrays, tensors give tensors, with one result."""
    arrays = clip(2)
    planes = [np.moveaxis(image, -1, 0).astype(np.float32) / 255 for image in arrays]
    kinds = [arrays, [torch.from_numpy(image) for image in arrays], planes, [torch.from_numpy(p) for p in planes]]
    results = [list(interpolate(kind, fps=60, input_fps=30, runtime=runtime)) for kind in kinds]
    for kind, result in zip(kinds, results, strict=True):
        assert isinstance(result[0], type(kind[0]))
        assert all(np.array_equal(np.asarray(a), b) for a, b in zip(result, results[0], strict=True))
    floats = list(interpolate(arrays, fps=60, input_fps=30, output="float32", runtime=runtime))
    assert floats[1].shape == (3, *SIZE)
    assert np.abs(np.moveaxis(floats[1], 0, -1) * 255 - results[0][1]).max() <= 0.51


def test_frames_are_taken_as_they_are_needed(runtime):
    count = 0

    def endless():
        nonlocal count
        while True:
            count += 1
            yield picture(count, SIZE)

    out = interpolate(endless(), time_scale=1, runtime=runtime)
    for _ in range(5):
        next(out)
    assert count < 12


def test_uneven_times_and_cuts(runtime):
    images = [picture(0, SIZE), picture(1, SIZE), 255 - picture(2, SIZE)]
    options = {"times": [0, "1/10", 0.3], "fps": 20, "runtime": runtime}
    out = list(interpolate(images, cuts=[0.3], **options))
    assert len(out) == 10  # the last frame is as long as the one before it
    assert np.array_equal(out[0], images[0])
    assert np.array_equal(out[2], images[1])
    assert all(np.array_equal(frame, images[1]) for frame in out[2:4])  # held or cut, not mixed
    assert all(np.array_equal(frame, images[2]) for frame in out[6:])
    mixed = list(interpolate(images, cuts="none", **options))
    assert not np.array_equal(mixed[4], images[1])
    assert not np.array_equal(mixed[4], images[2])


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ([], {}, "no frames"),
        ([picture(0, SIZE), picture(1, (20, 20))], {}, "frame 0 and frame 1 are 32x18 and 20x20"),
        (clip(2), {"times": [0, 0]}, "times must ascend"),
        (clip(2), {"times": [0]}, "more frames than times"),
        (clip(2), {"fps": "fast"}, "fast: give a number"),
        (clip(2), {"scale": 2, "size": (4, 4)}, "either scale or size"),
        (clip(2), {"cuts": "some"}, "cuts must be"),
        (clip(2), {"output": "int4"}, "output is"),
        ([np.full((3, *SIZE), 7.0)], {}, "frame 0 has values from 7 to 7"),
        (np.zeros((1, 2, *SIZE, 3), np.uint8), {}, "frame 0 is a batch"),
    ],
)
def test_mistakes_are_explained(runtime, frames, options, message):
    with pytest.raises(ValueError, match=message):
        list(interpolate(frames, runtime=runtime, **options))


def test_render_video_tells_of_its_progress_and_warnings(runtime, tmp_path):
    source = write_images(tmp_path / "in", clip(4))
    (source / "002.png").write_bytes(b"broken")
    seen = []
    done = render_video(source, tmp_path / "out.mkv", scale=2, fps=48, runtime=runtime, progress=seen.append)
    assert (done.output, done.frames, done.size, done.rate) == (tmp_path / "out.mkv", 8, (36, 64), 48)
    assert [p.frames for p in seen] == list(range(1, 9))
    assert {p.stage for p in seen} == {"rendering"}
    assert [(notice.text, notice.places) for notice in done.warnings] == [
        ("the file cannot be read as an image; it is left out", ["002.png"])
    ]
    assert len(read(tmp_path / "out.mkv")[1]) == 8


@pytest.mark.parametrize("segment", [False, True])
def test_render_video_can_be_cancelled_and_resumed(runtime, tmp_path, segment):
    source = write_video(tmp_path / "in.mp4", clip(9), Fraction(10))
    cancel = Cancellation()

    def stop(progress):
        if progress.frames == 5:
            (cancel.after_segment if segment else cancel.now)()

    options = {"scale": 1, "segment_frames": 4, "runtime": runtime}
    with pytest.raises(Cancelled):
        render_video(source, tmp_path / "out.mp4", progress=stop, cancel=cancel, **options)
    assert not (tmp_path / "out.mp4").exists()
    finished = sorted(path.name for path in (tmp_path / "out.mp4.segments").glob("0*"))
    assert finished == ["000000.mp4", "000001.mp4"][: 1 + segment]
    assert render_video(source, tmp_path / "out.mp4", resume=True, **options).frames == 9
    assert len(read(tmp_path / "out.mp4")[1]) == 9


def test_render_video_that_is_cancelled_before_it_starts(runtime, tmp_path):
    source = write_images(tmp_path / "in", clip(2))
    cancel = Cancellation()
    cancel.after_segment()
    with pytest.raises(Cancelled):
        render_video(source, tmp_path / "out.mp4", runtime=runtime, cancel=cancel)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_several_renders_at_once(runtime, tmp_path):
    """One runtime may serve several threads."""
    source = write_images(tmp_path / "in", clip(3))
    results = {}

    def run(name):
        results[name] = render_video(source, tmp_path / name, scale=2, time_scale=3, runtime=runtime).frames

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"a": 9, "b": 9}
    images = [[frame.image for frame in read(tmp_path / name)[1]] for name in ("a", "b")]
    assert all(np.array_equal(a, b) for a, b in zip(*images, strict=True))


def test_unknown_options_are_errors(tmp_path):
    with pytest.raises(TypeError, match="sclae"):
        render_video(tmp_path, tmp_path / "out.mp4", sclae=2)


def test_public_names_exist():
    for name in stif_rt.__all__:
        assert getattr(stif_rt, name) is not None
    assert set(stif_rt.__all__) <= set(dir(stif_rt))
    with pytest.raises(AttributeError, match="nonsense"):
        stif_rt.nonsense  # noqa: B018
