"""Frames as people have them: which are taken, as which pixels, and what is said of the others."""

import itertools
import sys
import warnings

import numpy as np
import pytest
import torch

from stif_rt import Runtime
from stif_rt.errors import OutOfMemoryError, StifError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (9, 12), dtype=np.uint8)
PLANES = np.ascontiguousarray(np.moveaxis(RGB, -1, 0)).astype(np.float32) / 255


@pytest.fixture(scope="module")
def runtime(tiny_model):
    import copy

    return Runtime.from_model(copy.deepcopy(tiny_model), device="cpu", dtype="float32")


def picture(runtime, frame0, frame1=None):
    return runtime.encode(frame0, frame0 if frame1 is None else frame1).render(0.4, scale=2)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def pil(array, mode=None):
    picture = pytest.importorskip("PIL.Image").fromarray(array)
    return picture if mode is None else picture.convert(mode)


SAME = {
    "tensor [h, w, 3]": lambda: torch.from_numpy(RGB),
    "tensor [3, h, w]": lambda: torch.from_numpy(RGB).movedim(-1, 0).contiguous(),
    "view [3, h, w]": lambda: torch.from_numpy(RGB).movedim(-1, 0),
    "negative strides": lambda: RGB[::-1].copy()[::-1],
    "Fortran order": lambda: np.asfortranarray(RGB),
    "read-only": lambda: read_only(RGB),
    "PIL": lambda: pil(RGB),
    "float32": lambda: PLANES,
    "float64": lambda: PLANES.astype(np.float64),
    "big-endian": lambda: PLANES.astype(">f4"),
    "big-endian double": lambda: PLANES.astype(">f8"),
    "long double": lambda: PLANES.astype(np.longdouble),
    "read-only float": lambda: read_only(PLANES),
    "tensor with gradients": lambda: torch.from_numpy(PLANES).requires_grad_(),
    "inference tensor": lambda: _inference_tensor(),
}
GREYS = {
    "array": lambda: GREY,
    "array [h, w, 1]": lambda: GREY[..., None],
    "tensor": lambda: torch.from_numpy(GREY),
    "tensor [1, h, w]": lambda: torch.from_numpy(GREY)[None],
    "PIL": lambda: pil(GREY),
    "float": lambda: GREY.astype(np.float32) / 255,
    "float [1, h, w]": lambda: torch.from_numpy(GREY)[None] / 255,
}


def _inference_tensor():
    with torch.inference_mode():
        return torch.from_numpy(PLANES).clone()


@pytest.mark.parametrize("kind", SAME)
def test_the_same_pixels_give_the_same_picture(runtime, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = picture(runtime, SAME[kind](), RGB[::-1])
    torch.testing.assert_close(actual, picture(runtime, RGB, RGB[::-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", GREYS)
def test_grey_is_rgb_of_equal_channels(runtime, kind):
    expected = picture(runtime, np.repeat(GREY[..., None], 3, -1))
    torch.testing.assert_close(picture(runtime, GREYS[kind]()), expected, atol=1e-5, rtol=0)


def test_half_precision_frames_are_taken(runtime):
    for half in (PLANES.astype(np.float16), PLANES.astype(">f2"), torch.from_numpy(PLANES).bfloat16()):
        assert (picture(runtime, half) - picture(runtime, RGB)).abs().max() < 0.2


def test_batches_are_pairs_side_by_side(runtime):
    first, second = (RNG.integers(0, 256, (3, 9, 12, 3), dtype=np.uint8) for _ in range(2))
    floats = [torch.from_numpy(x).movedim(-1, 1) / 255 for x in (first, second)]
    times = torch.tensor([[0.1, 0.5], [0.2, 0.6], [0.9, 1.0]])
    pairs = [runtime.encode(*frames) for frames in zip(first, second, strict=True)]
    for batch in (
        runtime.encode(first, second),
        runtime.encode(torch.from_numpy(first), torch.from_numpy(second)),
        runtime.encode(*floats),
    ):
        assert (batch.batch, batch.size) == (3, (9, 12))
        for arguments in ({}, {"region": (2, 3, 5, 7)}, {"output": "uint8"}):
            one, several, own = (batch.render(t, scale=1.5, **arguments) for t in (0.3, [0.3, 0.7], times))
            for n, pair in enumerate(pairs):
                for actual, t in ((one[n], 0.3), (several[n], [0.3, 0.7]), (own[n], times[n])):
                    expected = pair.render(t, scale=1.5, **arguments)
                    assert actual.shape == expected.shape
                    difference = (actual.float() - expected.float()).abs().max()
                    assert difference <= (1 if arguments.get("output") else 1e-4)
        torch.testing.assert_close(batch.flow(0.3)[1], pairs[1].flow(0.3), atol=1e-3, rtol=0)
    alone = runtime.encode(first[:1], second[:1])
    assert alone.render(0.5).shape == (1, 3, 9, 12)


REFUSED = {
    "RGBA": (lambda: np.zeros((4, 5, 4), np.uint8), ValueError, r"frame0\[\.\.\., :3\]"),
    "RGBA tensor": (lambda: torch.zeros(4, 6, 5, dtype=torch.uint8), ValueError, r"frame0\[\.\.\., :3, :, :\]"),
    "PIL RGBA": (lambda: pil(RGB, "RGBA"), ValueError, r'frame0\.convert\("RGB"\)'),
    "PIL palette": (lambda: pil(RGB, "P"), ValueError, r"'P'.*convert"),
    "either": (lambda: torch.zeros(3, 5, 3, dtype=torch.uint8), ValueError, "as well as.*float"),
    "channels first": (lambda: np.zeros((3, 4, 5), np.uint8), ValueError, r"moveaxis\(frame0, -3, -1\)"),
    "float channels last": (lambda: np.zeros((4, 5, 3)), ValueError, r"moveaxis\(frame0, -1, -3\)"),
    "meta": (lambda: torch.zeros(3, 4, 5, device="meta"), ValueError, "meta"),
    "sparse": (lambda: torch.zeros(3, 4, 5).to_sparse(), TypeError, r"frame0\.to_dense\(\)"),
    "complex": (lambda: np.zeros((3, 4, 5), np.complex64), TypeError, "complex64"),
    "uint16": (lambda: np.zeros((4, 5, 3), np.uint16), TypeError, "65535"),
    "bool": (lambda: torch.zeros(3, 4, 5, dtype=torch.bool), TypeError, "bool"),
    "objects": (lambda: np.full((4, 5, 3), 10**400, dtype=object), TypeError, "object"),
    "list": (lambda: [[1, 2], [3, 4]], TypeError, r"a list \(\[\[1, 2\], \[3, 4\]\]\)"),
    "huge list": (lambda: [10**5000], TypeError, "a list"),
    "path": (lambda: "frame.png", TypeError, "a str"),
    "infinite": (lambda: np.full((3, 4, 5), np.inf, ">f8"), ValueError, "not finite"),
    "beyond float32": (lambda: np.full((3, 4, 5), 1e300), ValueError, "not finite|values from"),
    "beyond float64": (lambda: np.full((3, 4, 5), np.longdouble("1e400")), ValueError, "not finite|values from"),
    "masked": (lambda: np.ma.masked_array(RGB, mask=RGB > 99), TypeError, r"frame0\.filled\(0\)"),
    "five axes": (lambda: np.zeros((1, 1, 4, 5, 3), np.uint8), ValueError, "shape"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_frames_are_refused(runtime):
    frame = torch.quantize_per_tensor(torch.zeros(3, 4, 5), 0.1, 0, torch.quint8)
    with pytest.raises(TypeError, match=r"frame0\.dequantize\(\)"):
        runtime.encode(frame, frame)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_frames_are_refused_in_one_line(runtime, kind):
    make, error, message = REFUSED[kind]
    frame = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=message) as caught:
            runtime.encode(frame, frame)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_batches_must_match(runtime):
    with pytest.raises(ValueError, match=r"one size.*batch of 2"):
        runtime.encode(np.zeros((2, 4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.uint8))


def test_memory_that_changes_does_not(runtime, tmp_path):
    """Buffers that a reader fills again and again: what was encoded from them stays as it was."""
    frames = [RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(4)]
    expected = [picture(runtime, *pair) for pair in itertools.pairwise(frames)]
    mapped = [np.memmap(tmp_path / name, np.uint8, "w+", shape=(9, 12, 3)) for name in "ab"]
    buffers = [torch.empty(9, 12, 3, dtype=torch.uint8), torch.empty(9, 12, 3, dtype=torch.uint8)]
    for kind in (mapped, buffers):
        pairs = []
        for before, after in itertools.pairwise(frames):
            for target, source in zip(kind, (before, after), strict=True):
                target[:] = source if kind is mapped else torch.from_numpy(source)
            pairs.append(runtime.encode(*kind))
        for pair, same in zip(pairs, expected, strict=True):
            assert torch.equal(pair.render(0.4, scale=2), same)


def test_float_buffers_are_not_shared(runtime):
    buffer = torch.from_numpy(PLANES.copy())
    pair = runtime.encode(buffer, buffer)
    expected = pair.render(0.4)
    buffer.zero_()
    assert torch.equal(pair.render(0.4), expected)
    assert not torch.equal(runtime.encode(buffer, buffer).render(0.4), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t": 10**400}, "t must be"),
        ({"t": [0.5, 10**400]}, "t must be"),
        ({"t": "early"}, "t must be.*'early'"),
        ({"t": None}, "t must be"),
        ({"t": "0.5"}, "t must be.*'0.5'"),
        ({"t": ["0.5"]}, "t must be"),
        ({"t": [0.1, None]}, "t must be.*None"),
        ({"t": [0.1, [0.2]]}, "t must be"),
        ({"t": 0.5, "scale": 10**400}, "scale must be"),
        ({"t": 0.5, "scale": 1e308}, "from 1x1"),
        ({"t": 0.5, "scale": "4"}, "scale must be.*'4'"),
        ({"t": 0.5, "scale": (2, 3, 4)}, "scale must be"),
        ({"t": 0.5, "scale": (2, 0)}, "scale must be"),
        ({"t": 0.5, "size": (10**400, 1)}, "size"),
        ({"t": 0.5, "size": "1920x1080"}, "size"),
        ({"t": 0.5, "region": (0, 0, 10**400, 1)}, "region"),
        ({"t": 0.5, "region": (0, 0, 1e300, 1)}, "region"),
        ({"t": 0.5, "output": ["uint8"]}, "output"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_are_said_in_one_line(runtime, arguments, message):
    pair = runtime.encode(RGB, RGB)
    with pytest.raises(ValueError, match=message) as caught:
        pair.render(**arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_scale_may_differ_by_axis(runtime):
    pair = runtime.encode(RGB, RGB)
    assert torch.equal(pair.render(0.5, scale=(2, 3)), pair.render(0.5, size=(18, 36)))
    assert torch.equal(pair.render(0.5, scale=np.float32(2)), pair.render(0.5, scale=2))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is promised that is not there")
def test_out_of_memory_says_how_much_and_what_to_do(runtime, monkeypatch):
    pair = runtime.encode(RGB, RGB)
    with pytest.raises(OutOfMemoryError, match=r"4000 pictures of 65536x65536 needs about .* GiB.*region") as caught:
        pair.render(np.linspace(0, 1, 4000), size=(65536, 65536))
    assert isinstance(caught.value, (MemoryError, StifError))

    def refuse(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: ...")

    monkeypatch.setattr(type(runtime._engine), "extract", refuse)
    with pytest.raises(OutOfMemoryError, match=r"encoding two frames of 12x9 needs about .* smaller frames"):
        runtime.encode(RGB, RGB)
