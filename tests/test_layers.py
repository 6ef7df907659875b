"""Imports go one way: no module imports one of a later layer, also not inside a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    "stif_rt.version stif_rt.checkout stif_rt.dtypes stif_rt.errors stif_rt.files stif_rt.schema stif_rt.timing",
    "stif_rt.ops stif_rt.weights stif_rt.model.config",
    "stif_rt.geometry",
    "stif_rt.ops.native stif_rt.ops.nvrtc",
    "stif_rt.ops.deform_conv stif_rt.ops.matching",
    "stif_rt.model",
    "stif_rt.ops.implicit",
    "stif_rt.bundle",
    "stif_rt.engines",
    "stif_rt.runtime",
    "stif_rt.video",
    "stif_rt.interpolation stif_rt.flow stif_rt.frame_requests stif_rt.vapoursynth stif_rt.data",
    "stif_rt.evaluation stif_rt.training",
    "stif_export",
    "stif_rt.speed stif_rt.view",
    "stif_rt.cli",
    "stif_export.__main__",
)
RANKS = {module: rank for rank, layer in enumerate(LAYERS) for module in layer.split()}
FILES = {
    ".".join(
        ("stif_export" if folder == "export" else folder, *path.relative_to(ROOT / folder).with_suffix("").parts)
    ): path
    for folder in ("stif_rt", "export")
    for path in (ROOT / folder).rglob("*.py")
}


def rank(module):
    """The layer of the longest prefix of a module's name."""
    parts = module.split(".")
    return next((RANKS[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in RANKS), None)


def imported(module, path):
    """Everything that is imported anywhere in a file, by importlib too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            base = (start + (node.module or "")).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (
                part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )


@pytest.mark.parametrize("module", sorted(FILES))
def test_nothing_later_is_imported(module):
    name = module.removesuffix(".__init__")
    if name == "stif_rt":
        return  # it hands out the public names when they are asked for
    assert rank(name) is not None, f"{name} belongs to no layer: add it to LAYERS"
    later = {other for other in imported(module, FILES[module]) if (rank(other) or 0) > rank(name)}
    assert not later, f"{name} imports {sorted(later)}, which come after it"
