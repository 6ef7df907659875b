import re

import pytest
import torch
from helpers.models import TINY, fill_model

from stif_rt.engines import choose_engine, make_engine, torch_compiled
from stif_rt.engines.torch_compiled import CompiledEngine
from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.errors import CannotRunError
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


def test_without_a_compiler_auto_goes_on_and_a_name_is_an_error(monkeypatch):
    monkeypatch.setattr(torch_compiled.shutil, "which", lambda name: None)
    for device, said in (("cpu", "no g.. or clang"), ("cuda", "no gcc or clang|needs Triton")):
        assert re.search(said, torch_compiled.unavailable_reason(torch.device(device), torch.float32))
        assert choose_engine("auto", torch.device(device), torch.float32) == "torch"
        with pytest.raises(CannotRunError, match=said):
            choose_engine("compiled", torch.device(device), torch.float32)
    with pytest.raises(ValueError, match="unknown encoder engine 'magic'"):
        choose_engine("magic", CPU, torch.float32)


def test_auto_compiles_on_gpus_only():
    encoder = STIF(Config(**TINY)).encoder
    assert make_engine("auto", encoder, CPU, torch.float32).name == "torch"
