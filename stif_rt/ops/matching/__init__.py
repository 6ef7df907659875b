"""What the velocity head does besides convolutions: warp, normalise, step, gather what a network sees, mix velocities.

``reference.py`` defines them in PyTorch's own operations, of which there are hundreds, most of them small. On a CPU, in
inference mode, each is one call of native code (``cpu.py``) instead; with gradients, in graphs that are compiled or
exported, and on GPUs, whose CUDA graphs replay them, the reference runs.
"""

import torch
from torch import Tensor

from stif_rt.ops import native
from stif_rt.ops.matching import cpu, reference
from stif_rt.ops.matching.reference import OFFERED, is_exporting, smooth

__all__ = ["OFFERED", "choose", "evidence", "gauss_newton", "normalise", "prelu", "smooth", "warp", "warp_both"]


def selected_isa(x: Tensor, dtype: torch.dtype) -> cpu.Selected | None:
    """The library and the instruction set that compute in ``dtype``, or None where x is the reference's."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or is_exporting():
        return None  # is_compiling() comes first: asking for the inference mode breaks a graph
    if not torch.is_inference_mode_enabled():
        return None
    selected = native.select_isa(dtype)
    return None if isinstance(selected, str) else selected


def any_isa(x: Tensor) -> cpu.Selected | None:
    """The same for what is float32 in every instruction set: also one with other products, where that is forced."""
    return selected_isa(x, torch.float32) or selected_isa(x, torch.bfloat16)


def warp(maps: Tensor, flow: Tensor) -> Tensor:
    """See ``reference.warp``."""
    selected = selected_isa(maps, maps.dtype)
    return reference.warp(maps, flow) if selected is None else cpu.warp(selected, maps, flow)


def prelu(x: Tensor, slopes: Tensor) -> Tensor:
    """See ``reference.prelu``. x is overwritten where that is faster: nothing else may read it."""
    selected = selected_isa(x, x.dtype)
    if selected is None or not x.is_contiguous(memory_format=torch.channels_last):
        return reference.prelu(x, slopes)
    return cpu.prelu(selected, x, slopes)


def warp_both(pair: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.warp_both``."""
    return warp(pair[0], -v / 2), warp(pair[1], v / 2)


def normalise(first: Tensor, second: Tensor) -> Tensor:
    """See ``reference.normalise``."""
    selected = any_isa(first)
    return reference.normalise(first, second) if selected is None else cpu.normalise(selected, first, second)


def gauss_newton(
    pair: Tensor, v: Tensor, gain: Tensor, damping: Tensor, tolerance: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.gauss_newton``."""
    given = (pair, v, gain, damping, tolerance, iterations)
    selected = any_isa(pair)
    return reference.gauss_newton(*given) if selected is None else cpu.gauss_newton(selected, *given)


def evidence(
    pair: Tensor, match: int, v: Tensor, step: Tensor, matrix: Tensor, context: Tensor, dtype: torch.dtype
) -> Tensor:
    """See ``reference.evidence``."""
    given = (pair, match, v, step, matrix, context)
    selected = selected_isa(pair, dtype)
    return reference.evidence(*given, dtype) if selected is None else cpu.evidence(selected, *given)


def choose(scores: Tensor, preference: Tensor, v: Tensor, start: Tensor) -> Tensor:
    """See ``reference.choose``."""
    given = (scores, preference, v, start)
    selected = selected_isa(scores, scores.dtype)
    return reference.choose(*given) if selected is None else cpu.choose(selected, *given)
