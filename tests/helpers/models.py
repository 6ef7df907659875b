"""Networks with deterministic weights."""

import sys
from pathlib import Path

import torch

from stif_rt.model.config import Config
from stif_rt.model.implicit_functions import ImplicitFunctions

GOLDEN = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from fill_weights import fill  # noqa: E402

TINY = {"front_blocks": 1, "back_blocks": 1, "recurrent": False, "upsampling_head": False}


def fill_model(model, seed: int = 0):
    """Deterministic weights that make flows of several pixels, so that mistakes show."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in fill(shapes, seed).items()})
    return model.eval()


def functions(config: Config) -> ImplicitFunctions:
    return fill_model(ImplicitFunctions(config))
