"""Runtime, engines and transfers on an NVIDIA GPU. ``pytest -m gpu`` runs it."""

import pytest
import torch
from helpers.models import TINY, fill_model

from stif_rt.engines import make_engine
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime
from stif_rt.video.render import to_host

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def test_a_replayed_graph_gives_the_same_frames(frames):
    plain, graphed = (
        Runtime.from_model(fill_model(STIF(Config(**TINY, grid="centres", residual=True))), device="cuda", use_graph=g)
        for g in (False, True)
    )
    first, second = frames
    for pair in ((first, second), (second, first)):
        plain.encode(*pair)
        graphed.encode(*pair)
        for t in (0.25, 0.5, 0.75):
            for size in ((40, 50), (36, 42)):
                assert torch.equal(graphed.render(t, size=size), plain.render(t, size=size))


def test_pictures_come_back_in_order():
    images = [{"rgb": torch.full((64, 64, 3), n, dtype=torch.uint8, device=CUDA)} for n in range(7)]
    assert [int(image["rgb"][0, 0, 0]) for image in to_host(iter(images))] == list(range(7))


def test_compiled_encoder_matches_the_eager_one():
    config = Config(**TINY)
    frames = torch.rand(1, 2, 3, 32, 40, device=CUDA)
    eager, compiled = (
        make_engine(name, fill_model(STIF(config)).encoder, CUDA, torch.float32) for name in ("torch", "compiled")
    )
    torch.testing.assert_close(compiled(frames), eager(frames), atol=1e-3, rtol=1e-3)
    assert compiled.failures == 0
