"""The VapourSynth filter in VapourSynth itself; what it is made of has its tests in test_frame_requests.py."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.videos import picture

from stif_rt import Runtime

vs = pytest.importorskip("vapoursynth", reason="needs VapourSynth, whose wheels need Python 3.12")
stif = pytest.importorskip("stif_rt.vapoursynth").stif

FORMATS = [vs.RGBS, vs.RGBH]
FLOAT32 = {"device": "cpu", "dtype": "float32"}


def make_clip(images, fps=Fraction(24), format=vs.RGBS, **properties):
    """A clip of pictures [3, h, w] in [0, 1]."""
    h, w = images[0].shape[1:]
    options = {"width": w, "height": h, "length": len(images), "format": format}
    blank = vs.core.std.BlankClip(fpsnum=fps.numerator, fpsden=fps.denominator, **options)

    def fill(n, f):
        frame = f.copy()
        for plane in range(3):
            np.asarray(frame[plane])[:] = images[n][plane]
        frame.props["name"] = n
        frame.props.update({name: values[n] for name, values in properties.items()})
        return frame

    return blank.std.ModifyFrame(blank, fill)


def moving(length, size=(18, 32)):
    return [np.moveaxis(picture(n, size), -1, 0).astype(np.float32) / 255 for n in range(length)]


def pictures(clip, numbers=None):
    numbers = range(clip.num_frames) if numbers is None else numbers
    return [np.stack([np.asarray(clip.get_frame(n)[plane]) for plane in range(3)]) for n in numbers]


@pytest.fixture(scope="module")
def runtime():
    return Runtime.load(**FLOAT32)


@pytest.mark.parametrize("format", FORMATS, ids=["RGBS", "RGBH"])
def test_frames_are_the_runtime_s(format, runtime):
    images = moving(4)
    clip = stif(make_clip(images, format=format), scale=2, factor_num=5, factor_den=2, **FLOAT32)
    assert (clip.format.id, clip.width, clip.height, clip.num_frames, clip.fps) == (format, 64, 36, 10, 60)
    if format == vs.RGBH:
        images = [image.astype(np.float16).astype(np.float32) for image in images]
    for n, rendered in enumerate(pictures(clip)):
        before = min(n * 2 // 5, 2)
        t = min(Fraction(n * 2, 5) - before, 1)
        expected = runtime.encode(*images[before : before + 2]).render(float(t), scale=2).numpy()
        np.testing.assert_allclose(rendered, expected, atol=1e-6 if format == vs.RGBS else 1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"width": 80, "src_left": 8, "src_top": 4, "src_width": 20, "src_height": 10},
        {"scale": 1, "src_left": 3, "src_width": 11},
    ],
)
def test_windows_are_parts_of_the_whole(options, runtime):
    images = moving(2)
    clip = stif(make_clip(images), factor_num=2, **options, **FLOAT32)
    scale, left, top = clip.width // options["src_width"], options["src_left"], options.get("src_top", 0)
    region = (top * scale, left * scale, clip.height, clip.width)
    expected = runtime.encode(*images).render(0.5, scale=scale, region=region).numpy()
    np.testing.assert_allclose(pictures(clip, [1])[0], expected, atol=1e-6)


def test_source_frames_come_out_as_they_are_at_their_own_size():
    images = [image * 1.5 - 0.2 for image in moving(3)]  # beyond [0, 1] too
    clip = stif(make_clip(images), factor_num=2, **FLOAT32)
    for n, image in enumerate(images):
        np.testing.assert_array_equal(pictures(clip, [2 * n])[0], image)
    between = pictures(clip, [1])[0]
    assert between.min() >= 0
    assert between.max() <= 1


def test_grey_stays_grey():
    images = [np.repeat(image[:1], 3, 0) for image in moving(2)]
    rendered = pictures(stif(make_clip(images), scale=2, factor_num=2, **FLOAT32), [1])[0]
    np.testing.assert_array_equal(rendered[0], rendered[1])
    np.testing.assert_array_equal(rendered[0], rendered[2])


def test_properties():
    clip = make_clip(moving(3), _SceneChangePrev=[0] * 3, _Transfer=[1] * 3, _SARNum=[1] * 3, _SARDen=[1] * 3)
    clip = stif(clip, width=64, height=18, fps_num=60000, fps_den=1001, **FLOAT32)
    assert clip.fps == Fraction(60000, 1001)
    properties = dict(clip.get_frame(1).props)
    assert not [name for name in properties if name.startswith("_SceneChange")]
    assert (properties["_DurationNum"], properties["_DurationDen"]) == (1001, 60000)
    assert (properties["_Transfer"], properties["name"]) == (1, 0)
    assert (properties["_SARNum"], properties["_SARDen"]) == (1, 2)


@pytest.mark.parametrize("marked", [True, False], ids=["by properties", "detected"])
@pytest.mark.parametrize("options", [{}, {"sc_threshold": 0.6}, {"sc": False}], ids=str)
def test_scene_cuts(marked, options):
    """Between frames 5 and 6, where the properties say another place."""
    images = moving(6) + [1 - image[:, ::-1, ::-1] ** 3 for image in moving(5)]
    properties = {"_SceneChangeNext": [int(n == 2) for n in range(11)]} if marked else {}
    clip = stif(make_clip(images, **properties), factor_num=4, **options, **FLOAT32)
    held = []
    for n in range(10):
        before, late, after = pictures(clip, [4 * n + 1, 4 * n + 3, 4 * n + 4])
        if np.array_equal(before, images[n]) and np.array_equal(late, after):
            held.append(n)
    assert held == ([] if options == {"sc": False} else [2] if marked and not options else [5])


def test_out_of_order_from_several_threads(monkeypatch):
    encoded, encode = [], Runtime.encode
    monkeypatch.setattr(Runtime, "encode", lambda self, *frames: (encoded.append(1), encode(self, *frames))[1])
    images = moving(31, (12, 16))
    clip = stif(make_clip(images), scale=1.5, factor_num=4, **FLOAT32)
    generator = random.Random(0)
    numbers = sorted(range(120), key=lambda n: n + generator.uniform(0, 8))
    futures = {n: clip.get_frame_async(n) for n in numbers}
    rendered = {
        n: np.stack([np.asarray(future.result()[plane]) for plane in range(3)]) for n, future in futures.items()
    }
    assert len(encoded) <= 34
    alone = stif(make_clip(images), scale=1.5, factor_num=4, **FLOAT32)
    for n in (0, 1, 57, 119):
        np.testing.assert_allclose(rendered[n], pictures(alone, [n])[0], atol=1e-6)


@pytest.mark.parametrize("length", [1, 2])
def test_short_clips(length):
    clip = stif(make_clip(moving(length)), scale=2, factor_num=3, **FLOAT32)
    rendered = pictures(clip)
    assert len(rendered) == 3 * length
    np.testing.assert_array_equal(rendered[-1], rendered[-2])


def test_a_variable_rate():
    source = make_clip(moving(3), _DurationNum=[1, 2, 3], _DurationDen=[24] * 3)
    source = source.std.BlankClip(fpsnum=0, fpsden=1).std.ModifyFrame([source], lambda n, f: f)
    assert source.fps == 0
    clip = stif(source, factor_num=2, **FLOAT32)
    durations = [clip.get_frame(n).props for n in range(6)]
    assert clip.fps == 0
    assert [Fraction(p["_DurationNum"], p["_DurationDen"]) * 48 for p in durations] == [1, 1, 2, 2, 3, 3]


def test_nothing_on_standard_output(capfd):
    pictures(stif(make_clip(moving(2)), scale=2, factor_num=2, **FLOAT32))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("format", "message"),
    [
        (vs.YUV420P8, r'not YUV420P8; give clip.resize.Bicubic\(format=vs.RGBS, matrix_in_s="709"\)'),
        (vs.RGB24, r"not RGB24; give clip.resize.Bicubic\(format=vs.RGBS\)"),
        (vs.GRAYS, "not GrayS"),
    ],
)
def test_other_formats_are_one_clear_line(format, message):
    with pytest.raises(vs.Error, match=rf"^stif: the clip must be RGBS or RGBH, {message}[^\n]*$"):
        stif(vs.core.std.BlankClip(format=format))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1}, "scale must be a positive number, not -1"),
        ({"fps_num": 0}, "fps_num must be a positive integer, not 0"),
        ({"src_left": 99}, "the window must lie in the clip's 32 pixels"),
        ({"sc_threshold": "x"}, "sc_threshold must be a number, not 'x'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"weights": "nowhere.pth"}, "nowhere.pth"),
        ({"max_memory": "much"}, "max_memory must be"),
    ],
)
def test_unusable_arguments_are_one_clear_line(options, message):
    with pytest.raises(vs.Error, match=rf"^stif: [^\n]*{message}[^\n]*$"):
        stif(make_clip(moving(2)), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value):
    images = moving(2)
    images[1][0, 3, 4] = value
    if np.isinf(value):
        clip = stif(make_clip(images), scale=2, factor_num=2, **FLOAT32)
        assert torch.isfinite(torch.from_numpy(pictures(clip, [1])[0])).all()  # clamped
        return
    with pytest.raises(vs.Error) as error:
        pictures(stif(make_clip(images), scale=2, factor_num=2, **FLOAT32), [1])
    last = str(error.value).strip().splitlines()[-1]  # VapourSynth puts the traceback before what filters raise
    assert last == "vapoursynth.Error: stif: source frames 0 and 1: frame1 holds values that are not finite"
