"""Building TensorRT engines; ``tensorrt`` and ``tensorrt-rtx`` go the same way."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stif_rt.bundle import Size, Sizes, file_checksum
from stif_rt.engines.tensorrt_engine import engine_key, import_tensorrt
from stif_rt.errors import CannotRunError
from stif_rt.files import cache_folder, read_cache, write_cache

WORKSPACE = 4 << 30


def cached_engine(
    graph: Path, flavour: str, sizes: Sizes, dtype: str, cache: Path | None, progress: Callable[[str], None]
) -> tuple[bytes, dict[str, str]]:
    """The engine of an ONNX file, from the cache or newly built, and its key.

    cache: folder for engines and timings; the user's cache folder if None. As ``build_engine`` otherwise.
    """
    device = None
    if flavour == "tensorrt":
        import_tensorrt(flavour)
        if not torch.cuda.is_available():
            raise CannotRunError("TensorRT builds an engine on the GPU that is to run it, and PyTorch sees none here")
        device = torch.device("cuda", torch.cuda.current_device())
    key = engine_key(flavour, file_checksum(graph), sizes, dtype, device)
    user_cache = cache_folder()
    folder = cache or (user_cache and user_cache / "engines")
    path = folder and folder / f"{_hash(key)}.engine"
    engine = read_cache(path)
    if engine is not None:
        progress("engine taken from the cache")
        return engine, key
    timings = folder and folder / f"{_hash({name: key[name] for name in ('builder', 'gpu')})}.timings"
    known = read_cache(timings) or b""
    engine, learnt = build_engine(graph, flavour, sizes, known, progress)
    if learnt != known:
        write_cache(timings, learnt)
    write_cache(path, engine)
    return engine, key


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
        messages = "; ".join(
            f"node {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors[:3]
        )
        raise RuntimeError(
            f"{flavour} cannot read {graph.name}: {messages}. TensorRT-RTX needs the form grid-sample, TensorRT takes "
            "plugin and grid-sample"
        )
    return network, parser


def _shape(size: Size) -> tuple[int, ...]:
    return (size.batch, 2, 3, size.height, size.width)


def _hash(key: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


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
