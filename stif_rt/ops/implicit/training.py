"""SIREN layers for training in bfloat16.

    y = sin(x W^T + b),  dx = (dy * c) W,  dW = (dy * c)^T x,  db = sum(dy * c),  with c = cos(x W^T + b)

x, y, c, W and all gradients are rounded to bfloat16, products accumulate in float32, and the pre-activation, tens of
radians, is never rounded. Between the passes only x and c are kept, 4 bytes an activation instead of 12, and the
backward pass takes no sine. On CPUs with bfloat16 units all products run there; on GPUs the forward ones are float32.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BFLOAT16 = torch.bfloat16


def sine_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """sin(x W^T + b). x: [..., inputs]. weight: [outputs, inputs]. bias: [outputs]. Returns bfloat16 [..., outputs]."""
    y: Tensor = _SineLayer.apply(x.to(BFLOAT16).flatten(0, -2), weight, bias)
    return y.unflatten(0, x.shape[:-1])


def sine(z: Tensor) -> Tensor:
    """sin(z) in bfloat16, of float32 z of any shape."""
    return _Sine.apply(z)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in float32, of x and W rounded to bfloat16. Shapes as for ``sine_layer``."""
    y: Tensor = _Linear.apply(x.to(BFLOAT16).flatten(0, -2), weight, bias)
    return y.unflatten(0, x.shape[:-1])


class _SineLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, c = _sine_and_cosine(_product(x, weight, bias))
        ctx.save_for_backward(x, weight, c)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, c = ctx.saved_tensors
        return _backward(dy.to(BFLOAT16) * c, x, weight)


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        y, c = _sine_and_cosine(z)
        ctx.save_for_backward(c)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (c,) = ctx.saved_tensors
        return dy.float() * c


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        dx, dweight, dbias = _backward(dy.to(BFLOAT16), *ctx.saved_tensors)
        return dx, dweight, dbias if ctx.needs_input_grad[2] else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float32, because PyTorch would round the result of a bfloat16 product."""
    with _bfloat16_units():
        return F.linear(x.float(), weight.to(BFLOAT16).float(), bias)


@contextlib.contextmanager
def _bfloat16_units() -> Iterator[None]:
    """Within, CPUs multiply float32 matrices as bfloat16: lossless for operands that are bfloat16 values."""
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


def _backward(dz: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # db as a product: of a tall bfloat16 matrix PyTorch's sum takes ten times as long on CPUs
    return dz @ weight.to(BFLOAT16), (dz.T @ x).float(), (dz.new_ones(1, len(dz)) @ dz)[0].float()


def _sine_and_cosine(z: Tensor) -> tuple[Tensor, Tensor]:
    y, c = _compiled()(z.reshape(-1))
    return y.view_as(z), c.view_as(z)


@functools.cache
def _compiled() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Both in one pass over memory: a quarter of the time of PyTorch's two."""
    return torch.compile(_sine_and_cosine_of, dynamic=True)


def _sine_and_cosine_of(z: Tensor) -> tuple[Tensor, Tensor]:
    """The kernels' own sine, of z in radians."""
    turns = z * 0.15915494309189535
    quarter = turns + 0.25
    return _sine_of(turns - turns.round()).to(BFLOAT16), _sine_of(quarter - quarter.round()).to(BFLOAT16)


def _sine_of(r: Tensor) -> Tensor:
    """sin(2 pi r) for r in [-1/2, 1/2]: the polynomial of csrc/cpu/sine.h."""
    s = r * r
    p = -12.271262613 * s + 41.2053950574
    p = p * s - 76.5801005781
    p = p * s + 81.5961838793
    p = p * s - 41.341421399
    return (p * s + 6.28318281856) * r
