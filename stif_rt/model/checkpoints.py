"""Reading and writing weights: published ``.pth`` files and ``.safetensors`` with the configuration inside.

Loading never runs code from a file; ``weight_files`` reads them.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stif_rt.dtypes import dtype_name
from stif_rt.errors import BadFileError
from stif_rt.files import whole_file
from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.implicit_functions import FEATURES, IMAGES
from stif_rt.model.stif import STIF
from stif_rt.model.weight_files import read_pickle, read_safetensors
from stif_rt.schema import parse_json

CONTAINERS = (
    "params_ema",
    "params",
    "model_state_dict",
    "state_dict",
    "model",
    "module",
    "netG",
    "net_g",
    "generator",
    "network",
)
"""Keys under which files keep the parameters, if not at the top; an average over the training comes first."""
DEEPEST = 4
"""How many containers may hold each other."""
WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, ``torch.compile`` and Lightning put before the names of parameters."""
LARGEST_VALUE = torch.finfo(torch.float16).max
"""Networks run in float16 too; and no trained network has a parameter of such a size."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class _Undrawn(TorchFunctionMode):
    """Draws no normal values for parameters: without values, PyTorch imports its compiler to do so, for seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Networks built inside have no values yet, on the meta device, for ``load_state_dict(assign=True)``."""
    with torch.device("meta"), _Undrawn():
        yield


def load_model(path: Path) -> STIF:
    """The network of a ``.pth``, ``.pt`` or ``.safetensors`` file, on the CPU in float32.

    The configuration comes from the file's metadata, else it is inferred from the parameters.

    Args:
        path: the file.

    Returns:
        The network, whose parameters require gradients.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: the file does not hold a network that can run, saying what is wrong with it.
    """
    state, config = read_checkpoint(path)
    try:
        config = config or infer_config(state)
    except ValueError as error:
        raise BadFileError(f"{path}: {error}") from error
    with without_values():
        model = STIF(config)
    check_parameters(path, model.state_dict(), state, largest=LARGEST_VALUE)
    model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return model.requires_grad_(True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Config | None]:
    """Parameters by published name, and the configuration where the file stores one. Errors as of ``load_model``."""
    if path.suffix.lower() == ".safetensors":
        state, metadata = read_safetensors(path)
        try:
            config = Config.from_dict(parse_json(metadata["config"])) if "config" in metadata else None
        except ValueError as error:
            raise BadFileError(f"{path}: {error}") from error
        return parameters_of(path, state), config
    content = read_pickle(path)
    return parameters_of(path, content), _stored_config(path, content)


def parameters_of(path: Path, content: object) -> dict[str, Tensor]:
    """Parameters by published name, of a file's content. Raises BadFileError where there are none."""
    # unbound methods, here and below: an unpickled object may have attributes of any name
    for _ in range(DEEPEST):
        inner = [dict.get(content, key) for key in CONTAINERS] if isinstance(content, dict) else []
        content = next((value for value in inner if isinstance(value, dict)), content)
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in dict.values(content)):
        raise BadFileError(
            f"{path} holds no parameters: expected names and tensors, also under {', '.join(CONTAINERS)}"
        )
    state = {str(k): Tensor.detach(v) for k, v in dict.items(content) if isinstance(v, Tensor)}
    return _unwrap(state)


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters without what trainers put before their names, and without what lies beside so named ones."""
    while True:
        state = {name.replace("._orig_mod.", "."): value for name, value in state.items()}
        prefix = next((p for p in WRAPPERS if any(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _stored_config(path: Path, content: object) -> Config | None:
    stored = dict.get(content, "config") if isinstance(content, dict) else None
    known = {field.name for field in fields(Config)}
    if not isinstance(stored, dict) or not known.intersection(dict.keys(stored)):
        return None  # another program's
    try:
        return Config.from_dict(stored)
    except ValueError as error:
        raise BadFileError(f"{path}: {error}") from error


def infer_config(state: Mapping[str, Tensor]) -> Config:
    """The configuration that parameters belong to which come without one.

    Some of its fields leave no trace in the parameters, such as grid, residual and fixed time. They are those of the
    configuration in ``CONFIGS`` that has exactly these parameters; where there is none, those of the paper.

    Raises:
        ValueError: They are no network's, or those of a network that follows motion and is not in ``CONFIGS``.
    """
    first = state.get("encode_imnet.net.0.linear.weight")
    if first is None or _unusable_kind(first, torch.empty(0)) or first.ndim != 2:
        raise ValueError("not a STIF checkpoint: it has no matrix 'encode_imnet.net.0.linear.weight'")
    for name, config in CONFIGS.items():
        if _has_parameters(state, _parameters(name)):
            return config
    if any(name.startswith("velocity_head.") for name in state):
        names = ", ".join(name for name, config in CONFIGS.items() if config.motion)
        raise ValueError(
            f"it has a velocity head, and is not exactly {names}; such a network needs its configuration in the file: "
            'write it with stif_rt.model.checkpoints.save_model, or put config.to_dict() under "config"'
        )

    def blocks(name: str) -> int:
        matches = (re.match(rf"{name}\.(\d+)\.", key) for key in state)
        return 1 + max((int(match[1]) for match in matches if match), default=-1)

    return replace(
        Config(),
        front_blocks=blocks("feature_extraction"),
        back_blocks=blocks("recon_trunk"),
        recurrent=any(name.startswith("ConvBLSTM.") for name in state),
        upsampling_head="upconv1.weight" in state,
        flow="flow_imnet.net.0.linear.weight" in state,
        aggregation=first.shape[1] > 2 * (FEATURES + IMAGES),
        single_function="feat_imnet.net.0.linear.weight" not in state,
    )


@functools.cache
def _parameters(name: str) -> dict[str, Tensor]:
    """The parameters of a configuration in ``CONFIGS``, without values."""
    with without_values():
        return STIF(CONFIGS[name]).state_dict()


def _has_parameters(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return state.keys() == expected.keys() and all(
        not _unusable_kind(state[name], value) and state[name].shape == value.shape for name, value in expected.items()
    )


def check_parameters(
    path: Path,
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    network: str = "its network",
    largest: float = torch.finfo(torch.float32).max,
) -> None:
    """Raises BadFileError, saying all that is wrong, where the parameters are not exactly those expected.

    largest: of the values' magnitudes: what the dtypes hold that they are going to be converted to.
    """
    problems: dict[str, list[str]] = {
        "missing": sorted(set(expected) - set(state)),
        "unexpected": sorted(set(state) - set(expected)),
        "of a kind that cannot be loaded": [],
        "of the wrong shape": [],
        "not finite": [],
        f"beyond {largest:.6g}, too large for a network": [],
    }
    *_, kinds, shapes, infinite, large = problems.values()
    for name in sorted(set(expected) & set(state)):
        value, wanted = state[name], expected[name]
        if kind := _unusable_kind(value, wanted):
            kinds.append(f"{name} ({kind})")
        elif value.shape != wanted.shape:
            shapes.append(f"{name} {list(value.shape)} instead of {list(wanted.shape)}")
        elif value.is_floating_point():
            low, high = value.aminmax()
            if not (low.isfinite() and high.isfinite()):
                infinite.append(name)
            elif max(-low.item(), high.item()) > largest:
                large.append(name)
    faults = [f"{len(names)} parameters {what}: {_shorten(names)}" for what, names in problems.items() if names]
    if faults:
        raise BadFileError(f"{path} does not fit {network}. " + "; ".join(faults))


def _unusable_kind(value: Tensor, wanted: Tensor) -> str | None:
    """Why a tensor cannot become a parameter, whatever its shape and values, or None."""
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    if value.is_quantized:
        return "quantised"
    if value.device.type != "cpu":
        return f"without values, on the device {value.device.type}"
    fits = value.dtype in FLOATS if wanted.is_floating_point() else value.dtype == wanted.dtype
    return None if fits else dtype_name(value.dtype)


def check_castable(module: nn.Module, dtype: torch.dtype) -> None:
    """Raises ValueError where a parameter is not finite, or would not be in this dtype."""
    largest = torch.finfo(dtype).max
    for name, value in module.named_parameters():
        if not bool((value.detach().abs() <= largest).all()):
            raise ValueError(
                f"the parameter {name} has values that {dtype_name(dtype)} cannot hold (up to {largest:.6g})"
            )


def _shorten(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def save_model(model: STIF, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write parameters and configuration as ``.safetensors``, whole or not at all.

    Args:
        model: the network.
        path: the file; one that exists is replaced. Its folder must exist.
        dtype: what the parameters are stored as.

    Raises:
        FileNotFoundError, OSError: the file cannot be written.
    """
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(state, temporary, metadata={"config": json.dumps(model.config.to_dict())})
