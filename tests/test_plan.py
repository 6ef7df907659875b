from fractions import Fraction

import numpy as np
import pytest

from stif_rt.video.plan import plan
from stif_rt.video.reader import Frame
from stif_rt.video.scenes import is_cut, thumbnail

GREY = np.full((8, 8, 3), 100, np.uint8)


def frames(starts, images=None):
    starts = [Fraction(s) for s in starts]
    ends = [*starts[1:], starts[-1] + Fraction(1, 10)]
    images = images or [GREY] * len(starts)
    return [Frame(*parts) for parts in zip(starts, ends, images, strict=True)]


def shown(pairs):
    """When, on the input's time axis, each output frame shows the scene."""
    return [float(p.before.start + (p.after.start - p.before.start) * Fraction(t)) for p in pairs for t in p.times]


@pytest.mark.parametrize(
    "rate", [Fraction(5), Fraction(10), Fraction(80), Fraction(60000, 1001), Fraction(24000, 1001)]
)
@pytest.mark.parametrize("origin", ["0", "7/3"])
def test_output_times_are_evenly_spaced(rate, origin):
    clip = frames([Fraction(origin) + Fraction(n, 10) for n in range(9)])
    times = shown(plan(clip, rate))
    assert len(times) == -(-Fraction(9, 10) * rate // 1)
    expected = [min(float(Fraction(origin) + k / rate), float(clip[-1].start)) for k in range(len(times))]
    np.testing.assert_allclose(times, expected, atol=1e-12)


def test_input_times_need_not_be_even():
    clip = frames(["0", "1/10", "1/2", "11/20"])
    times = shown(plan(clip, Fraction(20)))
    np.testing.assert_allclose(times, [min(k / 20, 0.55) for k in range(13)], atol=1e-12)


def test_input_frames_are_hit_exactly():
    pairs = list(plan(frames([Fraction(n * 1001, 24000) for n in range(5)]), Fraction(48000, 1001)))
    assert [p.times for p in pairs if p.times] == [[0.0, 0.5]] * 3 + [[0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]]


def test_one_frame_is_held_and_nothing_gives_nothing():
    (pair,) = plan(frames(["3"]), Fraction(40))
    assert pair.times == [1.0] * 4
    assert pair.before is pair.after
    assert list(plan([], Fraction(40))) == []


def test_nothing_is_interpolated_across_a_cut():
    white = np.full((8, 8, 3), 250, np.uint8)
    clip = frames([Fraction(n, 10) for n in range(4)], [GREY, GREY, white, white])
    pairs = list(plan(clip, Fraction(40)))
    assert all(np.array_equal(p.before.image, p.after.image) for p in pairs)
    assert len(shown(pairs)) == 16
    values = [p.before.image[0, 0, 0] for p in pairs for _ in p.times]
    assert values == [100] * 6 + [250] * 10


def test_cut_before_the_last_frame():
    white = np.full((8, 8, 3), 250, np.uint8)
    pairs = list(plan(frames(["0", "1/10"], [GREY, white]), Fraction(20)))
    assert [p.before.image[0, 0, 0] for p in pairs for _ in p.times] == [100, 250, 250, 250]


def test_motion_is_not_a_cut():
    from helpers.videos import picture

    assert not is_cut(thumbnail(picture(0)), thumbnail(picture(1)))
    assert is_cut(thumbnail(picture(0)), thumbnail(255 - picture(0)))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (16, 16), (37, 53)])
def test_thumbnail_keeps_the_mean(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    small = thumbnail(image)
    assert small.shape == (min(16, size[0]), min(16, size[1]), 3)
    rows, columns = (np.diff(np.linspace(0, n, min(16, n) + 1).astype(int)) for n in size)
    weights = rows[:, None, None] * columns[None, :, None]
    assert (small * weights).sum() / weights.sum() / 3 == pytest.approx(image.mean() / 255, abs=1e-5)
