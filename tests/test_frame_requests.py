"""What the VapourSynth filter is made of, without VapourSynth."""

import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch

from stif_rt import Runtime
from stif_rt.frame_requests import (
    FEWEST_PAIRS,
    NEIGHBOURS,
    PairCache,
    Position,
    Timeline,
    luma_size,
    make_timeline,
    make_window,
    output_properties,
    scene_begins,
)
from stif_rt.video.colour import Picture
from stif_rt.video.cuts import THRESHOLD, detected_cuts
from stif_rt.video.plan import plan
from stif_rt.video.reader import Frame

NTSC = Fraction(24000, 1001)
RATES = [(24, 1), (48, 1), (60, 1), (25, 1), (60000, 1001), (1, 1), (7, 3), (23, 1)]


def frames_of(count, fps, lumas=None):
    nothing = Picture(torch.zeros(3, 1, 1))
    planes = [None] * count if lumas is None else lumas
    return [Frame(n / fps, (n + 1) / fps, nothing, luma) for n, luma in enumerate(planes)]


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("fps", [Fraction(24), NTSC], ids=str)
def test_positions_are_those_of_a_render(frames, rate, fps):
    """The same pairs and times as ``stif-rt render``, whatever the rate."""
    timeline = make_timeline(frames, fps, fps_num=rate[0], fps_den=rate[1])
    assert timeline.fps == Fraction(*rate)
    planned = []
    for pair in plan(frames_of(frames, fps), Fraction(*rate), lambda frames: ((frame, False) for frame in frames)):
        planned += [(pair.before.start * fps, pair.after.start * fps, t) for t in pair.times]
    positions = [timeline.position(n) for n in range(timeline.length)]
    assert [(p.before, p.after, float(p.t)) for p in positions] == planned


@pytest.mark.parametrize("factor", [(1, 1), (2, 1), (5, 2), (1001, 400), (1, 3)], ids=str)
def test_positions_are_exact(factor):
    """No rounding builds up in a long clip: frame n lies at n / factor, to the last frame."""
    timeline = make_timeline(1_000_000, NTSC, *factor)
    assert timeline.fps == NTSC * Fraction(*factor)
    assert timeline.length == math.ceil(1_000_000 * Fraction(*factor))
    for n in [0, 1, 99_991, timeline.length // 2, timeline.length - 400 * 3]:
        before, after, t = timeline.position(n)
        assert after == before + 1
        assert before + t == n / Fraction(*factor)
        assert 0 <= t < 1
    assert timeline.position(timeline.length - 1).after == 999_999


def test_a_variable_rate_has_a_factor_only():
    timeline = make_timeline(10, Fraction(0), 5, 2)
    assert (timeline.length, timeline.fps) == (25, 0)
    with pytest.raises(ValueError, match="variable frame rate"):
        make_timeline(10, Fraction(0), fps_num=60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor_num": 0}, "factor_num must be a positive integer, not 0"),
        ({"factor_den": -1}, "factor_den must be a positive integer, not -1"),
        ({"factor_num": 2.5}, "factor_num must be a positive integer, not 2.5"),
        ({"fps_num": True}, "fps_num must be a positive integer, not True"),
        ({"fps_num": 60, "fps_den": 0}, "fps_den must be a positive integer, not 0"),
        ({"fps_den": 1001}, "fps_den=1001 needs fps_num"),
        ({"fps_num": 60, "factor_num": 2}, "not both"),
        ({"factor_num": 1 << 40}, "a clip holds at most 2147483647"),
    ],
)
def test_unusable_rates(options, message):
    with pytest.raises(ValueError, match=message):
        make_timeline(10, NTSC, **options)


def test_cuts_show_the_nearer_frame():
    assert Position(3, 4, Fraction(49, 100)).held() == (3, 3, 0)
    assert Position(3, 4, Fraction(1, 2)).held() == (4, 4, 1)


@pytest.mark.parametrize(
    ("options", "picture", "region"),
    [
        ({}, (36, 64), (0, 0, 36, 64)),
        ({"scale": 2.5}, (90, 160), (0, 0, 90, 160)),
        ({"width": 128}, (72, 128), (0, 0, 72, 128)),
        ({"height": 18}, (18, 32), (0, 0, 18, 32)),
        ({"width": 100, "height": 50}, (50, 100), (0, 0, 50, 100)),
        ({"scale": 4, "src_left": 10, "src_top": 2.25}, (144, 256), (9, 40, 135, 216)),
        ({"width": 80, "src_width": 20, "src_height": 10}, (144, 256), (0, 0, 40, 80)),
        ({"width": 33, "height": 33, "src_left": 43, "src_width": 21, "src_height": 36}, (33, 101), (0, 68, 33, 33)),
    ],
)
def test_windows(options, picture, region):
    window = make_window((36, 64), **options)
    assert (window.picture, window.region) == (picture, region)


def test_windows_lie_in_the_picture():
    generator = random.Random(0)
    for _ in range(300):
        h, w = generator.randint(1, 90), generator.randint(1, 90)
        src_left, src_top = generator.uniform(0, w * 0.99), generator.uniform(0, h * 0.99)
        options = {"src_left": src_left, "src_top": src_top, "src_width": generator.uniform(1e-3, w - src_left)}
        size = {"width": generator.randint(1, 40), "height": generator.randint(1, 40)}
        window = make_window((h, w), **options, **size)
        y, x, height, width = window.region
        assert (height, width) == (size["height"], size["width"])
        assert y >= 0
        assert x >= 0
        assert y + height <= window.picture[0]
        assert x + width <= window.picture[1]
        assert abs(x - src_left * width / options["src_width"]) <= 1


def test_only_both_sides_together_stretch_pixels():
    assert make_window((36, 64), width=31).stretch == 1
    assert make_window((36, 64), scale=1.1).stretch == 1
    assert make_window((36, 64), width=128, height=36).stretch == Fraction(1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale must be a positive number, not 0"),
        ({"scale": float("nan")}, "scale must be a number, not nan"),
        ({"scale": float("inf")}, "scale must be a number, not inf"),
        ({"scale": 2, "width": 3}, "not both"),
        ({"width": 0}, "width must be an integer from 1 to 65536, not 0"),
        ({"height": 20.5}, "height must be an integer from 1 to 65536, not 20.5"),
        ({"src_left": -1}, "the window must lie in the clip's 64 pixels"),
        ({"src_top": 36}, "the window must lie in the clip's 36 pixels"),
        ({"src_left": 60, "src_width": 5}, "src_left=60, src_width=5: the window"),
        ({"src_height": 0}, "src_height=0: the window"),
        ({"src_left": "a"}, "src_left must be a number, not 'a'"),
        ({"scale": 2000}, "the whole picture at that size would have 128000x72000 pixels"),
        ({"scale": 1e300}, "sides go up to 65536"),
    ],
)
def test_unusable_windows(options, message):
    with pytest.raises(ValueError, match=message):
        make_window((36, 64), **options)


@pytest.mark.parametrize("threads", [1, 6])
def test_frames_out_of_order_need_hardly_more_encodes_than_pairs(threads):
    """120 frames of 31 source frames, asked for as VapourSynth does: nearly in order, from several threads."""
    timeline, encoded, lock = make_timeline(31, NTSC, 4), [], threading.Lock()
    cache = PairCache(max_bytes=4 * 100, size=lambda pair: 100)
    generator = random.Random(1)
    numbers = sorted(range(120), key=lambda n: n + generator.uniform(0, 8))
    assert numbers != sorted(numbers)

    def request(n):
        key = timeline.position(n)[:2]

        def encode():
            with lock:
                encoded.append(key)
            return key

        assert cache.get(key, encode) == key

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(request, numbers))
    assert set(encoded) == {(n, n + 1) for n in range(30)}
    assert len(encoded) <= 33


def test_a_pair_that_many_threads_want_is_encoded_once():
    encoded, started = [], threading.Barrier(8)
    cache = PairCache(max_bytes=0, size=lambda pair: 1)

    def encode():
        encoded.append(1)
        return "pair"

    def request(_):
        started.wait(10)
        return cache.get((0, 1), encode)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(request, range(8))) == ["pair"] * 8
    assert encoded == [1]


@pytest.mark.parametrize(("max_bytes", "kept"), [(0, FEWEST_PAIRS), (35, 3), (1000, 10)])
def test_pairs_keep_to_their_memory(max_bytes, kept):
    encoded = []
    cache = PairCache(max_bytes, size=lambda pair: 10)
    for index in [*range(10), *reversed(range(10))]:
        cache.get((index, index + 1), lambda index=index: encoded.append(index) or index)
    assert len(encoded) == 10 + 10 - kept


def test_a_failed_encode_is_tried_again():
    cache = PairCache(100, size=lambda pair: 1)

    def fail():
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        cache.get((0, 1), fail)
    assert cache.get((0, 1), lambda: "pair") == "pair"


def test_bytes_of_a_pair():
    pair = Runtime.load(dtype="float32").encode(torch.zeros(3, 12, 16), torch.zeros(3, 12, 16))
    assert 12 * 16 * 64 * 4 <= pair.nbytes <= 12 * 16 * 64 * 4 * 6


SOURCE = {
    "_Matrix": 0,
    "_Transfer": 1,
    "_Primaries": 9,
    "_Range": 0,
    "_ColorRange": 0,
    "_ChromaLocation": 0,
    "_SceneChangePrev": 1,
    "_SceneChangeNext": 1,
    "_DurationNum": 1001,
    "_DurationDen": 24000,
    "_SARNum": 4,
    "_SARDen": 3,
    "_AbsoluteTime": 2.0,
    "name": b"first",
    "list": [1, 2],
}
AFTER = SOURCE | {"_AbsoluteTime": 3.0, "name": b"second"}
CHANGED = ("_SceneChange", "_Duration", "_SAR", "_AbsoluteTime")


@pytest.mark.parametrize(("t", "name"), [(0, b"first"), (Fraction(1, 4), b"first"), (1, b"second")])
def test_properties(t, name):
    source = dict(SOURCE)
    properties = output_properties(
        source, AFTER, Position(0, 1, Fraction(t)), make_timeline(9, NTSC, 5, 2), Fraction(1)
    )
    assert source == SOURCE
    kept = {key: value for key, value in SOURCE.items() if not key.startswith(CHANGED)} | {"name": name}
    assert {key: value for key, value in properties.items() if not key.startswith(CHANGED)} == kept
    assert not [key for key in properties if key.startswith("_SceneChange")]
    assert (properties["_DurationNum"], properties["_DurationDen"]) == (1001, 60000)
    assert (properties["_SARNum"], properties["_SARDen"]) == (4, 3)
    assert properties["_AbsoluteTime"] == 2.0 + t


def test_properties_of_stretched_pixels_and_of_a_variable_rate():
    position, timeline = Position(0, 1, Fraction(0)), Timeline(9, Fraction(5, 2), Fraction(0))
    properties = output_properties(SOURCE, AFTER, position, timeline, Fraction(1, 2))
    assert Fraction(properties["_DurationNum"], properties["_DurationDen"]) == 1 / NTSC / Fraction(5, 2)
    assert (properties["_SARNum"], properties["_SARDen"]) == (2, 3)


def test_properties_that_are_missing_or_make_no_sense():
    position, variable = Position(0, 1, Fraction(1, 2)), Timeline(9, Fraction(2), Fraction(0))
    odd = {"_DurationNum": 0, "_DurationDen": 0, "_SARNum": -1, "_SARDen": 1, "_AbsoluteTime": b"x"}
    assert output_properties(odd, odd, position, variable, Fraction(2)) == odd
    assert output_properties({}, {}, position, variable, Fraction(2)) == {}
    constant = Timeline(9, Fraction(2), Fraction(50))
    assert output_properties({}, {}, position, constant, Fraction(2)) == {"_DurationNum": 1, "_DurationDen": 50}


@pytest.mark.parametrize("lengths", [(1, 5), (7, 9, 6), (14,), (3, 3, 12)], ids=str)
@pytest.mark.parametrize("fps", [NTSC, Fraction(0)], ids=str)
def test_cuts_seen_through_few_frames_are_those_of_the_whole_clip(lengths, fps):
    generator = np.random.default_rng(3)
    lumas = []
    for length in lengths:
        scene = generator.integers(20, 220, (36, 64))
        lumas += [np.roll(scene, n, 1).astype(np.uint8) for n in range(length)]
    whole = [cut for _, cut in detected_cuts(frames_of(len(lumas), fps or Fraction(24), lumas), THRESHOLD)]
    seen = [False]
    for n in range(len(lumas) - 1):
        inside = [n + offset for offset in NEIGHBOURS if 0 <= n + offset < len(lumas)]
        seen.append(scene_begins([lumas[index] for index in inside], inside.index(n + 1), fps, THRESHOLD))
    assert seen == whole


@pytest.mark.parametrize(("inputs", "size"), [((36, 64), (36, 64)), ((1080, 1920), (36, 64)), ((1, 5000), (1, 64))])
def test_size_of_brightness_planes(inputs, size):
    assert luma_size(inputs) == size
