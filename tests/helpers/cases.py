"""The cases that tests and benchmarks share."""

from typing import Any, NamedTuple

from stif_rt.model.config import Config


class Case(NamedTuple):
    """inputs: (h, w). outputs: (H, W). times: of each frame that is asked for."""

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    times: tuple[float, ...] = (0.5,)
    batch: int = 1


CASES = [
    Case("x4", (12, 16), (48, 64)),
    Case("several times", (8, 12), (16, 24), (0.0, 0.3, 1.0)),
    Case("batch", (8, 8), (20, 20), (0.25, 0.8), batch=3),
    Case("non-integer", (12, 10), (29, 37), (0.6,)),
    Case("ties", (24, 16), (37, 53)),
    Case("odd", (7, 13), (15, 31)),
    Case("shrunk", (16, 16), (5, 7)),
    Case("same size", (9, 6), (9, 6)),
    Case("one row", (1, 9), (1, 20)),
    Case("one column", (9, 1), (31, 1)),
    Case("one pixel", (1, 1), (4, 4)),
    Case("to one pixel", (5, 6), (1, 1)),
]

MEASURED = [Case("360p", (90, 160), (360, 640)), Case("720p", (180, 320), (720, 1280))]
"""What benchmarks run when they measure; the cases above only show that they run."""

MOTION: dict[str, Any] = {
    "front_blocks": 1,
    "back_blocks": 1,
    "recurrent": False,
    "upsampling_head": False,
    "grid": "centres",
    "residual": True,
    "flow_unit": "input",
    "motion": True,
}
LEARNED: dict[str, Any] = {"blend": True, "bicubic": True, "scale": True, "sif_time": False}
VARIANTS = {
    "paper": Config(),
    "fixed": Config(fixed_time=True),
    "-f": Config(flow=False),
    "-m": Config(aggregation=False),
    "-s": Config(single_function=True),
    "-f -m": Config(flow=False, aggregation=False),
    "-f -s": Config(flow=False, single_function=True),
    "centres": Config(grid="centres"),
    "residual": Config(residual=True),
    "stif-s": Config(grid="centres", residual=True, flow_unit="input"),
    "blend": Config(grid="centres", residual=True, blend=True),
    "bicubic": Config(grid="corners", residual=True, bicubic=True),
    "scale": Config(scale=True),
    "-s scale": Config(single_function=True, scale=True),
    "untimed": Config(sif_time=False),
    "narrow": Config(sif_widths=(64,), tif_widths=(64, 128), decoder_widths=(64, 64, 192)),
    "motion": Config(**MOTION),
    "compact": Config(**MOTION, **LEARNED, tif_widths=(64, 64), decoder_widths=(64, 64, 128)),
    "compact at stride 2": Config(
        **(MOTION | {"front_blocks": 0}), **LEARNED, feature_stride=2, decoder_widths=(64, 64, 64)
    ),
}
"""Configurations of the implicit functions."""
