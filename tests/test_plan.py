import itertools
from fractions import Fraction

import numpy as np
import pytest
from helpers.videos import picture

from stif_rt.video.colour import from_image
from stif_rt.video.plan import plan, without_duplicates
from stif_rt.video.reader import Frame

GREY = np.full((8, 8, 3), 100, np.uint8)


def frames(starts, images=None):
    starts = [Fraction(s) for s in starts]
    ends = [*starts[1:], starts[-1] + Fraction(1, 10)]
    images = images or [GREY] * len(starts)
    return [Frame(*parts) for parts in zip(starts, ends, map(from_image, images), strict=True)]


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


def test_a_cut_far_apart_is_shown_when_the_later_frame_starts():
    white = np.full((8, 8, 3), 250, np.uint8)
    pairs = list(plan(frames(["0", "1/2", "1"], [GREY, white, GREY]), Fraction(20)))
    assert [p.before.image[0, 0, 0] for p in pairs for _ in p.times] == [100] * 10 + [250] * 10 + [100] * 2


@pytest.mark.parametrize(("max_gap", "held"), [("1", True), ("3/2", False), ("5/4", False)])
def test_long_gaps_are_held(max_gap, held):
    clip = frames(["0", "1/10", "27/20", "29/20"])
    times = shown(plan(clip, Fraction(20), max_gap=Fraction(max_gap)))
    expected = [min(k / 20, 1.45) for k in range(31)]
    if held:
        expected = [0.1 if 0.1 <= time < 1.35 else time for time in expected]
    np.testing.assert_allclose(times, expected, atol=1e-12)


def test_the_last_frame_is_shown_after_a_gap():
    pairs = list(plan(frames(["0", "4"]), Fraction(5)))
    assert [float(p.before.start) for p in pairs for _ in p.times] == [0.0] * 20 + [4.0]


@pytest.mark.parametrize(("first", "stop"), [(0, 7), (5, 11), (7, 8), (30, None), (36, None), (0, 0), (40, None)])
@pytest.mark.parametrize("rate", [Fraction(40), Fraction(7), Fraction(60000, 1001)])
def test_a_part_equals_that_part_of_the_whole(first, stop, rate):
    clip = frames([Fraction(n, 10) for n in range(9)])
    whole = shown(plan(clip, rate))
    assert shown(plan(clip, rate, first=first, stop=stop)) == whole[first:stop]


@pytest.mark.parametrize("origin", ["0", "1/4", "17/40"])
def test_output_starts_at_the_origin(origin):
    clip = frames([Fraction(n, 10) for n in range(9)])
    times = shown(plan(clip, Fraction(20), origin=Fraction(origin)))
    moments = [Fraction(origin) + Fraction(k, 20) for k in range(18)]
    np.testing.assert_allclose(times, [min(float(t), 0.8) for t in moments if t < Fraction(9, 10)])


@pytest.mark.parametrize("noise", [0, 1])
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_repeated_pictures_are_left_out(repeats, noise):
    generator = np.random.default_rng(0)
    images = [
        np.clip(
            picture(n // repeats, (36, 64)).astype(int) + generator.integers(-noise, noise + 1, (36, 64, 3)), 0, 255
        )
        for n in range(12)
    ]
    clip = frames([Fraction(n, 10) for n in range(12)], [image.astype(np.uint8) for image in images])
    kept = list(without_duplicates(clip))
    assert [frame.start for frame in kept] == [Fraction(n * repeats, 10) for n in range(12 // repeats)]
    assert all(a.end == b.start for a, b in itertools.pairwise(kept))
    assert kept[-1].end == clip[-1].end
    times = shown(plan(kept, Fraction(20)))
    np.testing.assert_allclose(times, [min(k / 20, float(kept[-1].start)) for k in range(24)], atol=1e-12)


def test_a_small_thing_that_moves_is_no_repetition():
    still, moved = np.full((90, 160, 3), 90, np.uint8), np.full((90, 160, 3), 90, np.uint8)
    still[40:44, 40:44], moved[40:44, 43:47] = 255, 255
    assert len(list(without_duplicates(frames([0, 1], [still, moved])))) == 2
