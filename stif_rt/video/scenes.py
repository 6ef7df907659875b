"""Scene cuts: neighbouring frames that show different things, between which nothing can be interpolated."""

import numpy as np
from numpy.typing import NDArray

GRID = 16
"""Frames are compared as thumbnails of this many cells a side, so that motion alone changes little."""
THRESHOLD = 0.10
"""Mean absolute difference of thumbnails, of the full range, above which two neighbours are a cut."""


def thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[h, w, 3] -> [GRID or h, GRID or w, 3] cell means in [0, 1]."""
    h, w, _ = frame.shape
    rows = np.linspace(0, h, min(GRID, h), endpoint=False, dtype=int)
    columns = np.linspace(0, w, min(GRID, w), endpoint=False, dtype=int)
    sums = np.add.reduceat(np.add.reduceat(frame.astype(np.float32), rows, 0), columns, 1)
    area = np.diff(rows, append=h)[:, None] * np.diff(columns, append=w)
    return (sums / area[..., None] / 255).astype(np.float32)


def is_cut(before: NDArray[np.float32], after: NDArray[np.float32]) -> bool:
    """Whether a scene ends between two neighbouring frames, given their thumbnails."""
    return bool(np.abs(after - before).mean() > THRESHOLD)
