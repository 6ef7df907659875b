"""The U-Net of Super SloMo, which QVI uses too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stif_rt.model.encoder import conv, leaky


class Down(nn.Module):
    """Half the size, by averaging, and two convolutions."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, kernel)
        self.conv2 = conv(outputs, outputs, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return leaky(self.conv2(leaky(self.conv1(F.avg_pool2d(x, 2)))))


class Up(nn.Module):
    """The size of the skip map, which joins after the first convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs)
        self.conv2 = conv(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return leaky(self.conv2(torch.cat((leaky(self.conv1(x)), skip), 1)))


class UNet(nn.Module):
    """Five levels. Its last convolution, too, is followed by the LeakyReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, 32, 7)
        self.conv2 = conv(32, 32, 7)
        self.down1 = Down(32, 64, 5)
        self.down2 = Down(64, 128, 3)
        self.down3 = Down(128, 256, 3)
        self.down4 = Down(256, 512, 3)
        self.down5 = Down(512, 512, 3)
        self.up1 = Up(512, 512)
        self.up2 = Up(512, 256)
        self.up3 = Up(256, 128)
        self.up4 = Up(128, 64)
        self.up5 = Up(64, 32)
        self.conv3 = conv(32, outputs)

    def features(self, x: Tensor) -> Tensor:
        """What enters the last convolution, [B, 32, H, W], for x [B, inputs, H, W] of 32 pixels a side or more."""
        skips = [leaky(self.conv2(leaky(self.conv1(x))))]
        for down in (self.down1, self.down2, self.down3, self.down4):
            skips.append(down(skips[-1]))
        x = self.down5(skips[-1])
        for up in (self.up1, self.up2, self.up3, self.up4, self.up5):
            x = up(x, skips.pop())
        return x

    def last(self, features: Tensor) -> Tensor:
        """[B, outputs, H, W] from the features."""
        return leaky(self.conv3(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))
