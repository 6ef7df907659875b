import functools
from fractions import Fraction

import numpy as np
import pytest
from helpers.videos import picture, write_images, write_video

from stif_rt.video.colour import from_image
from stif_rt.video.cuts import AHEAD, CONTEXT, detected_cuts, listed_cuts, no_cuts, read_cuts, small_luma
from stif_rt.video.reader import Frame, open_reader


def clip(images, rate=24):
    return [Frame(Fraction(n, rate), Fraction(n + 1, rate), from_image(image)) for n, image in enumerate(images)]


def cuts_of(frames, **options):
    return [number for number, (_, cut) in enumerate(detected_cuts(frames, **options)) if cut]


def textured(seed, size=(90, 160)):
    """A picture with detail at all scales, uint8 [h, w, 3]; it goes on where it is rolled over its sides."""
    generator = np.random.default_rng(seed)
    y, x = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in size), indexing="ij")
    picture = np.zeros((*size, 3))
    for waves in (1, 2, 3, 5, 9, 17):
        for channel in range(3):
            phase, down = generator.uniform(0, 2 * np.pi), int(generator.integers(-waves, waves + 1))
            picture[..., channel] += np.sin(waves * x + down * y + phase) / waves
    return np.clip(110 + 100 * picture, 0, 255).astype(np.uint8)


def scene(seed, length, speed=0, light=1.0):
    """One shot: a texture that moves sideways by ``speed`` pixels a frame."""
    return [(np.roll(textured(seed), speed * n, 1) * light).astype(np.uint8) for n in range(length)]


@pytest.mark.slow
@pytest.mark.parametrize("light", [1.0, 0.3, 0.08])
@pytest.mark.parametrize("speed", [0, 2, 6])
@pytest.mark.parametrize("seed", [0, 10])
def test_scenes_are_separated_bright_or_dark_still_or_moving(seed, speed, light):
    images = scene(seed, 9, speed, light) + scene(seed + 1, 5, speed, light) + scene(seed + 2, 8, speed, light)
    assert cuts_of(clip(images)) == [9, 14]


@pytest.mark.parametrize("speed", [1, 4, 12])
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_motion_is_not_a_cut_even_with_repeated_pictures(speed, repeats):
    images = [image for image in scene(3, 12, speed) for _ in range(repeats)]
    assert [cut for cut in cuts_of(clip(images)) if cut > 2 * repeats] == []  # nothing says before that it goes on


@pytest.mark.parametrize("length", [12, 24])
def test_fades_are_not_cuts(length):
    shot = scene(4, length)
    fading = [(image * (1 - n / (length - 1))).astype(np.uint8) for n, image in enumerate(shot)]
    assert cuts_of(clip(shot + fading)) == []
    assert cuts_of(clip(fading[::-1] + shot)) == []


def test_a_flash_is_not_two_cuts():
    shot = scene(5, 12, 2)
    shot[6] = np.full_like(shot[6], 255)
    assert cuts_of(clip(shot)) == []


def test_two_pictures_alone():
    assert cuts_of(clip([picture(0), picture(1)])) == []
    assert cuts_of(clip([textured(0), 255 - textured(0)])) == [1]


def test_threshold():
    images = scene(6, 6) + scene(7, 6)
    assert cuts_of(clip(images), threshold=1) == [6]
    assert cuts_of(clip(images), threshold=1000) == []
    assert [cut for _, cut in no_cuts(clip(images))] == [False] * 12


def test_frames_come_out_in_order_and_few_are_held_back():
    frames, read = clip(scene(8, 10)), 0

    def reading():
        nonlocal read
        for frame in frames:
            read += 1
            yield frame

    for number, (frame, _) in enumerate(detected_cuts(reading())):
        assert frame is frames[number]
        assert read <= number + 1 + AHEAD


@pytest.mark.parametrize("start", [0, 7, 13, 21])
def test_a_part_with_context_is_judged_as_the_whole(start):
    images = scene(0, 6, 9) + scene(1, 7, 30) + scene(2, 13, 2) + scene(3, 12, 55)
    whole = [cut for _, cut in detected_cuts(clip(images, 30))]
    first = max(0, start - CONTEXT)
    part = [cut for _, cut in detected_cuts(clip(images, 30)[first : start + 9 + CONTEXT])]
    assert part[start - first + (not start) :][:9] == whole[start + (not start) :][:9]


def test_small_luma():
    image = np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8)
    small = small_luma(image)
    assert small.shape == (29, 64)
    luma = image @ np.array([0.2126, 0.7152, 0.0722])
    assert small.mean() == pytest.approx(luma.mean(), abs=1)
    assert small_luma(image[:3, :5]).shape == (3, 5)


def test_reader_shrinks_as_small_luma_does(tmp_path):
    images = [np.repeat(textured(n, (72, 128))[..., :1], 3, -1) for n in range(2)]
    for frame, image in zip(open_reader(write_video(tmp_path / "v.mp4", images)), images, strict=True):
        assert np.abs(frame.luma.astype(float) - small_luma(image)).mean() < 1


def test_listed_cuts_at_rounded_times():
    frames = clip(scene(9, 10))
    marks = listed_cuts([Fraction("0.125"), Fraction("0.2916"), Fraction("0.31"), Fraction(99)])
    assert [n for n, (_, cut) in enumerate(marks(frames)) if cut] == [3, 7, 8]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3\n7\n", [3, 7]),
        ("# by hand\n\n 2 # comment\n99\n", [2]),
        ("0.3\n00:00:00.500\n", [3, 5]),
        ("1\n0.45\n0:0.8\n1s\n", [1, 5, 8]),
        ("", []),
    ],
)
def test_lists_of_cuts(tmp_path, text, expected):
    (tmp_path / "cuts.txt").write_text(text)
    reader = open_reader(write_images(tmp_path / "in", [picture(n) for n in range(10)]), Fraction(10))
    marked = read_cuts(tmp_path / "cuts.txt", reader)(reader)
    assert [n for n, (_, cut) in enumerate(marked) if cut] == expected


@pytest.mark.parametrize("content", [b"3\nfour\n", b"1:x\n", b"\xff\xfe\x00", b"1/0\n"])
def test_unusable_lists_are_explained(tmp_path, content):
    (tmp_path / "cuts.txt").write_bytes(content)
    reader = open_reader(write_images(tmp_path / "in", [picture(0)]))
    with pytest.raises(ValueError, match=r"cuts\.txt"):
        read_cuts(tmp_path / "cuts.txt", reader)


def test_threshold_is_set_by_partial():
    images = scene(6, 6) + scene(7, 6)
    assert not any(cut for _, cut in functools.partial(detected_cuts, threshold=1000)(clip(images)))
