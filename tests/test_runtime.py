import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import TINY, fill_model

from stif_rt import Runtime
from stif_rt.model.checkpoints import save_model
from stif_rt.model.config import Config
from stif_rt.model.encoder import Encoder
from stif_rt.model.stif import STIF
from stif_rt.ops.implicit import native
from stif_rt.runtime import output_size


@pytest.fixture
def weights(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def runtime(weights):
    return Runtime.load(weights, device="cpu", dtype="float32")


def by_model(model, frames, t, size):
    """What the runtime must return: the model itself on replicate-padded frames, features cropped again."""
    pair = torch.stack([torch.from_numpy(f).movedim(-1, 0).float() / 255 for f in frames])[None]
    h, w = pair.shape[-2:]
    padded = F.pad(pair[0], (0, -w % 4, 0, -h % 4), mode="replicate")[None]
    with torch.no_grad():
        features = model.encode(padded).cropped((h, w), 1)
        return model.decode(features, pair, torch.tensor([t]), size).rgb[0].clamp(0, 1)


@pytest.mark.parametrize("t", [0, 0.3, 1])
@pytest.mark.parametrize(
    ("request_", "size"),
    [({}, (18, 21)), ({"scale": 4}, (72, 84)), ({"scale": 2.7}, (49, 57)), ({"size": (11, 90)}, (11, 90))],
)
def test_renders_what_the_model_says(runtime, tiny_model, frames, t, request_, size):
    runtime.encode(*frames)
    actual = runtime.render(t, **request_)
    assert actual.shape == (3, *size)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, by_model(tiny_model, frames, t, size), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (4, 4), (5, 4), (17, 1)])
def test_every_input_size(runtime, tiny_model, size):
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    runtime.encode(*frames)
    output = (size[0] * 3, size[1] * 3)
    torch.testing.assert_close(
        runtime.render(0.4, scale=3), by_model(tiny_model, frames, 0.4, output), atol=1e-4, rtol=0
    )


def test_kinds_of_input_agree(runtime, frames):
    runtime.encode(*frames)
    expected = runtime.render(0.5, scale=2)
    floats = [np.moveaxis(f, -1, 0).astype(np.float32) / 255 for f in frames]
    for pair in (
        [torch.from_numpy(f) for f in frames],
        floats,
        [torch.from_numpy(f) for f in floats],
        (frames[0], floats[1]),
        [f[::-1][::-1] for f in frames],  # negative strides, as from OpenCV's BGR order turned round
    ):
        runtime.encode(*pair)
        torch.testing.assert_close(runtime.render(0.5, scale=2), expected, atol=1e-5, rtol=0)


def test_several_times_and_kinds_of_output(runtime, frames):
    runtime.encode(*frames)
    several = runtime.render([0.25, 0.5], scale=1.5)
    assert several.shape == (2, 3, 27, 32)
    for t, one in zip((0.25, 0.5), several, strict=True):
        assert torch.equal(one, runtime.render(t, scale=1.5))
    pictures = runtime.render((0.25, 0.5), scale=1.5, output="uint8")
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures, (several * 255).round().byte().movedim(1, -1))
    assert runtime.render(0.25, output="uint8").shape == (18, 21, 3)
    for times in (np.array([0.25, 0.5]), torch.tensor([0.25, 0.5])):
        assert torch.equal(runtime.render(times, scale=1.5), several)
    assert runtime.render(torch.tensor(0.25)).shape == (3, 18, 21)


@pytest.mark.parametrize("region", [(0, 0, 72, 84), (0, 0, 1, 1), (71, 83, 1, 1), (10, 20, 30, 40), (5, 0, 7, 84)])
@pytest.mark.parametrize("grid", ["corners", "centres"])
def test_region_equals_that_part(frames, region, grid):
    runtime = Runtime.from_model(
        fill_model(STIF(Config(**TINY, grid=grid, residual=True))), device="cpu", dtype="float32"
    )
    runtime.encode(*frames)
    y, x, height, width = region
    whole = runtime.render(0.3, scale=4)
    part = runtime.render(0.3, scale=4, region=region)
    torch.testing.assert_close(part, whole[:, y : y + height, x : x + width], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fields", [{"flow": False}, {"single_function": True}, {"aggregation": False}])
def test_region_of_variants(frames, fields):
    runtime = Runtime.from_model(fill_model(STIF(Config(**TINY, **fields))), device="cpu", dtype="float32")
    runtime.encode(*frames)
    whole = runtime.render(0.3, scale=3)
    part = runtime.render(0.3, scale=3, region=(7, 11, 20, 30))
    torch.testing.assert_close(part, whole[:, 7:27, 11:41], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pixels", [3000, 1000, 500])
def test_result_does_not_depend_on_the_memory_budget(tiny_model, weights, frames, pixels):
    runtime = Runtime.load(weights, device="cpu", dtype="float32")
    runtime.encode(*frames)
    small = Runtime.load(weights, device="cpu", dtype="float32", max_memory=pixels * (64 * 4 + 16))
    largest = 0
    inner = small._renderer.kernels.implicit

    def spy(projections, view):
        nonlocal largest
        largest = max(largest, view.box.pixels)
        return inner(projections, view)

    small._renderer.kernels.implicit = spy
    small.encode(*frames)
    torch.testing.assert_close(small.render(0.3, scale=4), runtime.render(0.3, scale=4), atol=1e-5, rtol=0)
    assert 0 < largest <= pixels
    torch.testing.assert_close(small.flow(0.3, scale=4), runtime.flow(0.3, scale=4), atol=1e-4, rtol=0)


def test_smallest_memory_budget_still_renders(weights, frames):
    """Flows of many pixels reach far beyond a small piece: there the budget is exceeded, not the call refused."""
    small, normal = Runtime.load(weights, device="cpu", max_memory=1), Runtime.load(weights, device="cpu")
    for runtime in (small, normal):
        runtime.encode(*frames)
    torch.testing.assert_close(small.render(0.3, scale=3), normal.render(0.3, scale=3), atol=1e-5, rtol=0)


def test_flow(runtime, tiny_model, frames):
    runtime.encode(*frames)
    pair = torch.stack([torch.from_numpy(f).movedim(-1, 0).float() / 255 for f in frames])[None]
    padded = F.pad(pair[0], (0, 3, 0, 2), mode="replicate")[None]
    with torch.no_grad():
        features = tiny_model.encode(padded).cropped((18, 21), 1)
        expected = tiny_model.decode(features, pair, torch.tensor([0.3]), (36, 42)).flow[0]
    torch.testing.assert_close(runtime.flow(0.3, scale=2), expected, atol=1e-3, rtol=0)
    without = Runtime.from_model(STIF(Config(**TINY, flow=False)), device="cpu")
    without.encode(*frames)
    with pytest.raises(ValueError, match="no flow"):
        without.flow(0.5)


def test_new_pair_replaces_the_old_one(runtime, frames):
    runtime.encode(*frames)
    first = runtime.render(0.5)
    runtime.encode(frames[1], frames[0])
    assert not torch.equal(runtime.render(0.5), first)


def test_half_precision(weights, frames):
    exact, half = (Runtime.load(weights, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    for runtime in (exact, half):
        runtime.encode(*frames)
    assert (exact.render(0.5, scale=2) - half.render(0.5, scale=2)).abs().mean() < 0.02


def test_render_before_encode(runtime):
    with pytest.raises(RuntimeError, match="encode"):
        runtime.render(0.5)


def test_failed_encode_leaves_no_pair(runtime, frames):
    runtime.encode(*frames)
    with pytest.raises(ValueError, match="frame1"):
        runtime.encode(frames[0], frames[1].astype(np.float32))
    with pytest.raises(RuntimeError, match="encode"):
        runtime.render(0.5)


BAD_FRAMES = {
    "no channels": (np.zeros(4, np.uint8), ValueError, "shape"),
    "channels first": (np.zeros((3, 4, 4), np.uint8), ValueError, r"\[h, w, 3\]"),
    "float channels last": (np.zeros((4, 4, 3), np.float32), ValueError, r"\[3, h, w\]"),
    "0..255 as float": (np.full((3, 4, 4), 255, np.float32), ValueError, "0, 1"),
    "negative": (np.full((3, 4, 4), -0.1, np.float32), ValueError, "0, 1"),
    "NaN": (np.full((3, 4, 4), np.nan, np.float32), ValueError, "finite"),
    "integers": (np.zeros((4, 4, 3), np.int64), TypeError, "int64"),
    "nothing": (None, TypeError, "NoneType"),
    "empty": (np.zeros((0, 4, 3), np.uint8), ValueError, "empty"),
    "other size": (np.zeros((5, 4, 3), np.uint8), ValueError, "one size"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_bad_frames(runtime, kind):
    frame, error, message = BAD_FRAMES[kind]
    with pytest.raises(error, match=message):
        runtime.encode(np.zeros((4, 4, 3), np.uint8), frame)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t": 1.5}, r"\[0, 1\].*1\.5"),
        ({"t": -0.1}, r"\[0, 1\]"),
        ({"t": float("nan")}, r"\[0, 1\].*nan"),
        ({"t": []}, "at least one"),
        ({"t": [[0.5]]}, "shape"),
        ({"t": 0.5, "scale": 0}, "positive"),
        ({"t": 0.5, "scale": -1}, "positive"),
        ({"t": 0.5, "scale": float("inf")}, "positive"),
        ({"t": 0.5, "size": (0, 5)}, "from 1x1"),
        ({"t": 0.5, "scale": 1e9}, "from 1x1"),
        ({"t": 0.5, "size": 4}, "2 numbers"),
        ({"t": 0.5, "size": (1, 2, 3)}, "2 numbers"),
        ({"t": 0.5, "size": (float("inf"), 2)}, "2 numbers"),
        ({"t": 0.5, "region": (1, 2)}, "4 numbers"),
        ({"t": 0.5, "size": (2.5, 5)}, "whole pixels"),
        ({"t": 0.5, "scale": 2, "size": (4, 4)}, "not both"),
        ({"t": 0.5, "region": (0, 0, 19, 1)}, "region"),
        ({"t": 0.5, "region": (-1, 0, 2, 2)}, "region"),
        ({"t": 0.5, "region": (0, 0, 0, 2)}, "region"),
        ({"t": 0.5, "output": "int8"}, "output"),
    ],
)
def test_bad_requests(runtime, frames, arguments, message):
    runtime.encode(*frames)
    with pytest.raises(ValueError, match=message):
        runtime.render(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "float64"}, ValueError, "float64"),
        ({"kernels": "magic"}, ValueError, "magic"),
        ({"encoder": "magic"}, ValueError, "magic"),
        ({"device": "toaster"}, ValueError, "toaster"),
        ({"device": "meta"}, ValueError, "meta"),
        ({"max_memory": 0}, ValueError, "max_memory"),
        ({"weights": "nowhere.pth"}, FileNotFoundError, "nowhere"),
    ],
)
def test_bad_loading(arguments, error, message):
    with pytest.raises(error, match=message):
        Runtime.load(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absent_gpu_is_said(weights):
    with pytest.raises(RuntimeError, match="no CUDA GPU"):
        Runtime.load(weights, device="cuda")


def test_output_size():
    assert output_size((18, 21), None, None) == (18, 21)
    assert output_size((18, 21), 0.01, None) == (1, 1)
    assert output_size((180, 320), 4, None) == (720, 1280)


@pytest.mark.gpu
def test_gpu_equals_cpu(weights, frames):
    results = []
    for device in ("cpu", "cuda"):
        runtime = Runtime.load(weights, device=device, dtype="float32")
        runtime.encode(*frames)
        results.append(runtime.render([0.2, 0.9], scale=3.3).cpu())
    torch.testing.assert_close(*results, atol=1e-3, rtol=0)


def test_a_shared_frame_is_extracted_once(weights, monkeypatch):
    """The pair after (a, b) begins with b; what does not follow on, or has another size, is extracted anew."""
    rng = np.random.default_rng(0)
    a, b, c, large = (
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((9, 12), (9, 12), (9, 12), (12, 12))
    )
    runtime = Runtime.load(weights, device="cpu", dtype="float32")
    extracted = []
    extract = Encoder.extract
    monkeypatch.setattr(Encoder, "extract", lambda self, *given: extracted.append(1) or extract(self, *given))
    for pair, calls in (((a, b), 2), ((b, c), 1), ((a, c), 2), ((c, c), 1), ((large, large), 2)):
        extracted.clear()
        runtime.encode(*pair)
        assert len(extracted) == calls
        fresh = Runtime.load(weights, device="cpu", dtype="float32")
        fresh.encode(*pair)
        assert torch.equal(runtime.render(0.3, scale=2), fresh.render(0.3, scale=2))


def test_auto_takes_the_dtype_that_the_cpu_is_fastest_with(weights, monkeypatch):
    for units, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(native, "has_bfloat16", lambda units=units: units)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        assert Runtime.load(weights, device="cpu").dtype == dtype
