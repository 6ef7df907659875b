"""The networks that the paper's figure compares with, written afresh. One file each.

They share their blocks with ``stif_rt.model.encoder``, and so its deformable convolution.
``python -m benchmarks.peers`` prints their sizes beside the paper's.
"""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers import basicvsr, dain, liif, qvi, super_slomo
from benchmarks.peers.edvr import EDVR
from benchmarks.peers.tmnet import TMNet
from benchmarks.peers.zooming_slowmo import ZoomingSlowMo
from stif_rt.evaluation.published import WEIGHTS
from stif_rt.model.checkpoints import check_parameters, parameters_of, read_checkpoint
from stif_rt.model.stif import STIF
from stif_rt.model.weight_files import read_pickle


@dataclass(frozen=True)
class Peer:
    """A network of the paper's tables.

    paper: millions of parameters in the paper's Table 1. remark: what explains the difference. unpack: finds the
    parameters in the content of a file as its authors publish it.
    """

    label: str
    build: Callable[[], nn.Module]
    paper: float | None
    remark: str
    unpack: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


PEERS = {
    "stif": Peer(
        "STIF",
        STIF,
        11.31,
        "counts 334,083 parameters of Zooming SlowMo's head, which STIF never runs",
    ),
    "zooming_slowmo": Peer("Zooming SlowMo", ZoomingSlowMo, 11.10, "equal"),
    "tmnet": Peer("TMNet", TMNet, 12.26, "equal"),
    "super_slomo": Peer(
        "Super SloMo",
        super_slomo.SuperSloMo,
        19.8,
        "the paper counts one of its two U-Nets; running it needs both",
        super_slomo.published_parameters,
    ),
    "qvi": Peer("QVI", qvi.QVI, 29.2, "equal"),
    "dain": Peer(
        "DAIN",
        dain.DAIN,
        24.0,
        "equal; 66 of them never run, and 14,144 stored statistics are not counted",
        dain.published_parameters,
    ),
    "edvr": Peer(
        "EDVR",
        EDVR,
        20.7,
        "equal: the large model for Vimeo-90K (128 channels, 7 frames)",
    ),
    "basicvsr": Peer(
        "BasicVSR",
        basicvsr.BasicVSR,
        6.3,
        "equal: 64 channels, 30 blocks, SPyNet included",
        basicvsr.published_parameters,
    ),
    "liif_edsr": Peer(
        "LIIF (EDSR-baseline)",
        liif.liif_edsr,
        None,
        "not in Table 1; its authors say 1.6 M, 24 of which never run",
        liif.published_parameters,
    ),
    "liif_rdn": Peer(
        "LIIF (RDN)",
        liif.liif_rdn,
        None,
        "not in Table 1; its authors say 22.3 M",
        liif.published_parameters,
    ),
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def load_peer(name: str, path: Path) -> nn.Module:
    """The network with a published file's weights, on the CPU.

    Args:
        name: One of ``PEERS``.
        path: A file as its authors publish it, or the bare parameters, as ``.safetensors`` too. Code that a file holds
            is never run.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: Where it holds no parameters, or others than this network's.
    """
    peer = PEERS[name]
    network = peer.build()
    if path.suffix == ".safetensors" or not path.is_file():
        state, _ = read_checkpoint(path)
    else:
        with torch.serialization.safe_globals([datetime.datetime]):  # QVI's files tell when they were written
            content = read_pickle(path)
        try:
            state = parameters_of(path, peer.unpack(content) if isinstance(content, Mapping) else content)
        except ValueError as error:
            message = str(error) if str(path) in str(error) else f"{path}: {error}"
            raise ValueError(f"{message} (wanted: {peer.label}, published as {WEIGHTS[name]})") from error
    check_parameters(path, network.state_dict(), state, peer.label)
    network.load_state_dict(state)
    return network


def size_table() -> str:
    """Markdown."""
    lines = ["| network | parameters | paper's Table 1 | difference |", "|---|---|---|---|"]
    for peer in PEERS.values():
        with torch.device("meta"):  # sizes only
            count = parameters(peer.build())
        paper = "" if peer.paper is None else f"{peer.paper} M"
        lines.append(f"| {peer.label} | {count:,} | {paper} | {peer.remark} |")
    return "\n".join(lines)
