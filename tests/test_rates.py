from fractions import Fraction

import pytest

from stif_rt.video.rates import check_rate, output_rates, parse_time

FILM = Fraction(24000, 1001)


@pytest.mark.parametrize(
    ("given", "sampling", "playing"),
    [
        ({}, FILM, FILM),
        ({"time_scale": 4}, 4 * FILM, 4 * FILM),
        ({"time_scale": "5/2"}, FILM * 5 / 2, FILM * 5 / 2),
        ({"fps": 60}, 60, 60),
        ({"fps": "59.94005994005994"}, Fraction(60000, 1001), Fraction(60000, 1001)),
        ({"fps": 7.5}, Fraction(15, 2), Fraction(15, 2)),
        ({"slow_motion": 4}, 4 * FILM, FILM),
        ({"slow_motion": "0.5"}, FILM / 2, FILM),
        ({"slow_motion": 4, "fps": 30}, 120, 30),
        ({"slow_motion": 4, "time_scale": 8}, 8 * FILM, 2 * FILM),
        ({"time_scale": 4, "fps": 24}, 4 * FILM, 24),
        ({"time_scale": 2, "fps": FILM * 2, "slow_motion": 1}, 2 * FILM, 2 * FILM),
    ],
)
def test_rates(given, sampling, playing):
    assert output_rates(FILM, **given) == (sampling, playing)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fps": "fast"}, "--fps fast: give a number"),
        ({"fps": "1/0"}, "--fps 1/0: give a number"),
        ({"fps": float("nan")}, "--fps nan: give a number"),
        ({"time_scale": -1}, "--time-scale -1: must be positive"),
        ({"slow_motion": 0}, "--slow-motion 0: must be positive"),
        ({"fps": 1e12}, "frames per second"),
        ({"time_scale": 4, "fps": 24, "slow_motion": 2}, "not 2 times: leave out one of"),
    ],
)
def test_rates_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        output_rates(FILM, **given)


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_matroska_holds_a_frame_for_each_millisecond(suffix):
    check_rate(Fraction(1000), suffix)
    check_rate(Fraction(1001), ".mp4")
    with pytest.raises(
        ValueError, match=f"{suffix} holds at most 1000 frames per second, and the output would have 1200"
    ):
        check_rate(Fraction(1200), suffix)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12.5", Fraction(25, 2)),
        (3, 3),
        ("1:30", 90),
        ("1:02:03.5", Fraction(7447, 2)),
        ("0", 0),
        ("1/3", Fraction(1, 3)),
    ],
)
def test_times(text, seconds):
    assert parse_time(text, "--start") == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:x", "-3", "0:-3", "1/0"])
def test_times_that_cannot_be(text):
    with pytest.raises(ValueError, match="give seconds such as"):
        parse_time(text, "--end")
