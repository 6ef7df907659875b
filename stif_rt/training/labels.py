"""Flow labels for real film: OpenCV's DIS optical flow, shown the frame between, which only training knows.

From the frame between to both ends it errs about half as much as from one end to the other. It is cheap enough (a few
milliseconds) to be computed for every example, so nothing is kept on disk.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALLEST_LABELLED = 12
"""Pixels along each side that DIS needs."""
AGREEMENT = 1.0
"""Pixels by which flow there and back may differ where it counts as known."""


def label_flow(window: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """The flow from the targets' pixels to the same points in the inputs.

    window: [2 + T, h, w, 3], the inputs and the targets. Returns flow [T, h, w, 4], (x0, y0, x1, y1) in pixels, and
    visible [T, h, w, 2], 1 where flow there and back agree and stay inside. float32. Needs the extra ``train``.
    """
    grey = [_grey(frame) for frame in window]
    flows, visible = [], []
    for target in grey[2:]:
        there = [_flow(target, end) for end in grey[:2]]
        back = [_flow(end, target) for end in grey[:2]]
        flows.append(torch.from_numpy(np.concatenate(there, -1)))
        visible.append(torch.from_numpy(np.stack([_agrees(a, b) for a, b in zip(there, back, strict=True)], -1)))
    return torch.stack(flows), torch.stack(visible)


def _grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def _flow(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.float32]:
    import cv2

    cv2.setNumThreads(1)  # the loader's processes run beside the training
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    return method.calc(source, target, None)


def _agrees(there: NDArray[np.float32], back: NDArray[np.float32]) -> NDArray[np.float32]:
    """there, back: [h, w, 2]. Returns [h, w]."""
    h, w, _ = there.shape
    y, x = np.mgrid[:h, :w].astype(np.float32)
    x, y = x + there[..., 0], y + there[..., 1]
    inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
    column, row = x.round().clip(0, w - 1).astype(np.intp), y.round().clip(0, h - 1).astype(np.intp)
    difference = np.hypot(*np.moveaxis(there + back[row, column], -1, 0))
    return (inside & (difference < AGREEMENT)).astype(np.float32)
