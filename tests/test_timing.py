import itertools
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from stif_rt.video.notices import Notices
from stif_rt.video.timing import MAX_PENDING, Continuity, measured_rate, pts_are_invented, timeline

STEP = Fraction(1, 10)


def placed(times, durations=None):
    pictures = [
        (None if t is None else Fraction(t).limit_denominator(1000), Fraction(d), n)
        for n, (t, d) in enumerate(zip(times, durations or [0] * len(times), strict=True))
    ]
    result = list(timeline(pictures, STEP))
    assert [picture for _, _, picture in result] == list(range(len(times)))  # every picture, in order
    assert all(a[1] == b[0] for a, b in itertools.pairwise(result))
    assert all(start < end for start, end, _ in result)
    return [float(start) for start, _, _ in result], float(result[-1][1]) if result else None


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 0.1, 0.2], [0, 0.1, 0.2]),
        ([1.5, 1.6, 9], [1.5, 1.6, 9]),
        ([0, 0.1, 0.1, 0.3], [0, 0.1, 0.2, 0.3]),  # repeated
        ([0, 0.1, 0.05, 0.12], [0, 0.1, 0.11, 0.12]),  # out of order
        ([0, None, None, 0.3], [0, 0.1, 0.2, 0.3]),  # missing
        ([0, None, 5], [0, 0.1, 5]),
        ([None, None, 1], [0.8, 0.9, 1]),
        ([None, None], [0, 0.1]),
        ([0, 0.1, None], [0, 0.1, 0.2]),
        ([-0.3, -0.2, 0], [-0.3, -0.2, 0]),
        ([5], [5]),
        ([], []),
    ],
)
def test_every_picture_has_a_place(times, expected):
    np.testing.assert_allclose(placed(times)[0], expected)


@pytest.mark.parametrize("restart", [-3, 0, 0.2])
def test_a_clock_that_starts_again_goes_on(restart):
    first = [n / 10 for n in range(12)]
    second = [restart + n / 10 for n in range(MAX_PENDING + 12)]
    times, _ = placed(first + second)
    np.testing.assert_allclose(times[: 12 + MAX_PENDING], [n / 10 for n in range(12 + MAX_PENDING)])
    assert min(np.diff(times)) > 0.001


def test_the_last_picture_ends_after_its_duration_or_a_step():
    assert placed([0, 0.1])[1] == pytest.approx(0.2)
    assert placed([0, 0.1], [0, Fraction(3)])[1] == pytest.approx(3.1)


@pytest.mark.parametrize("seed", range(5))
def test_random_timestamps(seed):
    generator = np.random.default_rng(seed)
    times = list(np.arange(60) / 10 + generator.choice([0, 0, 0, -0.3, 0.02, -2], 60))
    placed([None if generator.random() < 0.1 else time for time in times])


@pytest.mark.parametrize(
    ("steps", "nominal", "expected"),
    [
        ([40] * 15, 25, 25),
        ([33, 33, 34] * 5, Fraction(30000, 1001), Fraction(30000, 1001)),
        ([22] * 15, 1000, Fraction(1000, 22)),  # a time base taken for a rate
        ([20, 24, 19, 25] * 4, 1000, Fraction(1000, 22)),
        ([40] * 15, None, 25),
        ([40] * 15, 0, 25),
        ([40] * 15, 50, 25),
        ([17, 17, 500, 17, 17, 1500, 17], 60, 60),  # a screen recording
        ([4000] * 3, Fraction(1, 4), Fraction(1, 4)),
        ([40, 40, 5000, 40], None, 25),
        ([0, 160, 0, 0, 0, 160, 0, 0], 25, 25),
        ([], 24, 24),
        ([], None, None),
    ],
)
def test_rates(steps, nominal, expected):
    times = [Fraction(sum(steps[:n]), 1000) for n in range(len(steps) + 1)]
    assert measured_rate(times, None if nominal is None else Fraction(nominal)) == expected


@pytest.mark.parametrize(
    ("pts", "dts", "expected"),
    [
        ([2, 8, 6, 10, 4, 16, 14, 18, 12], [4, 6, 8, 10, 12, 14, 16, 18, 20], True),  # AVI with B-frames
        ([2, 8, 6, 10, 4], [4, 6, 8, None, None], True),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], False),
        ([0, 1, 2, 3, 4, 5], [None] * 6, False),
        ([None] * 6, [0, 1, 2, 3, 4, 5], True),
        ([None] * 6, [None] * 6, False),
        ([*range(8), 7, *range(9, 16)], list(range(16)), False),  # one repeats
    ],
)
def test_which_timestamps_are_believed(pts, dts, expected):
    assert pts_are_invented(pts, dts) is expected


def corrected(packets, may_reset=True):
    """The times of (stream, seconds) after ``Continuity``; packets last 0.04 s (pictures) and 0.02 s (sound)."""
    flags = av.format.Flags.ts_discont.value if may_reset else 0
    notices = Notices()
    continuity = Continuity(SimpleNamespace(format=SimpleNamespace(flags=flags)), notices)
    times = {"video": [], "audio": []}
    for kind, seconds in packets:
        packet = SimpleNamespace(
            stream=SimpleNamespace(type=kind),
            stream_index=kind == "audio",
            time_base=Fraction(1, 1000),
            dts=round(seconds * 1000),
            pts=None,
            duration=40 if kind == "video" else 20,
        )
        continuity.correct(packet)
        times[kind].append(packet.dts / 1000)
    return times, len(notices)


def recording(start, seconds, sound=True):
    packets = [("video", start + n / 25) for n in range(round(25 * seconds))]
    packets += [("audio", start + n / 50) for n in range(round(50 * seconds))] if sound else []
    return sorted(packets, key=lambda packet: packet[1])


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("start", [-5, 0, 0.5, 0.93, 100, 3600])
def test_joined_recordings_continue_in_step(start, sound):
    times, warnings = corrected(recording(0, 1, sound) + recording(start, 1, sound))
    np.testing.assert_allclose(times["video"], np.arange(50) / 25, atol=0.001)
    if sound:
        np.testing.assert_allclose(times["audio"], np.arange(100) / 50, atol=0.001)
    assert warnings == 1


def test_the_rest_of_the_first_recordings_sound_may_come_late():
    first, second = recording(0, 1), recording(0, 1)
    late = [packet for packet in first if packet[0] == "audio"][-3:]
    times, _ = corrected([packet for packet in first if packet not in late] + second[:1] + late + second[1:])
    np.testing.assert_allclose(times["video"], np.arange(50) / 25, atol=0.001)
    np.testing.assert_allclose(times["audio"], np.arange(100) / 50, atol=0.001)


@pytest.mark.parametrize(("gap", "may_reset"), [(5, True), (30, True), (30, False), (3600, True), (3600, False)])
def test_a_picture_that_stands_still_while_sound_goes_on_is_no_jump(gap, may_reset):
    packets = [("audio", n / 5) for n in range(5 * gap)] + [("video", 0), ("video", gap), ("video", gap + 0.04)]
    times, warnings = corrected(sorted(packets, key=lambda packet: packet[1]), may_reset)
    assert times["video"] == [0, gap, gap + 0.04]
    assert warnings == 0


@pytest.mark.parametrize(("gap", "may_reset", "jumps"), [(9, True, 0), (12, True, 1), (500, False, 0), (700, False, 1)])
def test_how_long_a_gap_is_a_jump(gap, may_reset, jumps):
    times, warnings = corrected([("video", 0), ("video", gap)], may_reset)
    assert warnings == jumps
    assert times["video"][1] == (0.04 if jumps else gap)
