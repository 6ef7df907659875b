"""Compilation of CUDA C++ at run time, and the cache of what was compiled."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from helpers.deform_conv import inputs

from stif_rt import files
from stif_rt.errors import CannotRunError, OutOfMemoryError
from stif_rt.ops import deform_conv, nvrtc
from stif_rt.ops.deform_conv import cuda

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


def test_threads_that_want_one_kernel_compile_it_once(monkeypatch, tmp_path, source):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled = []
    compile_ = nvrtc._compile
    monkeypatch.setattr(nvrtc, "_compile", lambda *arguments: compiled.append(1) or compile_(*arguments))
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda _: nvrtc.compile_source(source, "compute_80"), range(4)))
    assert len(set(codes)) == len(compiled) == 1


def test_threads_that_want_different_kernels_compile_at_once(monkeypatch, tmp_path, source):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    both = threading.Barrier(2)
    monkeypatch.setattr(nvrtc, "_compile", lambda *_: both.wait(timeout=60).to_bytes(1, "big"))
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda architecture: nvrtc.compile_source(source, architecture), ("sm_80", "sm_90")))
    assert sorted(codes) == [b"\0", b"\1"]


class Driver:
    """What ``cuda.py`` calls of the CUDA driver, which refuses the first ``refused`` modules."""

    def __init__(self, refused=0, status="CUDA_ERROR_INVALID_IMAGE"):
        self.refused, self.status = refused, status

    def cuModuleLoadData(self, code):
        self.refused -= 1
        failed = SimpleNamespace(value=200, name=self.status)
        return (failed,) if self.refused >= 0 else (SimpleNamespace(value=0, name="CUDA_SUCCESS"), code)

    def cuModuleGetFunction(self, module, name):
        return SimpleNamespace(value=0, name="CUDA_SUCCESS"), object()


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As far as the launcher asks, there is a GPU whose driver is the one that the function is given."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    codes = []
    monkeypatch.setattr(cuda, "compile_kernel", lambda architecture, reuse=True: codes.append(reuse) or b"code")
    cuda._load.cache_clear()
    deform_conv._warn_of_fallback.cache_clear()

    def install(driver):
        monkeypatch.setattr("cuda.bindings.driver", driver)
        return codes

    yield install
    cuda._load.cache_clear()
    deform_conv._warn_of_fallback.cache_clear()


def test_a_kept_kernel_that_the_driver_refuses_is_compiled_anew(gpu):
    codes = gpu(Driver(refused=1))
    assert cuda.unavailable_reason(torch.device("cuda"), torch.float16) is None
    assert codes == [True, False]


@pytest.mark.parametrize("failure", ["driver", "compiler"])
def test_without_the_kernel_pytorch_computes_and_a_warning_says_why_once(gpu, monkeypatch, caplog, failure):
    gpu(Driver(refused=2))
    if failure == "compiler":
        monkeypatch.setattr(cuda, "compile_kernel", lambda *_: (_ for _ in ()).throw(CannotRunError("no headers")))
    given = inputs(1, 4, 2, 5, 6, 3)
    for _ in range(3):
        actual = deform_conv.deform_conv2d_on_cuda(*given)
    torch.testing.assert_close(actual, deform_conv.deform_conv2d_reference(*given))
    (record,) = caplog.records
    assert ("CUDA_ERROR_INVALID_IMAGE" if failure == "driver" else "no headers") in record.getMessage()


def test_a_gpu_without_memory_is_not_taken_for_one_without_the_kernel(gpu):
    gpu(Driver(refused=1, status="CUDA_ERROR_OUT_OF_MEMORY"))
    with pytest.raises(OutOfMemoryError):
        cuda.unavailable_reason(torch.device("cuda"), torch.float32)
    assert cuda.unavailable_reason(torch.device("cuda"), torch.float32) is None  # it has passed
