"""Frame rates and times as people write them, exactly; nothing here needs PyTorch."""

from fractions import Fraction
from typing import NamedTuple

Number = int | float | str | Fraction
"""A rate, a factor or a time: 60, 23.976, "24000/1001"."""

LARGEST_RATE = 2**20
MATROSKA_RATE = 1000
"""Times in Matroska are whole milliseconds, so that frames that follow each other faster have the same one."""


class Rates(NamedTuple):
    """sampling: output frames per second of the input. playing: frames per second of the output file."""

    sampling: Fraction
    playing: Fraction

    @property
    def slowdown(self) -> Fraction:
        """How many times as long as the input the output plays."""
        return self.sampling / self.playing


def parse_number(value: Number, option: str) -> Fraction:
    """A positive number. ``option`` names it in errors."""
    try:
        number = Fraction(value)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{option} {value}: give a number such as 60, 23.976 or 24000/1001") from error
    if number <= 0:
        raise ValueError(f"{option} {value}: must be positive")
    return number


def parse_time(value: Number, option: str) -> Fraction:
    """Seconds from a number, or from hours, minutes and seconds such as "1:02:03.5"."""
    try:
        seconds = Fraction(0)
        for part in str(value).strip().split(":"):
            seconds = 60 * seconds + Fraction(part)
            if Fraction(part) < 0:
                raise ValueError("negative")
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{option} {value}: give seconds such as 12.5, or a time such as 1:02:03.5") from error
    return seconds


def output_rates(
    input_rate: Fraction,
    time_scale: Number | None = None,
    fps: Number | None = None,
    slow_motion: Number | None = None,
) -> Rates:
    """The rates for any combination of the three ways to ask for them.

    Args:
        input_rate: frames per second of the input.
        time_scale: output frames per input frame.
        fps: frames per second of the output file.
        slow_motion: how many times as long as the input the output plays.

    Returns:
        The rates. Both ``time_scale`` and ``fps`` give slow motion, or fast motion, where they differ from the input's
        rate; ``slow_motion`` alone keeps the input's rate.

    Raises:
        ValueError: for numbers that are not positive, three that contradict each other, and rates beyond 1/s to 2^20/s
            that no file holds.
    """
    scale = None if time_scale is None else parse_number(time_scale, "--time-scale")
    playing = None if fps is None else _storable(parse_number(fps, "--fps"))
    slowdown = None if slow_motion is None else parse_number(slow_motion, "--slow-motion")
    if scale is not None:
        sampling = input_rate * scale
    elif slowdown is not None:
        sampling = slowdown * (input_rate if playing is None else playing)
    else:
        sampling = input_rate if playing is None else playing
    if playing is None:
        playing = _storable(sampling / (slowdown or 1))
        if slowdown is None:
            sampling = playing
    if slowdown is not None and scale is not None and fps is not None and sampling != slowdown * playing:
        raise ValueError(
            f"--time-scale {time_scale} at --fps {fps} plays {float(sampling / playing):g} times as long as the input, "
            f"not {slow_motion} times: leave out one of --time-scale, --fps and --slow-motion"
        )
    if not 0 < playing < LARGEST_RATE or not 0 < sampling < LARGEST_RATE:
        raise ValueError(f"the output would have {float(max(playing, sampling)):g} frames per second")
    return Rates(sampling, playing)


def check_rate(rate: Fraction, suffix: str) -> None:
    """Raises ValueError for a rate that a video file of this kind cannot hold."""
    if suffix in (".mkv", ".webm") and rate > MATROSKA_RATE:
        raise ValueError(
            f"{suffix} holds at most {MATROSKA_RATE} frames per second, and the output would have {float(rate):g}: "
            f"write .mp4 or .mov, or give --fps {MATROSKA_RATE}"
        )


def _storable(rate: Fraction) -> Fraction:
    """A rate that files can hold: 59.94005994... becomes 60000/1001."""
    return rate.limit_denominator(1001) if max(rate.numerator, rate.denominator) >= 2**31 else rate
