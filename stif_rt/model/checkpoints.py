"""Reading and writing weights: published ``.pth`` files and ``.safetensors`` with the configuration inside.

Loading never runs code from a file: ``.pth`` is read with ``weights_only=True``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stif_rt.files import whole_file
from stif_rt.model.config import Config
from stif_rt.model.implicit_functions import FEATURES, IMAGES
from stif_rt.model.stif import STIF

CONTAINERS = ("state_dict", "model_state_dict", "params", "model")
"""Keys under which files keep the parameters, if not at the top."""


def load_model(path: Path) -> STIF:
    """The network of a ``.pth``, ``.pt`` or ``.safetensors`` file, on the CPU in float32.

    The configuration comes from the file's metadata, else it is inferred from the parameters.
    Raises FileNotFoundError, or ValueError saying what is wrong with the file.
    """
    state, config = read_checkpoint(path)
    try:
        config = config or infer_config(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with torch.device("meta"):
        model = STIF(config)
    check_parameters(path, model.state_dict(), state)
    model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return model.requires_grad_(True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Config | None]:
    """Parameters by published name, and the configuration where the file stores one."""
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
        try:
            config = Config.from_dict(json.loads(metadata["config"])) if "config" in metadata else None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
        return state, config
    content = read_content(path)
    return parameters_of(path, content), _stored_config(content)


def read_content(path: Path) -> object:
    """What a ``.pth`` file holds, without running code from it. Raises ValueError where that is not possible."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # malformed bytes make the unpickler fail in any way
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors; files that hold code are not loaded ({error})"
        ) from error


def parameters_of(path: Path, content: object) -> dict[str, Tensor]:
    """Parameters by published name, of a file's content. Raises ValueError where there are none."""
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no parameters: expected names and tensors, also under {', '.join(CONTAINERS)}")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _stored_config(content: object) -> Config | None:
    stored = content.get("config") if isinstance(content, Mapping) else None
    return Config.from_dict(dict(stored)) if isinstance(stored, Mapping) else None


def infer_config(state: Mapping[str, Tensor]) -> Config:
    """The configuration that parameters of a published checkpoint belong to.

    Grid, residual and fixed time leave no trace in the parameters and are taken to be the paper's.
    """
    if "encode_imnet.net.0.linear.weight" not in state:
        raise ValueError("not a STIF checkpoint: it has no parameter 'encode_imnet.net.0.linear.weight'")

    def blocks(name: str) -> int:
        matches = (re.match(rf"{name}\.(\d+)\.", key) for key in state)
        return 1 + max((int(match[1]) for match in matches if match), default=-1)

    decoder_inputs = state["encode_imnet.net.0.linear.weight"].shape[1]
    return replace(
        Config(),
        front_blocks=blocks("feature_extraction"),
        back_blocks=blocks("recon_trunk"),
        recurrent=any(name.startswith("ConvBLSTM.") for name in state),
        upsampling_head="upconv1.weight" in state,
        flow="flow_imnet.net.0.linear.weight" in state,
        aggregation=decoder_inputs > 2 * (FEATURES + IMAGES),
        single_function="feat_imnet.net.0.linear.weight" not in state,
    )


def check_parameters(
    path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], network: str = "its network"
) -> None:
    """Raises ValueError, saying all that is wrong, where the parameters are not exactly those expected."""
    problems = [
        ("missing", sorted(set(expected) - set(found))),
        ("unexpected", sorted(set(found) - set(expected))),
        (
            "of the wrong shape",
            [
                f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
                for name in expected
                if name in found and found[name].shape != expected[name].shape
            ],
        ),
        ("not finite", [name for name, value in found.items() if not torch.isfinite(value).all()]),
    ]
    said = [f"{len(names)} parameters {what}: {_shorten(names)}" for what, names in problems if names]
    if said:
        raise ValueError(f"{path} does not fit {network}. " + "; ".join(said))


def _shorten(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def save_model(model: STIF, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes parameters and configuration as ``.safetensors``, under a temporary name until complete."""
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(state, temporary, metadata={"config": json.dumps(model.config.to_dict())})
