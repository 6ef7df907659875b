"""Building TensorRT engines; ``tensorrt`` and ``tensorrt-rtx`` go the same way."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stif_rt.bundle import Size, Sizes, file_checksum
from stif_rt.engines.tensorrt_engine import engine_key, import_tensorrt

WORKSPACE = 4 << 30


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "stif-rt" / "engines"


def engine_file(
    graph: Path, flavour: str, sizes: Sizes, dtype: str, cache: Path | None, progress: Callable[[str], None]
) -> tuple[Path, dict[str, str]]:
    """The engine of an ONNX file, from the cache or newly built, and its key.

    cache: folder for engines and timings; the user's cache folder if None. As ``build_engine`` otherwise.
    """
    device = None
    if flavour == "tensorrt":
        import_tensorrt(flavour)
        if not torch.cuda.is_available():
            raise RuntimeError("TensorRT builds an engine on the GPU that is to run it, and PyTorch sees none here")
        device = torch.device("cuda", torch.cuda.current_device())
    key = engine_key(flavour, file_checksum(graph), sizes, dtype, device)
    folder = cache or cache_folder()
    path = folder / f"{_hash(key)}.engine"
    if path.is_file():
        progress("engine taken from the cache")
        return path, key
    folder.mkdir(parents=True, exist_ok=True)
    timings = folder / f"{_hash({name: key[name] for name in ('builder', 'gpu')})}.timings"
    known = timings.read_bytes() if timings.is_file() else b""
    engine, learnt = build_engine(graph, flavour, sizes, known, progress)
    if learnt != known:
        store(timings, learnt)
    store(path, engine)
    return path, key


def build_engine(
    graph: Path, flavour: str, sizes: Sizes, timings: bytes, progress: Callable[[str], None]
) -> tuple[bytes, bytes]:
    """A strongly typed engine of an ONNX file for frames of these sizes, and the timings then known.

    Precision is that of the file; float32 stays float32, without TF32. ``tensorrt`` needs the GPU that is to run the
    engine, ``tensorrt-rtx`` none. Raises RuntimeError, with TensorRT's own words, where it cannot be built.
    """
    trt = import_tensorrt(flavour)
    log = make_log(trt)
    builder = trt.Builder(log)
    network, _weights = parse(trt, flavour, builder, graph, log)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.progress_monitor = make_monitor(trt, progress)
    cache = config.create_timing_cache(timings)
    config.set_timing_cache(cache, ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    profile.set_shape("frames", *(_shape(size) for size in sizes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError(f"{flavour} cannot build an engine of {graph.name}: {log.words()}")
    return bytes(engine), bytes(config.get_timing_cache().serialize())


def parse(trt: Any, flavour: str, builder: Any, graph: Path, log: Any) -> tuple[Any, Any]:
    """The file as TensorRT's network, and the parser, which keeps its weights.

    Raises RuntimeError, with the parser's words, for a file that it does not take.
    """
    if flavour == "tensorrt":
        from . import plugin  # noqa: F401 - importing it makes it known
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"node {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors[:3])
        raise RuntimeError(
            f"{flavour} cannot read {graph.name}: {said}. TensorRT-RTX needs the form grid-sample, TensorRT takes "
            "plugin and grid-sample"
        )
    return network, parser


def _shape(size: Size) -> tuple[int, ...]:
    return (size.batch, 2, 3, size.height, size.width)


def _hash(key: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def store(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def make_log(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors, for the message of ours."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(text)

        def words(self) -> str:
            return "; ".join(self.errors[:3]) or "it does not say why"

    return Log()


def make_monitor(trt: Any, progress: Callable[[str], None]) -> Any:
    """Reports the phases of a build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            progress(f"{phase}, 0 of {steps}")

        def step_complete(self, phase: str, step: int) -> bool:
            progress(f"{phase}, {step + 1} of {self.steps.get(phase, step + 1)}")
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()
