"""Compilation of CUDA C++ at run time, and the cache of what was compiled."""

import pytest

from stif_rt import files
from stif_rt.ops import nvrtc

pytestmark = pytest.mark.skipif(nvrtc.unavailable_reason() is not None, reason="needs NVRTC, of PyTorch's CUDA build")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "kernel.cu"
    path.write_text('extern "C" __global__ void kernel(float *x) { *x = 1.0f; }')
    return path


def test_compiled_once(monkeypatch, tmp_path, source):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = nvrtc.compile_source(source, "compute_80")
    assert b".entry kernel" in code
    (kept,) = (tmp_path / "cache" / "stif-rt").iterdir()
    files.write_cache(kept, b"from the cache")
    assert nvrtc.compile_source(source, "compute_80") == b"from the cache"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert nvrtc.compile_source(source, "compute_80") == code
    assert files.read_cache(kept) == code


def test_compiles_where_nothing_can_be_kept(monkeypatch, tmp_path, source, caplog):
    files._warn_not_kept.cache_clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    codes = [nvrtc.compile_source(source, "compute_80") for _ in range(2)]
    assert (codes[0], len(caplog.records)) == (codes[1], 1)
    assert "XDG_CACHE_HOME" in caplog.text


def test_compiler_errors_are_quoted(monkeypatch, tmp_path, source):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source.write_text("nonsense;")
    with pytest.raises(RuntimeError, match=r"cannot compile kernel\.cu for compute_80.*nonsense"):
        nvrtc.compile_source(source, "compute_80")
    assert not (tmp_path / "cache").exists()
