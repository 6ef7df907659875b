"""The contract of exported encoders, which ONNX graphs, TensorRT engines and what runs them share.

Input ``frames``: float32 [B, 2, 3, h, w], sides multiples of ``Config.multiple``. Outputs: ``features``, in the
encoder's dtype, and where the configuration has ``motion`` also ``velocity``, float32: the fields of ``Features``.
"""

import torch
from torch import Tensor

from stif_rt.model.config import CHANNELS, Config


def output_names(config: Config) -> list[str]:
    """Names of the outputs, in the order of the fields of ``Features``."""
    return ["features", "velocity"] if config.motion else ["features"]


def allocate_outputs(config: Config, frames: torch.Size, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Uninitialised outputs by name, for frames of a shape."""
    B, _, _, h, w = frames
    h, w = h // config.feature_stride, w // config.feature_stride
    shapes = {"features": ((B, 3, CHANNELS, h, w), dtype), "velocity": ((B, 2, h, w), torch.float32)}
    return {name: torch.empty(*shapes[name][0], dtype=shapes[name][1], device=device) for name in output_names(config)}


def refuse_velocity(velocity: Tensor | None) -> None:
    """Raises ValueError where one is given: an exported encoder has no input for it."""
    if velocity is not None:
        raise ValueError(
            "an exported encoder finds the velocity itself and takes none; load the weights instead of the bundle, "
            "or the bundle with encoder='torch'"
        )
