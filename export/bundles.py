"""What makes the files of bundles; ``stif_rt.bundle`` owns the format."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from stif_rt.bundle import (
    DEFAULT_FORMS,
    ENGINE,
    ENGINES,
    FORMAT,
    GRAPH,
    WEIGHTS,
    Bundle,
    Manifest,
    Sizes,
    new_bundle,
    write_manifest,
)
from stif_rt.engines import tensorrt_engine
from stif_rt.files import write_whole
from stif_rt.model.checkpoints import save_model
from stif_rt.model.stif import STIF

from . import build, graphs

TOOLS = ("stif-rt", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")

Progress = Callable[[str], None]


def write_bundle(
    model: STIF,
    target: Path,
    engine: str,
    dtype: str = "float32",
    sizes: Sizes | None = None,
    *,
    form: str | None = None,
    opset: int | None = None,
    overwrite: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda text: None,
) -> None:
    """Writes the bundle ``target``, which appears only when it is complete.

    engine: what is to run the encoder, one of ENGINES. sizes: of the frames; any if None.
    cache: folder for TensorRT's engines and timings.
    Raises ValueError for unknown names, FileExistsError where ``target`` exists and is not to be overwritten, and
    RuntimeError where an engine cannot be built here.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown encoder engine {engine!r}; there are: {', '.join(ENGINES)}")
    form, opset = form or DEFAULT_FORMS.get(engine, "standard"), opset or graphs.default_opset(dtype)
    graphs.check(form, opset, dtype)
    manifest = Manifest(model.config, engine, dtype, tools=tool_versions())
    sizes = sizes or graphs.any_size(model.config)
    with new_bundle(target, overwrite) as folder:
        save_model(model, folder / WEIGHTS)
        if engine != "torch":
            manifest = replace(manifest, form=form, opset=opset, sizes=sizes)
            progress("tracing the encoder")
            graph = graphs.encoder_graph(model.encoder, model.config, manifest.torch_dtype, sizes)
            graphs.save(graphs.finish(graph, form, opset), folder / GRAPH)
        if engine in tensorrt_engine.MODULES:
            built, key = build.cached_engine(folder / GRAPH, engine, sizes, dtype, cache, progress)
            write_whole(folder / ENGINE, built)
            manifest = replace(manifest, engine_key=key)
        write_manifest(folder, manifest)


def rebuild_engine(bundle: Bundle, cache: Path | None = None, progress: Progress = lambda text: None) -> None:
    """Builds a bundle's TensorRT engine again, for this machine. The bundle is replaced as a whole."""
    manifest = bundle.manifest
    if manifest.engine not in tensorrt_engine.MODULES or manifest.sizes is None:
        raise ValueError(f"bundle {bundle.folder} has no TensorRT engine: it was made for {manifest.engine!r}")
    with new_bundle(bundle.folder, overwrite=True) as folder:
        for name in (WEIGHTS, GRAPH):
            shutil.copyfile(bundle.folder / name, folder / name)
        built, key = build.cached_engine(
            folder / GRAPH, manifest.engine, manifest.sizes, manifest.dtype, cache, progress
        )
        write_whole(folder / ENGINE, built)
        write_manifest(folder, replace(manifest, engine_key=key, tools=tool_versions(), format=FORMAT))


def tool_versions() -> dict[str, str]:
    """The versions of the packages that make a bundle, of those that are installed."""
    versions = {}
    for package in TOOLS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__
    return versions
