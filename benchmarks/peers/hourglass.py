"""MegaDepth's hourglass (Li and Snavely, CVPR 2018): the depth of a picture. Part of DAIN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = (3, 5, 7)
LARGE = (3, 7, 11)


class StoredNorm(nn.Module):
    """Batch normalisation with statistics from the training, which are never updated."""

    def __init__(self, channels: int, affine: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def normalised(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), StoredNorm(outputs), nn.ReLU()]


class Inception(nn.ModuleList):
    """Four branches over the same map, of which three look at a neighbourhood; their results one after the other."""

    def __init__(self, inputs: int, outputs: int, middle: int, kernels: tuple[int, int, int]) -> None:
        wide = [
            nn.Sequential(*normalised(inputs, middle, 1), *normalised(middle, outputs, kernel)) for kernel in kernels
        ]
        super().__init__([nn.Sequential(*normalised(inputs, outputs, 1)), *wide])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class Level(nn.ModuleList):
    """The sum of two paths: at half the size and back, and directly."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self
        return first(x) + second(x)


def up() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="nearest")


def level4() -> nn.Module:
    direct = [Inception(256, 64, 32, SMALL) for _ in range(2)]
    deep = [Inception(256, 64, 32, SMALL) for _ in range(3)]
    return Level([nn.Sequential(*direct), nn.Sequential(nn.AvgPool2d(2), *deep, up())])


def level3() -> nn.Module:
    direct = [Inception(256, 64, 32, SMALL), Inception(256, 64, 64, LARGE)]
    before = [Inception(256, 64, 32, SMALL) for _ in range(2)]
    after = [Inception(256, 64, 32, SMALL), Inception(256, 64, 64, LARGE)]
    deep = nn.Sequential(nn.AvgPool2d(2), *before, nn.Sequential(level4()), *after, up())
    return Level([nn.Sequential(*direct), deep])


def level2() -> nn.Module:
    before = [Inception(128, 32, 32, SMALL), Inception(128, 64, 32, SMALL)]
    after = [Inception(256, 64, 32, SMALL), Inception(256, 32, 32, SMALL)]
    direct = [Inception(128, 32, 32, SMALL), Inception(128, 32, 64, LARGE)]
    deep = nn.Sequential(nn.MaxPool2d(2), *before, nn.Sequential(level3()), *after, up())
    return Level([deep, nn.Sequential(*direct)])


def level1() -> nn.Module:
    before = [Inception(128, 32, 32, SMALL) for _ in range(2)]
    after = [Inception(128, 32, 64, SMALL), Inception(128, 16, 32, LARGE)]
    direct = [Inception(128, 16, 64, LARGE)]
    deep = nn.Sequential(nn.MaxPool2d(2), *before, nn.Sequential(level2()), *after, up())
    return Level([deep, nn.Sequential(*direct)])


class Hourglass(nn.Sequential):
    """Log depth [B, 1, H, W] of pictures [B, 3, H, W], RGB in [0, 1], H and W multiples of 16."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 128, 7, padding=3),
            StoredNorm(128, affine=True),
            nn.ReLU(),
            nn.Sequential(level1()),
            nn.Conv2d(64, 1, 3, padding=1),
        )
