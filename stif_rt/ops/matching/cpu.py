"""The velocity head's operations in native code; the kernels are in ``csrc/cpu/matching.h``.

Each computes what the function of its name in ``reference.py`` does, without gradients. Maps come back channels last;
those that are given are copied where they are not.
"""

from ctypes import Array, Structure, c_void_p

import torch
from torch import Tensor

from stif_rt.ops import native
from stif_rt.ops.matching.reference import LARGEST_STEP, SMALLEST_VARIANCE

Selected = tuple[native.Library, native.Isa]

BLOCK = 16
"""Channels that the kernels work on together."""
MOST_MATCHED = 2 * BLOCK
"""Channels that Gauss-Newton takes."""
MOST_CHANNELS = 256
"""Channels of a cell that is read or written at once."""


def warp(selected: Selected, maps: Tensor, flow: Tensor) -> Tensor:
    """``reference.warp`` in the maps' dtype, which must be that of the instruction set."""
    B, C, h, w = maps.shape
    _check_count(C, MOST_CHANNELS)
    maps, flow = native.as_pixels(maps), flow.float().contiguous()
    out = torch.empty(B, C, h, w, dtype=maps.dtype, memory_format=torch.channels_last, device="cpu")
    for b in range(B):
        call = native.Warp(h, w, C, maps.stride(3), *(native.pointer(x, b) for x in (maps, flow, out)))
        _run("warp", selected, call)
    return out


def prelu(selected: Selected, x: Tensor, slopes: Tensor) -> Tensor:
    """``reference.prelu`` of channels-last maps, in place."""
    B, C, h, w = x.shape
    _check_count(C, MOST_CHANNELS)
    slopes = slopes.float().contiguous()
    _run("prelu", selected, native.PReLU(B * h * w, C, x.data_ptr(), slopes.data_ptr()))
    return x


def normalise(selected: Selected, first: Tensor, second: Tensor) -> Tensor:
    """``reference.normalise``; a cell of the pair has room for channels up to a multiple of BLOCK, which are 0."""
    B, C, h, w = first.shape
    first, second = native.as_pixels(first.float()), native.as_pixels(second.float())
    if first.stride(3) != second.stride(3):
        first, second = (x.contiguous(memory_format=torch.channels_last) for x in (first, second))
    padded = -(-C // BLOCK) * BLOCK
    pair = _floats(2, B, h, w, padded)
    for b in range(B):
        call = native.Normalise(
            h,
            w,
            C,
            first.stride(3),
            padded,
            _pointers(first[b], second[b]),
            _pointers(pair[0, b], pair[1, b]),
            SMALLEST_VARIANCE,
        )
        _run("normalise", selected, call)
    return pair[..., :C].movedim(-1, 2)


def gauss_newton(
    selected: Selected, pair: Tensor, v: Tensor, gain: Tensor, damping: Tensor, tolerance: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.gauss_newton``, of at most MOST_MATCHED channels."""
    _, B, C, h, w = pair.shape
    _check_count(C, MOST_MATCHED)
    pair = _padded(pair)
    gains = _floats(MOST_MATCHED).zero_()
    gains[:C] = gain.flatten()
    v, step = v.clone(memory_format=torch.contiguous_format), _floats(B, 2, h, w)
    matrix, sums = _floats(B, 3, h, w), _floats(6, h, w)
    for b in range(B):
        call = native.GaussNewton(
            h,
            w,
            C,
            pair.stride(4),
            _pointers(pair[0, b], pair[1, b]),
            gains.data_ptr(),
            float(damping),
            float(tolerance),
            LARGEST_STEP,
            sums.data_ptr(),
            *(native.pointer(x, b) for x in (v, step, matrix)),
        )
        for _ in range(iterations):
            _run("gauss_newton", selected, call)
    return v, step, matrix


def evidence(
    selected: Selected, pair: Tensor, match: int, v: Tensor, step: Tensor, matrix: Tensor, context: Tensor
) -> Tensor:
    """``reference.evidence`` in the dtype of the instruction set."""
    _, B, C, h, w = pair.shape
    first, second = (native.as_pixels(maps) for maps in pair)
    v, step, matrix = (x.contiguous() for x in (v, step, matrix))
    context = context.float().contiguous(memory_format=torch.channels_last)
    seen, given = C - match, context.shape[1]
    channels = 2 * seen + 8 + given
    _check_count(max(C, channels), MOST_CHANNELS)
    out = torch.empty(B, channels, h, w, dtype=selected[1].dtype, memory_format=torch.channels_last, device="cpu")
    for b in range(B):
        call = native.Evidence(
            h,
            w,
            match,
            seen,
            given,
            first.stride(3),
            _pointers(first[b], second[b]),
            *(native.pointer(x, b) for x in (v, step, matrix, context, out)),
        )
        _run("evidence", selected, call)
    return out


def choose(selected: Selected, scores: Tensor, preference: Tensor, v: Tensor, start: Tensor) -> Tensor:
    """``reference.choose`` of scores in the dtype of the instruction set."""
    B, _, h, w = scores.shape
    scores, v, start = native.as_pixels(scores), v.contiguous(), start.contiguous()
    out, preference = torch.empty_like(v), preference.float().contiguous()
    for b in range(B):
        call = native.Choose(
            h,
            w,
            scores.stride(3),
            native.pointer(scores, b),
            preference.data_ptr(),
            *(native.pointer(x, b) for x in (v, start, out)),
        )
        _run("choose", selected, call)
    return out


def _floats(*shape: int) -> Tensor:
    """Uninitialised, whatever PyTorch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _check_count(channels: int, most: int) -> None:
    if channels > most:
        raise ValueError(f"the native code takes at most {most} channels, not {channels}")


def _padded(pair: Tensor) -> Tensor:
    """The pair with channels up to a multiple of BLOCK that can be read; itself if ``normalise`` made it."""
    _, B, C, h, w = pair.shape
    padded = -(-C // BLOCK) * BLOCK
    frame, batch, channel, row, column = pair.stride()
    room = pair.untyped_storage().nbytes() // pair.element_size() - pair.storage_offset()
    last = frame + (B - 1) * batch + (h - 1) * row + (w - 1) * column
    if channel == 1 and column % BLOCK == 0 and column >= padded and row == w * column and last + padded <= room:
        return pair
    cells = _floats(2, B, h, w, padded).zero_()
    cells[..., :C] = pair.movedim(2, -1)
    return cells[..., :C].movedim(-1, 2)


def _pointers(*tensors: Tensor) -> Array[c_void_p]:
    return (c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


def _run(name: str, selected: Selected, call: Structure) -> None:
    library, isa = selected
    library.run(name, isa, call)
