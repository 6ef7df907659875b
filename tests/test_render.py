"""The stages of a render, with a stand-in for the network where it does not matter."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.videos import picture, write_images

from stif_rt.runtime import Runtime
from stif_rt.video.colour import Picture, from_image, to_image
from stif_rt.video.job import make_job
from stif_rt.video.layout import make_layout
from stif_rt.video.options import RenderOptions
from stif_rt.video.plan import plan
from stif_rt.video.reader import Frame
from stif_rt.video.render import PAIRS_AHEAD, PICTURES_AHEAD, NetworkRenderer, pictures

SIZE = (18, 32)


def frames(count):
    return [Frame(Fraction(n), Fraction(n + 1), from_image(picture(n))) for n in range(count)]


def stored(picture):
    return {"rgb": torch.from_numpy(to_image(picture))}


def blend(before, after, times):
    for t in times:
        yield stored(Picture((1 - t) * before.rgb + t * after.rgb))


def arrays(images):
    return [image["rgb"].numpy() for image in images]


def test_pictures_come_in_order():
    pairs = plan(frames(5), Fraction(3))
    expected = [image for p in pairs for image in arrays(blend(p.before.picture, p.after.picture, p.times))]
    out = arrays(pictures(plan(frames(5), Fraction(3)), blend))
    assert len(out) == 15
    assert all(np.array_equal(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize(("first", "last"), [(0, None), (0, 4), (3, 11), (7, None), (14, 15), (15, None), (40, None)])
def test_any_part_equals_that_part_of_the_whole(first, last):
    """Also where a part begins or ends between two input frames."""
    whole = arrays(pictures(plan(frames(5), Fraction(3)), blend))
    part = arrays(pictures(plan(frames(5), Fraction(3), first=first, stop=last), blend))
    assert len(part) == len(whole[first:last])
    assert all(np.array_equal(a, b) for a, b in zip(part, whole[first:last], strict=True))


def test_few_frames_are_in_memory():
    """Frames are read only when those before them have been written."""
    read, ahead = 0, []

    def source():
        nonlocal read
        for frame in frames(60):
            read += 1
            yield frame

    for written, _ in enumerate(pictures(plan(source(), Fraction(1)), blend), 1):
        ahead.append(read - written)
    assert written == 60
    assert max(ahead) <= PAIRS_AHEAD + PICTURES_AHEAD + 8  # besides the queues: what each stage has in hand


@pytest.mark.parametrize("stage", ["decode", "network"])
def test_errors_of_any_stage_arrive(stage):
    def source():
        yield from frames(3)
        if stage == "decode":
            raise ValueError("cannot decode")

    def render_pair(before, after, times):
        yield from blend(before, after, times)
        if stage == "network":
            raise ValueError("cannot render")

    with pytest.raises(ValueError, match="cannot"):
        list(pictures(plan(source(), Fraction(2)), render_pair))


@pytest.fixture(scope="module")
def runtime(tiny_model):
    return Runtime.from_model(copy.deepcopy(tiny_model))


def rendered(runtime, layout, times, **options):
    render_pair = NetworkRenderer(runtime, layout, stored, **options)
    return list(render_pair(from_image(picture(0)), from_image(picture(1)), times))


def test_input_frames_are_kept_at_their_own_times(runtime):
    layout = make_layout(SIZE, scale=1)
    runtime.encode(picture(0), picture(1))
    network = [runtime.render(t, scale=1, output="uint8").numpy() for t in (0.0, 0.5, 1.0)]
    kept = rendered(runtime, layout, [0.0, 0.5, 1.0, 1.0])
    assert kept[3] is kept[2]
    kept = arrays(kept)
    assert np.array_equal(kept[0], picture(0))
    assert np.array_equal(kept[1], network[1])
    assert np.array_equal(kept[2], picture(1))
    everything = arrays(rendered(runtime, layout, [0.0, 0.5, 1.0], keep_frames=False))
    assert all(np.array_equal(a, b) for a, b in zip(everything, network, strict=True))
    assert not np.array_equal(network[0], picture(0))


def test_pairs_without_a_picture_of_their_own_are_not_encoded(monkeypatch, runtime):
    monkeypatch.setattr(runtime, "encode", lambda *frames: pytest.fail("needless"))
    assert np.array_equal(arrays(rendered(runtime, make_layout(SIZE, scale=1), [0.0, 0.0]))[1], picture(0))


@pytest.mark.parametrize(
    "given",
    [
        {"scale": 2},
        {"scale": 2, "region": (10, 4, 20, 12)},
        {"width": 40, "height": 40},
        {"width": 40, "height": 40, "region": (6, 2, 20, 20)},
        {"width": 40, "height": 40, "fit": "cover"},
        {"width": 40, "height": 40, "fit": "stretch"},
        {"scale": 1, "region": (3, 5, 7, 9)},
    ],
)
def test_layouts_show_what_they_promise(runtime, given):
    layout = make_layout(SIZE, **given)
    runtime.encode(picture(0), picture(1))
    whole = runtime.render(0.5, size=layout.picture, output="uint8").numpy()
    y, x, h, w = layout.region
    expected = np.zeros((*layout.frame, 3), np.uint8)
    expected[layout.offset[0] :, layout.offset[1] :][:h, :w] = whole[y : y + h, x : x + w]
    (out,) = arrays(rendered(runtime, layout, [0.5]))
    assert tuple(out.shape) == (*layout.frame, 3)
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_transparent_pictures_are_rendered_on_black_and_their_alpha_beside(runtime):
    first, second = from_image(picture(0)), from_image(picture(1))
    matte = torch.linspace(0.2, 1, SIZE[1]).expand(SIZE)
    layout = make_layout(SIZE, scale=2)
    render_pair = NetworkRenderer(runtime, layout, lambda rendered: {"rgb": rendered.rgb, "alpha": rendered.alpha})
    (out,) = render_pair(Picture(first.rgb, matte), second, [0.25])
    on_black = runtime.encode(first.rgb * matte, second.rgb).render(0.25, scale=2)
    alpha = runtime.encode(matte.expand(3, -1, -1), torch.ones(3, *SIZE)).render(0.25, scale=2).mean(0)
    torch.testing.assert_close(out["alpha"], alpha)
    torch.testing.assert_close(out["rgb"], (on_black / alpha.clamp(min=1e-6)).clamp(0, 1))
    (out,) = render_pair(first, second, [0.25])
    assert out["alpha"] is None
    torch.testing.assert_close(out["rgb"], runtime.encode(first.rgb, second.rgb).render(0.25, scale=2))


def test_grey_stays_grey(runtime):
    pair = [Picture(from_image(picture(n)).rgb[:1].expand(3, -1, -1)) for n in range(2)]
    render_pair = NetworkRenderer(runtime, make_layout(SIZE, scale=2), lambda rendered: {"rgb": rendered.rgb})
    (out,) = render_pair(*pair, [0.5])
    network = runtime.encode(*(p.rgb for p in pair)).render(0.5, scale=2)
    assert not torch.equal(network[0], network[1])
    assert torch.equal(out["rgb"], network.mean(0).expand(3, -1, -1))


@pytest.mark.parametrize("options", [{}, {"end": 0.45}, {"start": 0.15, "end": 0.45}])
@pytest.mark.parametrize(("first", "stop"), [(0, 3), (2, 7), (5, None), (4, 100)])
def test_parts_of_a_job_are_those_of_the_whole(tmp_path, options, first, stop):
    source = write_images(tmp_path / "in", [picture(n) for n in range(6)])
    job = make_job(source, tmp_path / "out", RenderOptions(input_fps=10, time_scale=2, **options))
    whole = [(pair.before.start, t) for pair in job.pairs() for t in pair.times]
    part = [(pair.before.start, t) for pair in job.pairs(first, stop) for t in pair.times]
    assert part == whole[first:stop]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "stop"), [(0, 30), (17, 41), (70, None), (31, 33)])
@pytest.mark.parametrize("max_gap", [0.35, 1])
def test_parts_of_a_job_without_repeated_pictures(tmp_path, max_gap, first, stop):
    """Runs of 1 to 12 of the same picture, 0.1 to 1.2 s long."""
    shown = [n for n in range(12) for _ in range(n + 1)]
    source = write_images(tmp_path / "in", [picture(3 * n) for n in shown])
    options = RenderOptions(input_fps=10, time_scale=1, drop_duplicates=True, max_gap=max_gap, cuts="none")
    job = make_job(source, tmp_path / "out", options)
    whole = [(pair.before.start, pair.after.start, t) for pair in job.pairs() for t in pair.times]
    assert len(whole) == len(shown)
    assert {pair[0] for pair in whole} <= {Fraction(n * (n + 1) // 2, 10) for n in range(12)}
    part = [(pair.before.start, pair.after.start, t) for pair in job.pairs(first, stop) for t in pair.times]
    assert [a[0] + (a[1] - a[0]) * Fraction(a[2]) for a in part] == [
        a[0] + (a[1] - a[0]) * Fraction(a[2]) for a in whole[first:stop]
    ]
