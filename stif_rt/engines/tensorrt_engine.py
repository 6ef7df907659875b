"""An exported encoder run by TensorRT or TensorRT-RTX, on PyTorch's stream and with its tensors."""

import importlib
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stif_rt.bundle import ENGINE, GRAPH, Bundle, Size, Sizes
from stif_rt.engines.exported import allocate_outputs, refuse_velocity
from stif_rt.errors import CannotRunError
from stif_rt.model.config import Config
from stif_rt.model.encoder import Features

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}


def import_tensorrt(flavour: str) -> Any:
    """The module of ``tensorrt`` or ``tensorrt-rtx``, which have one interface. CannotRunError where it is missing."""
    try:
        return importlib.import_module(MODULES[flavour])
    except ImportError as error:
        raise CannotRunError(
            f"{flavour} is not installed ({error}): pip install 'stif-rt[{EXTRAS[flavour]}]'"
        ) from error


def unavailable_reason(device: torch.device, dtype: torch.dtype, flavour: str) -> str | None:
    """Why engines of this flavour cannot run on this device, or None."""
    if device.type != "cuda":
        return "TensorRT runs on NVIDIA GPUs only"
    try:
        import_tensorrt(flavour)
    except CannotRunError as error:
        return str(error)
    return None


def build(bundle: Bundle, device: torch.device) -> "TensorRTEngine":
    """The engine of a bundle. Raises CannotRunError where it cannot run, or was built for something else."""
    manifest = bundle.manifest
    assert manifest.sizes is not None
    check_available(device, manifest.torch_dtype, manifest.engine)
    here = engine_key(manifest.engine, manifest.files[GRAPH], manifest.sizes, manifest.dtype, device)
    check_key(manifest.engine_key, here, bundle.folder)
    given = (bundle.folder / ENGINE, manifest.config, manifest.sizes, device, manifest.torch_dtype)
    return TensorRTEngine(manifest.engine, *given)


def check_available(device: torch.device, dtype: torch.dtype, flavour: str) -> None:
    """Raise CannotRunError, with the reason, where engines of this flavour cannot run on the device."""
    reason = unavailable_reason(device, dtype, flavour)
    if reason is not None:
        raise CannotRunError(f"the encoder engine {flavour!r} cannot run: {reason}")


def engine_key(
    flavour: str, graph_checksum: str, sizes: Sizes, dtype: str, device: torch.device | None
) -> dict[str, str]:
    """All that an engine depends on. An engine whose key differs is not loaded.

    device: the GPU it is built for. Those of TensorRT-RTX are finished by the GPU that loads them.
    """
    gpu = "any"
    if flavour == "tensorrt":
        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name}, sm_{properties.major}{properties.minor}"
    return {
        "builder": f"{flavour} {import_tensorrt(flavour).__version__}",
        "gpu": gpu,
        "graph": graph_checksum,
        "sizes": ", ".join(map(str, sizes)),
        "dtype": dtype,
    }


def check_key(built: dict[str, str] | None, here: dict[str, str], folder: Path) -> None:
    """Raises CannotRunError, saying what differs and what to do, where an engine was built for something else."""
    differences = [
        f"{name} {(built or {}).get(name, 'unknown')!r} there, {value!r} here"
        for name, value in here.items()
        if (built or {}).get(name) != value
    ]
    if differences:
        raise CannotRunError(
            f"the engine in {folder} was built for something else: {'; '.join(differences)}. "
            f"Build it again here: stif-rt export tensorrt {folder}"
        )


def make_logger(trt: Any) -> Any:
    """A logger that shows errors only."""
    return trt.Logger(trt.Logger.ERROR)


class TensorRTEngine:
    """``engine``: a file that ``stif-rt export`` built. Raises RuntimeError, with the reason, if it cannot run.

    Nothing waits for the GPU, so that after one call at a size the next can be captured in a CUDA graph. Threads take
    turns: they share what TensorRT computes in, and each gets a result of its own.
    """

    def __init__(
        self,
        flavour: str,
        engine: Path,
        config: Config,
        sizes: Sizes,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        check_available(device, dtype, flavour)
        self.name = flavour
        self.config, self.sizes, self.device, self.dtype = config, sizes, device, dtype
        trt = import_tensorrt(flavour)
        self._logger = make_logger(trt)
        with torch.cuda.device(device):
            self._runtime = trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
            if self._engine is None:
                raise CannotRunError(f"{flavour} cannot load {engine}; its own messages say why")
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise CannotRunError(f"{flavour} cannot run {engine}, perhaps for lack of GPU memory; its messages say why")
        self._shape = torch.Size()  # of the frames that the context is set up for
        self._lock = threading.Lock()
        self._last: tuple[int, torch.cuda.Event] | None = None  # the stream of the last call, and its end

    @torch.inference_mode()
    def __call__(self, frames: Tensor, velocity: Tensor | None = None) -> Features:
        refuse_velocity(velocity)
        B, _, _, h, w = frames.shape
        self.sizes.check(Size(B, h, w), self.config.multiple)
        frames = frames.float().contiguous()
        outputs = allocate_outputs(self.config, frames.shape, self.dtype, self.device)
        stream = torch.cuda.current_stream(self.device)
        with self._lock:
            if self._last is not None and self._last[0] != stream.cuda_stream:
                stream.wait_event(self._last[1])
            if frames.shape != self._shape and not self._context.set_input_shape("frames", tuple(frames.shape)):
                raise RuntimeError(f"{self.name} does not take frames of shape {list(frames.shape)}")
            self._shape = frames.shape
            self._context.set_tensor_address("frames", frames.data_ptr())
            for name, x in outputs.items():
                self._context.set_tensor_address(name, x.data_ptr())
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError(f"{self.name} failed to run the encoder; its own messages say why")
            end = torch.cuda.Event()
            end.record(stream)
            self._last = stream.cuda_stream, end
        return Features(*outputs.values())
