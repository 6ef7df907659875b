"""``stif-rt export``: the command line of ``stif_export``, which needs the extra ``export``."""

import importlib

import typer


def export(context: typer.Context) -> None:
    """Turn weights into a bundle for ONNX Runtime or TensorRT, or into an ONNX file."""
    try:
        commands = importlib.import_module("stif_export.cli")
    except ImportError as error:
        raise RuntimeError(f"exporting needs more packages ({error}): pip install 'stif-rt[export]'") from error
    commands.app(context.args, prog_name="stif-rt export")
