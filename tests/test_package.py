import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from stif_rt import Runtime
from stif_rt.model.checkpoints import load_model
from stif_rt.model.config import CONFIGS
from stif_rt.runtime import bundled_weights
from stif_rt.version import VERSION

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False])
def test_wheel_holds_everything(tmp_path, compiler):
    """One wheel for all versions of Python; without a compiler it lacks the native library and nothing else."""
    source = tmp_path / "source"
    unwanted = (".*", "build", "out", "*.egg-info", "*.so", "__pycache__", "tests", "demo", "docs")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*unwanted))
    environment = os.environ | ({} if compiler else {"CC": "/bin/false", "CXX": "/bin/false"})
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "stif_rt").rglob("*.py")}
    modules |= {f"stif_export/{path.name}" for path in (ROOT / "export").glob("*.py")}
    files = (
        "weights/stif-s.safetensors",
        "weights/stif-i.safetensors",
        "weights/stif-s.toml",
        "weights/README.md",
        "py.typed",
        "ops/deform_conv.cu",
        "view/index.html",
        "view/view.css",
        "view/view.js",
    )
    assert modules | {f"stif_rt/{name}" for name in files} <= names
    assert ("stif_rt/ops/libstif_rt_cpu.so" in names) == (compiler and shutil.which("g++") is not None)


def test_bundled_weights_are_the_compact_configuration():
    runtime = Runtime.load()
    assert runtime.config == CONFIGS["stif-s"]
    for name in ("stif-s", "stif-i"):
        path = bundled_weights().with_name(f"{name}.safetensors")
        assert load_model(path).config == CONFIGS[name]
        assert path.stat().st_size <= 3_500_000


def test_bundled_weights_render_a_moving_edge():
    """A bright edge moves by four pixels: halfway it has moved by about two, and flat parts keep their colour."""
    frames = torch.full((2, 3, 32, 48), 0.2)
    frames[0, :, :, 20:] = 0.8
    frames[1, :, :, 24:] = 0.8
    runtime = Runtime.load()
    runtime.encode(frames[0], frames[1])
    middle = runtime.render(0.5, scale=4)
    assert (middle[:, 16:-16, :56] - 0.2).abs().max() < 0.08
    assert (middle[:, 16:-16, 120:] - 0.8).abs().max() < 0.08
    crossing = (middle[:, 16:-16].mean((0, 1)) > 0.5).float().argmax().item()
    assert abs(crossing - 88) <= 6


@pytest.mark.slow
def test_a_missing_gpu_is_a_failure_where_one_is_required():
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--require-gpu", "tests/test_flow.py"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --require-gpu: PyTorch sees no CUDA GPU on this machine" in done.stdout + done.stderr


def test_the_citation_names_this_version():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {VERSION}" in lines


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("test_*.py")), ids=lambda path: path.stem)
def test_no_test_module_imports_another(path):
    """What several share is in ``helpers``."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert not [name for name in imported if name.split(".")[-1].startswith(("test_", "conftest"))]


def imported(code: str, *names: str) -> set[str]:
    """Which of the modules a new process has imported after some code."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('|', *sys.modules)"
    command = [sys.executable, "-c", script]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(names) & set(made.stdout.rpartition("|")[2].split())


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"], ["render"], ["render", "--help"]])
def test_help_and_usage_errors_need_no_pytorch(arguments):
    code = f"import stif_rt.cli as c; sys.argv = ['stif-rt', *{arguments}]; sys.exit(c.app())"
    assert imported(code, "typer", "torch") == {"typer"}


@pytest.mark.slow
def test_networks_are_loaded_without_pytorchs_compiler():
    """Which takes longer to import than everything else, and rendering does not use."""
    build = (
        "from stif_rt.model.checkpoints import without_values; from stif_rt.model.config import CONFIGS; "
        "from stif_rt.model.stif import STIF; from stif_rt import Runtime; Runtime.load(); w = without_values(); "
        "w.__enter__(); [STIF(config) for config in CONFIGS.values()]"
    )
    assert imported(build, "torch", "torch._dynamo", "sympy") == {"torch"}
