"""csrc/cuda/implicit.cu without a GPU: its source run on the CPU (tests/emulation), compiled for every generation of
GPUs, launched on fake tensors, and chosen where it should be."""

import ctypes
import shutil

import pytest
import torch
from helpers.cases import CASES, VARIANTS, Case
from helpers.emulation import compile_emulation
from helpers.implicit import expected, run
from helpers.models import functions

from stif_rt.model.config import Config
from stif_rt.ops.implicit import cuda_backend, reference

CPU = torch.device("cpu")


# Emulated


class Emulator:
    """Takes the place of ``cuda_backend.launch``. seed: of the order in which threads run."""

    def __init__(self, folder):
        self.folder, self.libraries, self.seed = folder, {}, 0

    def launch(self, name, defined, box, times, **arguments):
        for value in arguments.values():
            assert not isinstance(value, torch.Tensor) or value.is_contiguous()
        if defined not in self.libraries:
            (folder := self.folder / str(len(self.libraries))).mkdir()
            self.libraries[defined] = compile_emulation("implicit", folder, defined)
        library = self.libraries[defined]
        given = cuda_backend.arguments_of(name, box, times, arguments)
        assert ctypes.sizeof(given) == getattr(library, f"size_of_{name}")()
        blocks = (ctypes.c_int * 3)(*cuda_backend.grid(box, times))
        ended = getattr(library, f"run_{name}")(blocks, cuda_backend.THREADS, self.seed, ctypes.byref(given))
        assert ended, "threads wait for ever"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return Emulator(tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def emulated(emulator, monkeypatch):
    """The backend on the CPU. Memory that kernels are to write holds NaN first, so that what they leave out shows."""
    new_empty = torch.Tensor.new_empty

    def poison(self, *arguments, **options):
        made = new_empty(self, *arguments, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(77)

    monkeypatch.setattr(cuda_backend, "launch", emulator.launch)
    monkeypatch.setattr(torch.Tensor, "new_empty", poison)
    monkeypatch.setattr(emulator, "seed", 0)
    return emulator


def build(config: Config):
    return cuda_backend.build(functions(config), CPU, torch.float16)


def assert_as_good_as_pytorch(config, case):
    """Error against float64 at most twice that of the reference in the same dtype, of each thing that passes return."""
    actual = run(build(config), config, case)
    plain = run(reference.build(functions(config), CPU, torch.float16), config, case)
    for name, a, p, exact in zip(
        ("feature", "flow", "rgb"), actual, plain, expected(functions(config), case, torch.float64), strict=True
    ):
        assert (a is None) == (exact is None)
        if a is not None:
            error, allowed = ((x.double() - exact).square().mean().sqrt() for x in (a, p))
            assert error <= 2 * allowed + 1e-4, f"{name}: {error:.2e}, the reference's {allowed:.2e}"


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_as_good_as_pytorch(emulated, variant):
    config = VARIANTS[variant]
    times = (0.5,) if config.fixed_time else (0.2, 1.0)
    assert_as_good_as_pytorch(config, Case("variant", (7, 10), (15, 34), times, batch=1 if config.fixed_time else 2))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["residual", "compact", "compact at stride 2"])
def test_every_case_is_as_good_as_pytorch(emulated, variant, case):
    assert_as_good_as_pytorch(VARIANTS[variant], case)
