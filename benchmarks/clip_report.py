"""What a whole clip costs on each generation of GPUs, modelled: no GPU is needed.

``python -m benchmarks.clip_report`` adds up, for one pair of a clip and the frames that it gives, what is sent to the
GPU, the encoder, the two passes for all frames in one call, and what comes back. Of the encoder, every operation that
PyTorch launches is counted on tensors without data: its floating-point operations, its bytes, and the time that the
smallest one takes in a CUDA graph, of which the largest counts. The passes are those of ``benchmarks.kernel_report``.
``python -m benchmarks.gpu`` measures the same on a GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.kernel_report import GPUS, NETWORKS, Gpu, Job, Report, build_all, passes_of, roofline
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF
from stif_rt.runtime.encoding import pad

INPUTS, OUTPUTS, FRAMES = (180, 320), (720, 1280), 8
SMALLEST = 0.0025
"""Milliseconds that an operation of a replayed graph takes at least: of ``stif-s`` 6.7 for 2,321 on an H200."""
COMPARED = ("stif", "stif-s")


@dataclass(frozen=True)
class Operation:
    name: str
    flop: int
    nbytes: int


@dataclass
class Operations(TorchDispatchMode):
    """Records every operation that is not a view and has tensors: what a GPU would be told to run."""

    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if tensors and not function.is_view and "empty" not in name and name not in ("_unsafe_view", "detach"):
            count = flop_registry.get(function.overloadpacket)
            flop = count(*args, **kwargs, out_val=result) if count else 0
            self.operations.append(Operation(name, flop, sum(x.nbytes for x in tensors)))
        return result


def encoder_operations(config: Config, dtype: torch.dtype) -> list[Operation]:
    """What the encoder launches for a pair of a clip whose first frame the pair before has ended with."""
    # not the engine itself: in its inference mode, what is composed of other operations is not taken apart
    with torch.device("meta"), torch.no_grad():
        encoder: Any = STIF(config).encoder.to("meta", dtype).to(memory_format=torch.channels_last).eval()
        frame = pad(torch.empty(1, 3, *INPUTS), config.multiple).to(memory_format=torch.channels_last)
        before = encoder.extract(frame)
        with Operations() as counted:
            encoder.merge([before, encoder.extract(frame)])
    return counted.operations


@dataclass(frozen=True)
class Clip:
    """Milliseconds for a pair of a clip, and the frames that it gives."""

    upload: float
    encoder: float
    frames: float
    download: float

    @property
    def per_frame(self) -> float:
        return (self.upload + self.encoder + self.frames + self.download) / FRAMES


def model_clip(gpu: Gpu, operations: list[Operation], passes: list[Report]) -> Clip:
    """Nothing overlaps with anything else: a bound from above, of times that are bounds from below."""
    encoder = sum(
        max(operation.flop / gpu.tensor / 1e9, operation.nbytes / gpu.memory / 1e6, SMALLEST)
        for operation in operations
    )
    frames = FRAMES * sum(max(roofline(report, gpu).values()) for report in passes)
    sent, returned = 3 * INPUTS[0] * INPUTS[1], FRAMES * 3 * OUTPUTS[0] * OUTPUTS[1]
    return Clip(sent / gpu.bus / 1e6, encoder, frames, returned / gpu.bus / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    wanted: dict[tuple[str, str], list[Job]] = {
        (network, gpu.name): passes_of(gpu, "float16", network) for network in COMPARED for gpu in GPUS
    }
    reports = build_all(sorted({job for jobs in wanted.values() for job in jobs}), options.processes)
    sizes = f"{INPUTS[1]}x{INPUTS[0]} to {OUTPUTS[1]}x{OUTPUTS[0]}, float16"
    for network in COMPARED:
        operations = encoder_operations(NETWORKS[network], torch.float16)
        flop = sum(operation.flop for operation in operations) / 1e9
        launches = 2 if NETWORKS[network].sif_time else 3  # a feature that does not see the time is made once
        print(f"\n{network}, {sizes}, milliseconds for a pair that gives {FRAMES} frames: {launches} launches for all,")
        print(f"{len(operations)} operations and {flop:.0f} GFLOP for the encoder")
        print(f"{'':10}{'upload':>9}{'encoder':>9}{'frames':>9}{'download':>10}{'each':>8}{'frames a second':>17}")
        for gpu in GPUS:
            clip = model_clip(gpu, operations, [reports[job] for job in wanted[network, gpu.name]])
            print(
                f"{gpu.name:10}{clip.upload:9.3f}{clip.encoder:9.2f}{clip.frames:9.2f}{clip.download:10.2f}"
                f"{clip.per_frame:8.2f}{1000 / clip.per_frame:17.0f}"
            )


if __name__ == "__main__":
    main()
