"""Networks with deterministic weights."""

import sys
from pathlib import Path
from typing import Any, TypeVar

import torch

from stif_rt.model.config import Config
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.model.velocity import VelocityHead

Network = TypeVar("Network", bound=torch.nn.Module)
GOLDEN = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from fill_weights import fill  # type: ignore[import-not-found]  # noqa: E402

TINY: dict[str, Any] = {"front_blocks": 1, "back_blocks": 1, "recurrent": False, "upsampling_head": False}


def fill_model(model: Network, seed: int = 0) -> Network:
    """Deterministic weights that make flows of several pixels, so that mistakes show.

    The velocity head works from its start on; that is drawn anew and disturbed, so that nothing in it is zero.
    """
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    head = {name for name in shapes if name.startswith("velocity_head.")}
    state = fill({name: shape for name, shape in shapes.items() if name not in head}, seed)
    values = {name: torch.from_numpy(value) for name, value in state.items()}
    if head:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = {f"velocity_head.{name}": value for name, value in VelocityHead().state_dict().items()}
            values |= {name: value + 0.02 * torch.randn(value.shape) for name, value in fresh.items()}
    model.load_state_dict(values)
    return model.eval()


def functions(config: Config) -> ImplicitFunctions:
    return fill_model(ImplicitFunctions(config))
