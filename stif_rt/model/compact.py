"""The compact encoder: frames to features by way of one velocity field instead of deformable convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stif_rt.model.config import CHANNELS, HEAD_STRIDE, Config
from stif_rt.model.encoder import Features, ResidualBlock, check_frames, conv, conv_leaky, stack_times
from stif_rt.model.velocity import PYRAMID, Matches, VelocityHead, resize
from stif_rt.ops.matching import warp

Extracted = tuple[Tensor, Matches]
"""What is known of one frame alone: its map [B, C, h/s, w/s], and what the velocity head matches, perhaps nothing."""


class CompactEncoder(nn.Module):
    """Both frames' maps, aligned to each of the three times by the velocity.

    At stride 1 the frames have maps of their own and a trunk follows; at stride 2 the maps are those of the velocity
    head's finest level.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.velocity_head = VelocityHead()
        width = PYRAMID[0].width if config.feature_stride == HEAD_STRIDE else CHANNELS
        if config.feature_stride == 1:
            self.conv_first = conv(3, CHANNELS)
            self.feature_extraction = nn.Sequential(*(ResidualBlock() for _ in range(config.front_blocks)))
            self.other = conv(2 * CHANNELS, CHANNELS)
            nn.init.zeros_(self.other.weight)
        else:
            self.widen = conv(width, CHANNELS, 1)
        self.middle = conv(2 * width, CHANNELS)
        self.recon_trunk = nn.Sequential(*(ResidualBlock() for _ in range(config.back_blocks)))

    def forward(self, frames: Tensor, velocity: Tensor | None = None) -> Features:
        """frames: [B, 2, 3, h, w], RGB in [0, 1], h and w multiples of ``Config.multiple``. velocity: float32
        [B, 2, h, w], pixels of the frames, used instead of the velocity head's."""
        check_frames(frames, self.config.multiple)
        if frames.shape[1] != 2:
            raise ValueError(f"the velocity is that of two frames, not of {frames.shape[1]}")
        return self.merge([self.extract(frames[:, k], matching=velocity is None) for k in (0, 1)], velocity)

    def extract(self, frames: Tensor, matching: bool = True) -> Extracted:
        """The part that knows one frame at a time. frames: [B, 3, h, w]. matching: whether to find a velocity later."""
        matches: Matches = ()
        if self.config.feature_stride == HEAD_STRIDE:
            finest, matches = (
                self.velocity_head.extract(frames) if matching else (self.velocity_head.finest(frames), ())
            )
            return finest, matches
        if matching:
            _, matches = self.velocity_head.extract(frames)
        maps = self.feature_extraction(conv_leaky(self.conv_first, frames.to(self.conv_first.weight.dtype)))
        return maps, matches

    def find_velocity(self, frames: Tensor) -> Tensor:
        """The velocity alone of frames [B, 2, 3, h, w], as ``align`` takes it."""
        (_, first), (_, second) = (self.velocity_head.extract(frames[:, k]) for k in (0, 1))
        return self._on_the_maps_grid(self.velocity_head(first, second).velocity)

    def _on_the_maps_grid(self, velocity: Tensor) -> Tensor:
        return resize(velocity, HEAD_STRIDE // self.config.feature_stride)

    def merge(self, pair: list[Extracted], velocity: Tensor | None = None, maps: bool = True) -> Features:
        """The part that knows both frames. maps: whether the maps are wanted, which are without cells if not."""
        (map0, matches0), (map1, matches1) = pair
        if velocity is None:
            v = self._on_the_maps_grid(self.velocity_head(matches0, matches1).velocity)
        else:
            v = F.avg_pool2d(velocity.float(), self.config.feature_stride)
        if not maps:
            return Features(map0.new_empty(len(v), 3, CHANNELS, 0, 0), v)
        return self.align(map0, map1, v)

    def align(self, map0: Tensor, map1: Tensor, v: Tensor) -> Features:
        """The maps of the three times from those of both frames. v: [B, 2, h/s, w/s], pixels of the frames."""
        stride = self.config.feature_stride
        u = v / stride  # in pixels of the maps
        middle = self.middle(torch.cat((warp(map0, -u / 2), warp(map1, u / 2)), 1))
        if stride == HEAD_STRIDE:
            maps = [self.widen(map0), middle, self.widen(map1)]
        else:
            # where a point of the first frame is in the second: v is found midway between
            to_second, to_first = warp(u, u / 2), -warp(u, -u / 2)
            maps = [
                map0 + self.other(torch.cat((map0, warp(map1, to_second)), 1)),
                middle,
                map1 + self.other(torch.cat((map1, warp(map0, to_first)), 1)),
            ]
        features = self.recon_trunk(stack_times(maps).flatten(0, 1)).unflatten(0, (map0.shape[0], len(maps)))
        return Features(features, v)
