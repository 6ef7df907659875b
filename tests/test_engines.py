import pytest
import torch
from helpers.models import TINY, fill_model

from stif_rt.engines import make_engine
from stif_rt.engines.torch_compiled import CompiledEngine
from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF

CPU = torch.device("cpu")


def engine(kind, **options):
    return kind(fill_model(STIF(Config(**TINY))).encoder, CPU, torch.float32, **options)


@pytest.mark.slow
def test_compiled_encoder_equals_the_eager_one():
    """Traced as for a GPU, deformable convolutions included, but run by PyTorch."""
    frames = torch.rand(1, 2, 3, 8, 12)
    compiled = engine(CompiledEngine, backend="aot_eager")
    torch.testing.assert_close(compiled(frames), engine(TorchEngine)(frames), atol=1e-4, rtol=1e-4)
    assert compiled.failures == 0


@pytest.mark.slow
def test_compiled_encoder_runs_eagerly_where_it_cannot_be_compiled(caplog):
    frames = torch.rand(1, 2, 3, 8, 12)

    def broken(graph, examples):
        raise RuntimeError("no C compiler")

    compiled = engine(CompiledEngine, backend=broken)
    assert torch.equal(compiled(frames).maps, engine(TorchEngine)(frames).maps)
    assert "no C compiler" in caplog.text
    assert torch.equal(compiled(frames).maps, engine(TorchEngine)(frames).maps)


def test_auto_compiles_on_gpus_only():
    encoder = STIF(Config(**TINY)).encoder
    assert make_engine("auto", encoder, CPU, torch.float32).name == "torch"
