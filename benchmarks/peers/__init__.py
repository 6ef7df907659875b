"""The networks that the paper compares with, written afresh. One file each.

They share blocks with ``stif_rt.model.encoder``, its deformable convolution included, and with each other. Pictures are
RGB in [0, 1]; outputs are not clamped.

- Interpolators, ``forward(frames [B, N, 3, h, w], times [B, T]) -> [B, T, 3, h, w]``: ``super_slomo`` and ``dain`` from
  two frames, ``qvi`` from four, of which the middle two are the pair.
- Enlargers: ``basicvsr``, ``forward(frames [B, T, 3, h, w]) -> [B, T, 3, 4h, 4w]``; ``edvr``, ``forward(frames
  [B, 7, 3, h, w]) -> [B, 3, 4h, 4w]``, the middle one; ``liif_edsr`` and ``liif_rdn``, ``forward(image [B, 3, h, w],
  (H, W)) -> [B, 3, H, W]``.
- Both at once: ``zooming_slowmo`` and ``tmnet``, ``forward(frames [B, N, 3, h, w], ...) -> [B, M, 3, 4h, 4w]``.

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
from stif_rt.errors import BadFileError
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
        BadFileError: Where it holds no parameters, or others than this network's.
    """
    peer = PEERS[name]
    network = peer.build()
    if path.suffix == ".safetensors" or not path.is_file():
        state, _ = read_checkpoint(path)
    else:
        with torch.serialization.safe_globals([datetime.datetime]):  # QVI's files tell when they were written
            content = read_pickle(path)
        state = parameters_of(path, _unpacked(peer, path, content) if isinstance(content, dict) else content)
    check_parameters(path, network.state_dict(), state, peer.label)
    network.load_state_dict(state)
    return network


def _unpacked(peer: Peer, path: Path, content: dict[str, Any]) -> Mapping[str, Any]:
    try:
        return peer.unpack(content)
    except Exception as error:  # whatever is elsewhere than in published files
        raise BadFileError(f"{path} is not a file of {peer.label} as published: {error}") from error


def size_table() -> str:
    """Markdown."""
    lines = ["| network | parameters | paper's Table 1 | difference |", "|---|---|---|---|"]
    for peer in PEERS.values():
        with torch.device("meta"):  # sizes only
            count = parameters(peer.build())
        paper = "" if peer.paper is None else f"{peer.paper} M"
        lines.append(f"| {peer.label} | {count:,} | {paper} | {peer.remark} |")
    return "\n".join(lines)
