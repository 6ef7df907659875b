"""The fields in which models differ: the variants of the paper's Table 4, and those of the bundled weights."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_type_hints

from stif_rt.schema import convert, from_mapping

CHANNELS = 64
"""Channels of every feature map; fixed in all published networks."""
MULTIPLE = 4
"""What the sides of frames for the paper's encoder are multiples of: its pyramid has three levels."""
LEVELS = 5
"""Levels of the velocity head's pyramid, whose finest cell is HEAD_STRIDE pixels wide."""
HEAD_STRIDE = 2
MOST_BLOCKS = 256
"""Largest number of residual blocks in a row; the paper has 40. A file that asks for more is not a model."""
WIDEST, MOST_LAYERS = 256, 4
"""Largest number of sines in a layer, and of layers of sines."""

WIDTHS = ("sif_widths", "tif_widths", "decoder_widths")
"""The fields that hold the widths of the three functions."""


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
    motion: whether the encoder finds a velocity field, by which it aligns the frames and to whose flow TIF adds. It
        takes the place of the deformable alignment.
    blend: whether the decoder's fourth output weights the two warped frames; else the time alone does.
    bicubic: whether the frames of the blend are read by cubic convolution; else bilinearly.
    feature_stride: pixels of the frames along each side of one pixel of the encoder's maps: 1, or 2 with ``motion``.
    scale: whether SIF and decoder are told the size of the output's pixels.
    sif_time: whether SIF is told the time, as in published weights. Without it (the paper's Eq. 2) the spatial feature
        is the same at all times.
    sif_widths, tif_widths, decoder_widths: sines in each hidden layer of the three functions. The first layer has 64,
        as the maps that are read have; the others any multiple of 64 up to 256.
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
    motion: bool = False
    blend: bool = False
    bicubic: bool = False
    feature_stride: int = 1
    scale: bool = False
    sif_time: bool = True
    sif_widths: tuple[int, ...] = (64, 64, 256)
    tif_widths: tuple[int, ...] = (64, 64, 256)
    decoder_widths: tuple[int, ...] = (64, 64, 256, 256)

    def __post_init__(self) -> None:
        hints = get_type_hints(Config)
        for name in hints:
            object.__setattr__(self, name, convert(getattr(self, name), hints[name], name))
        for name in ("front_blocks", "back_blocks"):
            if not 0 <= getattr(self, name) <= MOST_BLOCKS:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to {MOST_BLOCKS}")
        if self.single_function and not self.aggregation:
            raise ValueError("single_function without aggregation leaves the decoder nothing but the time to read")
        self._check_motion()
        for name in WIDTHS:
            _check_widths(name, getattr(self, name))

    def _check_motion(self) -> None:
        if self.motion:
            needed = {
                "flow": True,
                "single_function": False,
                "recurrent": False,
                "upsampling_head": False,
                "grid": "centres",
                "flow_unit": "input",
            }
            for name, value in needed.items():
                if getattr(self, name) != value:
                    raise ValueError(f"motion needs {name} = {value!r}, and it is {getattr(self, name)!r}")
        for name in ("blend", "bicubic"):
            if getattr(self, name) and not self.residual:
                raise ValueError(f"{name} says how the warped frames are blended; without residual there is no blend")
        if self.feature_stride not in ((1, 2) if self.motion else (1,)):
            allowed = "1 or 2" if self.motion else "1 without motion"
            raise ValueError(f"feature_stride is {self.feature_stride!r}; it must be {allowed}")
        if self.feature_stride > 1 and self.front_blocks:
            raise ValueError(
                f"at feature_stride {self.feature_stride} the velocity head makes each frame's features: "
                f"front_blocks must be 0, not {self.front_blocks}"
            )

    @property
    def multiple(self) -> int:
        """The number of which the sides of the encoder's frames must be multiples, so that every level is whole."""
        return HEAD_STRIDE * 2 ** (LEVELS - 1) if self.motion else MULTIPLE

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> "Config":
        """The inverse of ``to_dict``. Raises ValueError for a field this version does not know, or of another type."""
        return from_mapping(cls, values, "configuration")


def _check_widths(name: str, widths: tuple[int, ...]) -> None:
    if not widths or any(width % CHANNELS or not 0 < width <= WIDEST for width in widths):
        raise ValueError(f"{name} is {widths!r}; it must be multiples of {CHANNELS} up to {WIDEST}, one for each layer")
    if widths[0] != CHANNELS or len(widths) > MOST_LAYERS:
        raise ValueError(f"{name} is {widths!r}; it must begin with {CHANNELS} and have at most {MOST_LAYERS} layers")


COMPACT: dict[str, Any] = {"recurrent": False, "upsampling_head": False, "grid": "centres", "residual": True}
MOTION: dict[str, Any] = COMPACT | {
    "flow_unit": "input",
    "motion": True,
    "blend": True,
    "bicubic": True,
    "scale": True,
    "sif_time": False,
}
CONFIGS: dict[str, Config] = {
    "stif": Config(),
    "stif-fixed": Config(fixed_time=True),
    "stif-f": Config(flow=False),
    "stif-m": Config(aggregation=False),
    "stif-single": Config(single_function=True),
    "stif-s": Config(**MOTION, front_blocks=2, back_blocks=6, tif_widths=(64, 64), decoder_widths=(64, 64, 128)),
    "stif-i": Config(
        **MOTION,
        front_blocks=0,
        back_blocks=0,
        feature_stride=2,
        sif_widths=(64, 64),
        tif_widths=(64, 64),
        decoder_widths=(64, 64, 64),
    ),
    "stif-s-dcn": Config(**COMPACT, front_blocks=2, back_blocks=6, flow_unit="input"),
}
"""Configurations by name. ``stif-single`` is the "-s" of the paper's Table 4. ``stif-s`` enlarges; ``stif-i`` makes
more frames of about the same size, with features at half the frames' size; both follow motion by the same velocity
head. ``stif-s-dcn`` is what the earlier bundled weights are: the paper's deformable alignment made small."""
