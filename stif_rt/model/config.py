"""The fields in which models differ: the variants of the paper's Table 4, and those of the bundled weights."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

CHANNELS = 64
"""Channels of every feature map; fixed in all published networks."""


@dataclass(frozen=True)
class Config:
    """Configuration of one model. The defaults are the paper's network (11.31 M parameters).

    front_blocks: residual blocks that extract each frame's features.
    back_blocks: residual blocks of the trunk after alignment.
    recurrent: whether the bidirectional deformable ConvLSTM runs between alignment and trunk.
    upsampling_head: whether Zooming SlowMo's four head convolutions exist. STIF never runs them, but published
        checkpoints hold them and the paper's parameter count includes them.
    flow: False for the paper's "-f": no temporal implicit function, the decoder reads at the query position.
    aggregation: False for "-m": the decoder sees only the two samples of the spatial feature and the time.
    single_function: True for "-s": the flow is predicted from the spatial function's inputs, and only the encoder's
        features and the frames are warped.
    fixed_time: True for "fixed": the model knows t = 0.5 only.
    grid: base grid of the warp. ``corners`` runs corner to corner (published weights need it), ``centres`` makes zero
        flow the identity.
    residual: whether the output is added to the blend of the two warped input frames.
    flow_unit: what TIF's flow is counted in. ``output`` pixels are the paper's; the network is not told the scale, so
        such a flow is right at one scale only. In ``input`` pixels a motion is the same number at every scale.
    """

    front_blocks: int = 5
    back_blocks: int = 40
    recurrent: bool = True
    upsampling_head: bool = True
    flow: bool = True
    aggregation: bool = True
    single_function: bool = False
    fixed_time: bool = False
    grid: Literal["corners", "centres"] = "corners"
    residual: bool = False
    flow_unit: Literal["output", "input"] = "output"

    def __post_init__(self) -> None:
        if self.front_blocks < 0 or self.back_blocks < 0:
            raise ValueError(f"negative number of residual blocks: {self.front_blocks}, {self.back_blocks}")
        if self.grid not in ("corners", "centres"):
            raise ValueError(f"grid is {self.grid!r}; it must be 'corners' or 'centres'")
        if self.flow_unit not in ("output", "input"):
            raise ValueError(f"flow_unit is {self.flow_unit!r}; it must be 'output' or 'input'")
        if self.single_function and not self.aggregation:
            raise ValueError("single_function without aggregation leaves the decoder nothing but the time to read")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of ``to_dict``. Raises ValueError for a field this version does not know."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration fields {unknown}: the file may come from a newer stif-rt")
        return cls(**values)


CONFIGS: dict[str, Config] = {
    "stif": Config(),
    "stif-fixed": Config(fixed_time=True),
    "stif-f": Config(flow=False),
    "stif-m": Config(aggregation=False),
    "stif-s": Config(
        front_blocks=2,
        back_blocks=6,
        recurrent=False,
        upsampling_head=False,
        grid="centres",
        residual=True,
        flow_unit="input",
    ),
}
"""Configurations by name. ``stif-s`` is the compact one of the bundled weights: 2.8 M multiply-adds per input pixel."""
