from fractions import Fraction

import pytest

from stif_rt.video.layout import make_layout

WIDE = (18, 32)


@pytest.mark.parametrize(
    ("given", "frame", "picture", "offset"),
    [
        ({}, (72, 128), (72, 128), (0, 0)),
        ({"scale": 1.5}, (27, 48), (27, 48), (0, 0)),
        ({"scale": 1.5, "even": True}, (28, 48), (28, 48), (0, 0)),
        ({"scale": 0.01}, (1, 1), (1, 1), (0, 0)),
        ({"width": 64}, (36, 64), (36, 64), (0, 0)),
        ({"height": 90}, (90, 160), (90, 160), (0, 0)),
        ({"height": 50, "even": True}, (50, 88), (50, 88), (0, 0)),
        ({"width": 64, "height": 64}, (64, 64), (36, 64), (14, 0)),
        ({"width": 100, "height": 36}, (36, 100), (36, 64), (0, 18)),
        ({"width": 64, "height": 64, "fit": "stretch"}, (64, 64), (64, 64), (0, 0)),
        ({"width": 45, "height": 25}, (25, 45), (25, 45), (0, 0)),  # 25.3 x 45: no bars for a rounded shape
    ],
)
def test_layouts(given, frame, picture, offset):
    layout = make_layout(WIDE, **given)
    assert (layout.frame, layout.picture, layout.offset) == (frame, picture, offset)
    assert layout.region == (0, 0, *picture)
    assert layout.sample_aspect_ratio is None
    assert layout.is_whole == (frame == picture)


def test_cover_cuts_what_is_too_much_off_both_sides():
    layout = make_layout(WIDE, width=36, height=36, fit="cover")
    assert layout.frame == (36, 36)
    assert layout.picture == (36, 64)
    assert layout.region == (0, 14, 36, 36)
    assert layout.offset == (0, 0)
    assert not layout.is_whole


def test_pixels_that_are_not_square():
    ratio = Fraction(4, 3)
    assert make_layout((30, 30), scale=2, sample_aspect_ratio=ratio).sample_aspect_ratio == ratio
    square = make_layout((30, 30), scale=2, sample_aspect_ratio=ratio, square_pixels=True)
    assert (square.frame, square.sample_aspect_ratio) == ((60, 80), None)
    assert make_layout((30, 30), width=80, sample_aspect_ratio=ratio).frame == (60, 80)
    fitted = make_layout((30, 30), width=80, height=80, sample_aspect_ratio=ratio)
    assert (fitted.picture, fitted.offset, fitted.sample_aspect_ratio) == ((60, 80), (10, 0), None)


@pytest.mark.parametrize(
    ("region", "shown", "offset"),
    [
        ((0, 0, 64, 64), (0, 0, 36, 64), (14, 0)),
        ((8, 20, 16, 10), (6, 8, 10, 16), (0, 0)),
        ((10, 8, 20, 12), (0, 10, 6, 20), (6, 0)),
        ((0, 44, 64, 20), (30, 0, 6, 64), (0, 0)),
    ],
)
def test_regions_of_a_frame_with_bars(region, shown, offset):
    layout = make_layout(WIDE, width=64, height=64, region=region)
    assert layout.frame == (region[3], region[2])
    assert layout.region == shown
    assert layout.offset == offset


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": 0}, "--scale 0: must be a positive number"),
        ({"scale": float("nan")}, "must be a positive number"),
        ({"scale": 1e9}, "from 1x1 to 65536x65536"),
        ({"scale": 3000}, "from 1x1 to 65536x65536"),
        ({"width": 0}, "a side of 0 pixels"),
        ({"width": 70000}, "from 1x1"),
        ({"width": 33, "even": True}, "33 pixels: .*must be even"),
        ({"width": 64, "scale": 2}, "not both"),
        ({"width": 64, "height": 64, "fit": "squash"}, "--fit squash: there are contain, cover, stretch"),
        ({"width": 2, "height": 60000, "fit": "cover"}, "the picture that is cut to fit it would be 106667x60000"),
        ({"region": (0, 0, 129, 4)}, "--region 0,0,129,4 does not lie in the output of 128x72 pixels"),
        ({"region": (-2, 0, 4, 4)}, "does not lie in"),
        ({"region": (0, 0, 4, 0)}, "does not lie in"),
        ({"region": (0, 0, 3, 4), "even": True}, "must be even"),
        ({"width": 64, "height": 64, "region": (0, 0, 64, 10)}, "nothing but the black bars"),
    ],
)
def test_layouts_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        make_layout(WIDE, **given)
