"""The networks that the paper's figure compares with, written afresh. One file each.

They share their blocks with ``stif_rt.model.encoder``, and so its deformable convolution.
``python -m benchmarks.peers`` prints their sizes beside the paper's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.peers.edvr import EDVR
from benchmarks.peers.super_slomo import SuperSloMo, published_parameters
from benchmarks.peers.tmnet import TMNet
from benchmarks.peers.zooming_slowmo import ZoomingSlowMo
from stif_rt.model.checkpoints import read_checkpoint
from stif_rt.model.stif import STIF


@dataclass(frozen=True)
class Peer:
    """paper: millions of parameters in the paper's Table 1. remark: what explains the difference."""

    label: str
    build: Callable[[], nn.Module]
    paper: float
    remark: str


PEERS = {
    "stif": Peer("STIF", STIF, 11.31, "counts 334,083 parameters of Zooming SlowMo's head, which STIF never runs"),
    "zooming_slowmo": Peer("Zooming SlowMo", ZoomingSlowMo, 11.10, "equal"),
    "tmnet": Peer("TMNet", TMNet, 12.26, "equal"),
    "super_slomo": Peer(
        "Super SloMo", SuperSloMo, 19.8, "the paper counts one of its two U-Nets; running it needs both"
    ),
    "edvr": Peer("EDVR", EDVR, 20.7, "equal: the large model for Vimeo-90K (128 channels, 7 frames)"),
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def load_peer(name: str, path: Path) -> nn.Module:
    """The network with a published file's weights, on the CPU. Raises ValueError where they do not fit.

    Files that hold code are not loaded.
    """
    network = PEERS[name].build()
    state: dict[str, Tensor]
    if name == "super_slomo" and path.suffix != ".safetensors":
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = published_parameters(content) if "state_dictFC" in content else content
    else:
        state, _ = read_checkpoint(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {PEERS[name].label}: {error}") from error
    return network


def size_table() -> str:
    """Markdown."""
    lines = ["| network | parameters | paper's Table 1 | difference |", "|---|---|---|---|"]
    for peer in PEERS.values():
        with torch.device("meta"):  # sizes only
            count = parameters(peer.build())
        lines.append(f"| {peer.label} | {count:,} | {peer.paper} M | {peer.remark} |")
    return "\n".join(lines)
