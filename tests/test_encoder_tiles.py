"""Frames encoded in overlapping tiles: equal to the whole, within the budget, or refused with a reason."""

import copy

import pytest
import torch
from helpers.cases import LEARNED, MOTION
from helpers.models import TINY, fill_model

from stif_rt.geometry import Box
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime, encoding
from stif_rt.runtime.device import default_memory, free_memory

STEP = 1 / 255
NETWORKS = {
    "deformable": Config(**TINY, grid="centres", residual=True),
    "motion": Config(**MOTION, **LEARNED),
    "motion at stride 2": Config(**(MOTION | {"front_blocks": 0}), **LEARNED, feature_stride=2),
}


def smooth_pair(height: int, width: int) -> torch.Tensor:
    """Two frames [2, 3, height, width] with motion of some pixels between them."""
    torch.manual_seed(0)
    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, height // 4 + 4, width // 4 + 4), (height + 8, width + 8), mode="bicubic"
    )[0]
    frames = (picture[:, 8 - 3 * k : 8 - 3 * k + height, 5 * k : 5 * k + width] for k in (0, 1))
    return torch.stack(tuple(frames)).clamp(0, 1)


def compare(
    monkeypatch, model: STIF, frames: torch.Tensor, velocity: torch.Tensor | None = None, core: int = 64
) -> float:
    """Largest difference between pictures of the pair that is encoded in small tiles, and in one piece."""
    monkeypatch.setattr(encoding, "SMALLEST_CORE", core)
    whole = Runtime.from_model(copy.deepcopy(model), device="cpu", dtype="float32", max_memory="4GB")
    tiled = Runtime.from_model(copy.deepcopy(model), device="cpu", dtype="float32", max_memory=1)
    calls = []
    monkeypatch.setattr(tiled._engine.encoder, "extract", count(tiled._engine.encoder.extract, calls))
    expected, actual = whole.encode(*frames, velocity=velocity), tiled.encode(*frames, velocity=velocity)
    assert len(calls) >= 6, "it was not encoded in tiles"  # each tile has two frames, and so has the whole
    for a, b in zip(actual._projections.tensors, expected._projections.tensors, strict=True):
        assert a.shape == b.shape
        assert a.is_contiguous()
    pictures = (pair.render([0.0, 0.5]) for pair in (expected, actual))
    return float(torch.sub(*pictures).abs().max())


def count(function, calls):
    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return function(*args, **kwargs)

    return counted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("deformable", (13, 270)), ("motion", (203, 26)), ("motion", (90, 79)), ("motion at stride 2", (31, 205))],
)
def test_tiles_have_no_seam(monkeypatch, name, size):
    core = 32 if name == "motion" else 64
    assert compare(monkeypatch, fill_model(STIF(NETWORKS[name])), smooth_pair(*size), core=core) < STEP / 10


@pytest.mark.slow
def test_tiles_of_the_bundled_weights(monkeypatch, compact_model):
    assert compare(monkeypatch, compact_model, smooth_pair(12, 280), core=90) < STEP / 10


@pytest.mark.slow
def test_tiles_along_a_given_velocity(monkeypatch):
    """Large and different everywhere: halos follow it."""
    torch.manual_seed(1)
    velocity = 30 * torch.nn.functional.interpolate(torch.randn(1, 2, 2, 6), (24, 208), mode="bilinear")[0]
    model = fill_model(STIF(NETWORKS["motion"]))
    assert compare(monkeypatch, model, smooth_pair(24, 208), velocity) < 1e-4


def test_the_next_pair_of_a_video(monkeypatch):
    """Nothing of a frame is kept in tiles that the next pair would take for the whole."""
    monkeypatch.setattr(encoding, "SMALLEST_CORE", 48)
    model, frames = fill_model(STIF(NETWORKS["motion at stride 2"])), smooth_pair(8, 100)
    runtime = Runtime.from_model(model, device="cpu", dtype="float32", max_memory=1)
    runtime.encode(*frames)
    second, fresh = runtime.encode(*frames.flip(0)), copy.copy(runtime).encode(*frames.flip(0))
    assert torch.equal(second.render(0.5), fresh.render(0.5))


def test_the_recurrent_stage_is_not_tiled(monkeypatch, caplog):
    monkeypatch.setattr(encoding, "SMALLEST_CORE", 4)
    model, frames = fill_model(STIF(Config(**(TINY | {"recurrent": True})))), torch.rand(2, 3, 4, 12)
    tight = Runtime.from_model(copy.deepcopy(model), device="cpu", dtype="float32", max_memory=1)
    free = Runtime.from_model(copy.deepcopy(model), device="cpu", dtype="float32")
    expected = free.encode(*frames).render(0.5)
    for _ in range(2):
        assert torch.equal(tight.encode(*frames).render(0.5), expected)
    assert ["recurrent stage" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("size", [(64, 64), (1080, 1920), (2160, 3840), (8, 5000), (4, 4)])
@pytest.mark.parametrize("halo", [(19, 19), (71, 71), (60, 250)])
@pytest.mark.parametrize("pixels", [1, 1 << 17, 1 << 20])
def test_tiles_cover_the_frame_once_and_keep_to_the_budget(size, halo, pixels):
    tiles = encoding.tiles(size, halo, pixels)
    assert sum(core.pixels for core, _ in tiles) == size[0] * size[1]
    whole = Box(0, 0, *size)
    for core, box in tiles:
        assert whole.contains(box)
        assert box.top % encoding.UNIT == box.left % encoding.UNIT == 0
        bottom, right = core.top + core.height + halo[0], core.left + core.width + halo[1]
        top, left = max(core.top - halo[0], 0), max(core.left - halo[1], 0)
        assert box.contains(Box(top, left, min(bottom, size[0]) - top, min(right, size[1]) - left))
    smallest = min(encoding.SMALLEST_CORE, size[0]) + 2 * (halo[0] + 8)
    if pixels >= 2 * smallest * (2 * encoding.SMALLEST_CORE + 2 * (halo[1] + 8)):
        assert max(box.pixels for _, box in tiles) <= pixels


@pytest.mark.parametrize(
    ("files", "bytes_"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4096 kB\n"}, 4096 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable: 4096 kB\n",
                "sys/fs/cgroup/memory.max": "1000000\n",
                "sys/fs/cgroup/memory.current": "400000\n",
            },
            600_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 4 kB\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "1\n",
            },
            4096,
        ),
    ],
)
def test_free_memory_is_the_machine_s_or_the_container_s(tmp_path, files, bytes_):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == bytes_


def test_default_memory_is_a_share_of_it(monkeypatch):
    for free, expected in ((4 << 30, 1 << 30), (1 << 40, 2 << 30), (None, 1 << 30)):
        monkeypatch.setattr("stif_rt.runtime.device.free_memory", lambda free=free: free)
        assert default_memory(torch.device("cpu")) == expected
