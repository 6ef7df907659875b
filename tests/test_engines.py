import re

import pytest
import torch
from helpers.models import TINY, fill_model

from stif_rt import Runtime
from stif_rt.engines import choose_engine, torch_compiled
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


def _never(graph, examples):
    raise AssertionError("nothing is compiled here")


@pytest.mark.slow
def test_many_sizes_are_compiled_a_few_times_and_none_runs_eagerly(caplog):
    """Beyond its limit of variants PyTorch runs a function as it is, without a word. Any size takes three at most."""
    graphs = []
    compiled = engine(CompiledEngine, backend=lambda graph, examples: graphs.append(graph) or graph)
    eager = engine(TorchEngine)
    with torch._dynamo.config.patch(recompile_limit=3):
        for h, w in ((20, 24), (24, 24), (28, 32), (36, 20), (20, 44)):
            frames = torch.rand(1, 2, 3, h, w)
            torch.testing.assert_close(compiled(frames).maps, eager(frames).maps, atol=1e-4, rtol=1e-4)
    assert not [record for record in caplog.records if record.name.startswith("stif_rt")]
    assert compiled.failures == 0
    assert len(graphs) <= 6, "extraction and merging, each at most at the first size, at any height, at any size"


@pytest.mark.slow
def test_a_failure_that_passes_does_not_switch_compiling_off(caplog):
    compiled, attempts = engine(CompiledEngine, backend=_never), []

    def flaky(frames, matching):
        attempts.append(1)
        if len(attempts) <= 3:
            raise RuntimeError("it passes")
        return compiled.encoder.extract(frames, matching)

    compiled._extract = flaky
    frames = torch.rand(1, 3, 8, 12)
    expected = engine(TorchEngine).extract(frames)
    made = []  # attempts after each call
    for _ in range(12):
        assert all(map(torch.equal, compiled.extract(frames), expected))
        made.append(len(attempts))
    assert made == [1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 5], "after a failure 1, 2, then 4 calls run eagerly"
    assert (compiled.failures, len(caplog.records)) == (0, 3)


def test_a_lack_of_memory_is_no_reason_to_compile_no_more():
    def refuse(frames, matching):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    compiled = engine(CompiledEngine, backend=_never)
    compiled._extract = refuse
    with pytest.raises(torch.cuda.OutOfMemoryError):
        compiled.extract(torch.rand(1, 3, 8, 12))
    assert compiled.failures == 0


def test_compiled_shares_frames_of_consecutive_pairs_too(frames):
    runtime = Runtime.from_model(fill_model(STIF(Config(**TINY))), device="cpu", dtype="float32", encoder="compiled")
    extracted, encoder = [], runtime._engine.encoder
    runtime._engine._extract = lambda *given: extracted.append(1) or encoder.extract(*given)
    runtime._engine._merge = encoder.merge
    for pair, calls in ((frames, 2), (frames[::-1], 1), (frames, 1)):
        extracted.clear()
        runtime.encode(*pair)
        assert len(extracted) == calls


def test_without_a_compiler_auto_goes_on_and_a_name_is_an_error(monkeypatch):
    monkeypatch.setattr(torch_compiled.shutil, "which", lambda name: None)
    for device, message in (("cpu", "no g.. or clang"), ("cuda", "no gcc or clang|needs Triton")):
        assert re.search(message, torch_compiled.unavailable_reason(torch.device(device), torch.float32))
        assert choose_engine("auto", torch.device(device), torch.float32) == "torch"
        with pytest.raises(CannotRunError, match=message):
            choose_engine("compiled", torch.device(device), torch.float32)
    with pytest.raises(ValueError, match="unknown encoder engine 'magic'"):
        choose_engine("magic", CPU, torch.float32)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_does_not_compile(device):
    """That takes a minute or more before the first frame."""
    assert choose_engine("auto", torch.device(device), torch.float32) == "torch"
