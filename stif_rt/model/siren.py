"""SIREN (NeurIPS 2020): fully connected networks with sine activations."""

import math

import torch
from torch import Tensor, nn

OMEGA = 30.0


class SirenLayer(nn.Module):
    """sin(30 * (W x + b))."""

    def __init__(self, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / OMEGA
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(OMEGA * self.linear(x))


class Siren(nn.Module):
    """Sine layers of the given widths, then a plain linear layer. Acts on the last axis."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        widths = (inputs, *hidden)
        layers: list[nn.Module] = [
            SirenLayer(a, b, first=n == 0) for n, (a, b) in enumerate(zip(widths, hidden, strict=False))
        ]
        last = nn.Linear(widths[-1], outputs)
        bound = math.sqrt(6 / widths[-1]) / OMEGA
        nn.init.uniform_(last.weight, -bound, bound)
        self.net = nn.Sequential(*layers, last)

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear part of every layer, in order."""
        return [module for module in self.net.modules() if isinstance(module, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
