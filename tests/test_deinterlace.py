"""Interlaced input becomes progressive, picture by picture."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch

from stif_rt.video.deinterlace import deinterlaced
from stif_rt.video.reader import open_reader

CASES = Path(__file__).parent / "data" / "cases"


class Picture(NamedTuple):
    number: int
    frame: av.VideoFrame


def decode(path):
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            yield Picture(number, frame)


def combed(frame):
    """Share of pixels that differ from both their neighbours above and below, in the same direction."""
    luma = frame.to_ndarray(format="gray").astype(int)
    above, below = luma[:-2] - luma[1:-1], luma[2:] - luma[1:-1]
    return (above * below > 25**2).mean()


def test_flagged_pictures_lose_their_combs():
    before = list(decode(CASES / "interlaced.mp4"))
    after = list(deinterlaced(decode(CASES / "interlaced.mp4")))
    assert max(combed(p.frame) for p in before) > 0.03
    assert max(combed(p.frame) for p in after) == 0
    assert [p.number for p in after] == list(range(len(before)))
    assert [(p.frame.pts, p.frame.time_base) for p in after] == [(p.frame.pts, p.frame.time_base) for p in before]
    assert not any(p.frame.interlaced_frame for p in after)
    assert np.array_equal(after[3].frame.to_ndarray()[:36:2], before[3].frame.to_ndarray()[:36:2])  # the first field


@pytest.mark.parametrize(("mode", "most", "least"), [("off", 1, 0.03), ("on", 0, 0), ("auto", 0, 0)])
def test_modes(mode, most, least):
    assert least <= max(combed(p.frame) for p in deinterlaced(decode(CASES / "interlaced.mp4"), mode)) <= most


def progressive(count, size=(32, 64)):
    for number in range(count):
        array = np.random.default_rng(number).integers(0, 256, (size[0] * 3 // 2, size[1]), dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(array, format="yuv420p")
        frame.pts, frame.time_base = 7 * number, Fraction(1, 50)
        yield Picture(number, frame)


def test_progressive_pictures_are_not_touched():
    pictures = list(progressive(3))
    for before, after in zip(pictures, deinterlaced(iter(pictures)), strict=True):
        assert after.frame is before.frame


def test_pictures_between_interlaced_ones_and_changes_of_size():
    """All come out, in order; those that are not flagged with the same values."""
    flagged = list(decode(CASES / "interlaced.mp4"))
    mixed = [*progressive(2), *flagged[:3], *progressive(2, (64, 96)), *progressive(1), *flagged[:1], *progressive(2)]
    after = list(deinterlaced(iter(mixed)))
    assert [p.number for p in after] == [p.number for p in mixed]
    for a, b in zip(mixed, after, strict=True):
        assert (a.frame.width, a.frame.height) == (b.frame.width, b.frame.height)
        if not a.frame.interlaced_frame:
            assert np.array_equal(a.frame.to_ndarray(), b.frame.to_ndarray())


@pytest.mark.parametrize(("mode", "warnings"), [("auto", 0), ("on", 0), ("off", 1)])
def test_combs_are_never_left_in_silence(mode, warnings):
    assert len(open_reader(CASES / "interlaced.mp4", deinterlace=mode).notices) == warnings


@pytest.mark.parametrize("start", [Fraction(1, 10), Fraction(21, 100), Fraction(1, 2)])
def test_a_part_equals_that_part_of_the_whole(start):
    reader = open_reader(CASES / "interlaced.mp4")
    whole = [frame for frame in reader if frame.end > start]
    part = list(reader.read(start))
    assert [frame.start for frame in part] == [frame.start for frame in whole]
    assert all(torch.equal(a.picture.rgb, b.picture.rgb) for a, b in zip(part, whole, strict=True))
