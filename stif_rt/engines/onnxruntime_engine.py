"""An exported encoder run by ONNX Runtime, which reads and writes PyTorch's tensors in place on CPU and GPU."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stif_rt.bundle import GRAPH, Bundle, Size, Sizes
from stif_rt.engines.exported import allocate_outputs, refuse_velocity
from stif_rt.errors import CannotRunError
from stif_rt.model.config import Config
from stif_rt.model.encoder import Features

PROVIDERS = {
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
}
"""By preference. What runs a session: ONNX Runtime's own names, the first of which must be available."""
ELEMENTS = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
"""ONNX's numbers of the dtypes."""


def import_runtime() -> Any:
    """The module. CannotRunError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise CannotRunError(
            "ONNX Runtime is not installed: pip install onnxruntime, or onnxruntime-gpu for NVIDIA GPUs"
        ) from error
    return onnxruntime


def unavailable_reason(device: torch.device, dtype: torch.dtype, provider: str = "auto") -> str | None:
    """Why ONNX Runtime cannot run an encoder of this dtype on this device, or None."""
    try:
        available = import_runtime().get_available_providers()
    except CannotRunError as error:
        return str(error)
    if device.type == "cpu" and dtype == torch.bfloat16:
        return "ONNX Runtime has no bfloat16 convolutions on the CPU"
    name = choose_provider(provider, device)
    if (name == "cpu") != (device.type == "cpu"):
        return f"the provider {name!r} does not run on {device.type}"
    if PROVIDERS[name][0] not in available:
        return f"the installed ONNX Runtime has no {PROVIDERS[name][0]}, only {', '.join(available)}"
    return None


def build(bundle: Bundle, device: torch.device, provider: str) -> "OnnxEngine":
    """The engine of a bundle; errors as of ``OnnxEngine``."""
    manifest = bundle.manifest
    assert manifest.sizes is not None
    return OnnxEngine(bundle.folder / GRAPH, manifest.config, manifest.sizes, device, manifest.torch_dtype, provider)


def choose_provider(name: str, device: torch.device) -> str:
    """A key of PROVIDERS; ``auto`` is the device's own. ValueError for an unknown name."""
    if name == "auto":
        return device.type
    if name not in PROVIDERS:
        raise ValueError(f"unknown ONNX Runtime provider {name!r}; there are: {', '.join(PROVIDERS)}")
    return name


class OnnxEngine:
    """``graph``: an encoder as ``stif-rt export onnx`` writes it. Raises CannotRunError, with the reason.

    CUDA is a provider by itself; ``tensorrt`` builds an engine at the first call for each size, which takes minutes.
    """

    name = "onnx"

    def __init__(
        self,
        graph: Path,
        config: Config,
        sizes: Sizes,
        device: torch.device,
        dtype: torch.dtype,
        provider: str = "auto",
    ) -> None:
        reason = unavailable_reason(device, dtype, provider)
        if reason is not None:
            raise CannotRunError(f"the encoder engine 'onnx' cannot run: {reason}")
        runtime = import_runtime()
        self.config, self.sizes, self.device, self.dtype = config, sizes, device, dtype
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors: a provider that cannot run says why below
        wanted = PROVIDERS[choose_provider(provider, device)]
        providers = [(name, {"device_id": device.index or 0} if device.type == "cuda" else {}) for name in wanted]
        try:
            self.session = runtime.InferenceSession(str(graph), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            raise CannotRunError(f"ONNX Runtime cannot load {graph}: {error}") from error
        if self.session.get_providers()[0] != wanted[0]:
            raise CannotRunError(f"ONNX Runtime could not start {wanted[0]}: a library that it needs is missing")

    @torch.inference_mode()
    def __call__(self, frames: Tensor, velocity: Tensor | None = None) -> Features:
        refuse_velocity(velocity)
        B, _, _, h, w = frames.shape
        self.sizes.check(Size(B, h, w), self.config.multiple)
        frames = frames.float().contiguous()
        outputs = allocate_outputs(self.config, frames.shape, self.dtype, self.device)
        binding = self.session.io_binding()
        device = (self.device.type, self.device.index or 0)
        binding.bind_input("frames", *device, ELEMENTS[torch.float32], tuple(frames.shape), frames.data_ptr())
        for name, x in outputs.items():
            binding.bind_output(name, *device, ELEMENTS[x.dtype], tuple(x.shape), x.data_ptr())
        if self.device.type == "cuda":  # ONNX Runtime has a stream of its own, and waits for it before it returns
            torch.cuda.current_stream(self.device).synchronize()
        self.session.run_with_iobinding(binding)
        return Features(*outputs.values())
