"""EDVR (Wang et al., CVPR Workshops 2019): the middle one of seven frames, four times larger.

The large model for Vimeo-90K: 128 channels, 7 frames, 5 residual blocks before and 40 after the fusion.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stif_rt.model.encoder import DeformableConv, Pyramid, ResidualBlock, conv, leaky, upsample2


def levels(count: int, layer: Callable[[], nn.Module]) -> nn.ModuleDict:
    """One such layer for each pyramid level, ``l1``, ``l2``, ..."""
    return nn.ModuleDict({f"l{level}": layer() for level in range(1, count + 1)})


class PCDAlignment(nn.Module):
    """Pyramid, cascading and deformable: aligns any frame to the centre one, coarse to fine, then once more."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def from_two() -> nn.Conv2d:
            return conv(2 * channels, channels)

        def from_one() -> nn.Conv2d:
            return conv(channels, channels)

        self.offset_conv1 = levels(3, from_two)
        self.offset_conv2 = nn.ModuleDict({"l3": from_one(), "l2": from_two(), "l1": from_two()})
        self.offset_conv3 = levels(2, from_one)
        self.dcn_pack = levels(3, lambda: DeformableConv(channels))
        self.feat_conv = levels(2, from_two)
        self.cas_offset_conv1 = from_two()
        self.cas_offset_conv2 = from_one()
        self.cas_dcnpack = DeformableConv(channels)

    def forward(self, frame: Pyramid, centre: Pyramid) -> Tensor:
        """[B, C, h, w]."""
        offset = leaky(self.offset_conv1["l3"](torch.cat((frame[2], centre[2]), 1)))
        offset = leaky(self.offset_conv2["l3"](offset))
        aligned = leaky(self.dcn_pack["l3"](frame[2], offset))
        for level in ("l2", "l1"):
            coarse, x, target = offset, frame[int(level[1]) - 1], centre[int(level[1]) - 1]
            offset = leaky(self.offset_conv1[level](torch.cat((x, target), 1)))
            offset = leaky(self.offset_conv2[level](torch.cat((offset, 2 * upsample2(coarse)), 1)))
            offset = leaky(self.offset_conv3[level](offset))
            aligned = torch.cat((self.dcn_pack[level](x, offset), upsample2(aligned)), 1)
            aligned = self.feat_conv[level](aligned)
            if level == "l2":
                aligned = leaky(aligned)
        offset = leaky(self.cas_offset_conv1(torch.cat((aligned, centre[0]), 1)))
        offset = leaky(self.cas_offset_conv2(offset))
        return leaky(self.cas_dcnpack(aligned, offset))


def pooled(x: Tensor) -> Tensor:
    """[max, average] over 3x3 at half the size; the average counts the padding."""
    return torch.cat((F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1)), 1)


class TSAFusion(nn.Module):
    """Temporal and spatial attention: the aligned frames, weighted by likeness to the centre, become one map."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.temporal_attn1 = conv(channels, channels)
        self.temporal_attn2 = conv(channels, channels)
        self.feat_fusion = conv(frames * channels, channels, 1)
        self.spatial_attn1 = conv(frames * channels, channels, 1)
        self.spatial_attn2 = conv(2 * channels, channels, 1)
        self.spatial_attn3 = conv(channels, channels)
        self.spatial_attn4 = conv(channels, channels, 1)
        self.spatial_attn5 = conv(channels, channels)
        self.spatial_attn_l1 = conv(channels, channels, 1)
        self.spatial_attn_l2 = conv(2 * channels, channels)
        self.spatial_attn_l3 = conv(channels, channels)
        self.spatial_attn_add1 = conv(channels, channels, 1)
        self.spatial_attn_add2 = conv(channels, channels, 1)

    def forward(self, aligned: list[Tensor]) -> Tensor:
        centre = self.temporal_attn1(aligned[len(aligned) // 2])
        weighted = torch.cat([x * (self.temporal_attn2(x) * centre).sum(1, keepdim=True).sigmoid() for x in aligned], 1)

        half = leaky(self.spatial_attn2(pooled(leaky(self.spatial_attn1(weighted)))))
        quarter = leaky(self.spatial_attn_l2(pooled(leaky(self.spatial_attn_l1(half)))))
        half = leaky(self.spatial_attn3(half)) + upsample2(leaky(self.spatial_attn_l3(quarter)))
        attention = self.spatial_attn5(upsample2(leaky(self.spatial_attn4(half))))
        added = self.spatial_attn_add2(leaky(self.spatial_attn_add1(attention)))
        return leaky(self.feat_fusion(weighted)) * attention.sigmoid() * 2 + added


class EDVR(nn.Module):
    def __init__(self, channels: int = 128, frames: int = 7, front_blocks: int = 5, back_blocks: int = 40) -> None:
        super().__init__()
        self.frames = frames
        self.conv_first = conv(3, channels)
        self.feature_extraction = nn.Sequential(*(ResidualBlock(channels) for _ in range(front_blocks)))
        self.conv_l2_1 = conv(channels, channels, stride=2)
        self.conv_l2_2 = conv(channels, channels)
        self.conv_l3_1 = conv(channels, channels, stride=2)
        self.conv_l3_2 = conv(channels, channels)
        self.pcd_align = PCDAlignment(channels)
        self.fusion = TSAFusion(channels, frames)
        self.reconstruction = nn.Sequential(*(ResidualBlock(channels) for _ in range(back_blocks)))
        self.upconv1 = conv(channels, 4 * channels)
        self.upconv2 = conv(channels, 4 * 64)
        self.conv_hr = conv(64, 64)
        self.conv_last = conv(64, 3)
        self.register_state_dict_post_hook(_to_published_names)
        self.register_load_state_dict_pre_hook(_from_published_names)

    def pyramid(self, frame: Tensor) -> Pyramid:
        """Features of one frame [B, 3, h, w], h and w multiples of 4, at full, half and quarter size.

        Windows that overlap can share them.
        """
        level1 = self.feature_extraction(leaky(self.conv_first(frame)))
        level2 = leaky(self.conv_l2_2(leaky(self.conv_l2_1(level1))))
        return level1, level2, leaky(self.conv_l3_2(leaky(self.conv_l3_1(level2))))

    def fuse(self, window: list[Pyramid]) -> Tensor:
        """The centre frame's features [B, C, h, w] with what its neighbours know."""
        return self.fusion([self.pcd_align(frame, window[len(window) // 2]) for frame in window])

    def reconstruct(self, fused: Tensor, centre: Tensor) -> Tensor:
        """RGB [B, 3, 4h, 4w] from the fused features and the centre frame [B, 3, h, w]."""
        x = leaky(F.pixel_shuffle(self.upconv1(self.reconstruction(fused)), 2))
        x = leaky(F.pixel_shuffle(self.upconv2(x), 2))
        x = self.conv_last(leaky(self.conv_hr(x)))
        return x + F.interpolate(centre, scale_factor=4, mode="bilinear", align_corners=False)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: [B, 7, 3, h, w], RGB in [0, 1], h and w multiples of 4. Returns RGB [B, 3, 4h, 4w], not clamped."""
        window = [self.pyramid(frame) for frame in frames.unbind(1)]
        return self.reconstruct(self.fuse(window), frames[:, self.frames // 2])


def _to_published_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """EDVR's files call ``conv_offset`` what the others call ``conv_offset_mask``."""
    for name in [name for name in state if name.startswith(prefix) and ".conv_offset_mask." in name]:
        state[name.replace(".conv_offset_mask.", ".conv_offset.")] = state.pop(name)


def _from_published_names(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: object
) -> None:
    for name in [name for name in state if name.startswith(prefix) and ".conv_offset." in name]:
        state[name.replace(".conv_offset.", ".conv_offset_mask.")] = state.pop(name)
