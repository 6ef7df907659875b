"""What decides the pictures and the sound of a render, and what may stop it or hear of it."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args, get_type_hints

from stif_rt.schema import convert
from stif_rt.video.layout import Fit
from stif_rt.video.rates import Number

SEGMENT_FRAMES = 256
"""What x264 leaves between key frames, so that a segment's border costs next to nothing."""
SlowAudio = Literal["stretch", "drop"]
Deinterlace = Literal["auto", "on", "off"]
Tonemap = Literal["clip", "mobius", "bt2390"]
ImageFormat = Literal["png", "tiff", "exr"]
DEINTERLACE, TONEMAPS, IMAGE_FORMATS = (get_args(names) for names in (Deinterlace, Tonemap, ImageFormat))
SLOW_AUDIO = get_args(SlowAudio)
CUTS = ("auto", "none")
"""Values of ``cuts`` that are not the name of a file."""


@dataclass(frozen=True)
class RenderOptions:
    """The options of ``render_video``; the command line's have the same names and meanings.

    Size: ``scale`` is output pixels per input pixel, 4 unless a size is given; ``width`` and ``height`` are a size, of
    which one is enough; ``fit`` is what becomes of an input of another shape: ``contain``, ``cover`` or ``stretch``;
    ``region`` is (x, y, width, height) of the output, to render that part alone.

    Time: ``time_scale`` is output frames per input frame, ``fps`` the output's frames per second, ``slow_motion`` how
    many times as long as the input it plays; ``input_fps`` the frames per second of a folder of images. ``start`` and
    ``end`` are seconds or "1:02:03.5" of the input. ``max_gap`` is the number of seconds, 1 by default, above which the
    picture before a gap in the input is held. ``drop_duplicates`` leaves out input pictures that repeat the one before,
    so that what lies between those that differ is rendered. Numbers may be text, such as "24000/1001".

    Cuts: nothing is interpolated across them. ``cuts`` is ``auto``, ``none``, or a text file with the number of the
    frame or the time at which each scene begins; ``cut_threshold`` makes ``auto`` find fewer (above 0.6) or more.

    Pictures: ``keep_frames`` shows the input's own frames, not rendered ones, where the size does not change.
    ``deinterlace`` is ``auto`` (pictures that are flagged), ``on`` or ``off``; ``tonemap`` makes SDR of HDR, by
    ``clip``, ``mobius`` or ``bt2390``; ``square_pixels`` stretches pictures whose pixels are not square.

    Sound: ``audio`` keeps it, as it is or, with ``audio_codec``, encoded anew; in slow motion, ``slow_audio`` is
    ``stretch`` (the pitch stays) or ``drop``.

    File: ``codec`` is an encoder's name in FFmpeg, ``crf`` its quality (lower is better), ``preset`` its effort,
    ``encoder_options`` anything else that it takes; ``pix_fmt`` is a pixel format's name in FFmpeg, by default one of
    10 bits for input above 8; ``image_format`` is ``png``, ``tiff`` or ``exr`` for folders.

    ``preview`` is a time of the input, to render the picture of that time alone, into an image file.

    ``strict`` makes errors of warnings; ``segment_frames`` is how many output frames a stop can cost.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    fit: Fit = "contain"
    region: tuple[int, int, int, int] | None = None
    time_scale: Number | None = None
    fps: Number | None = None
    slow_motion: Number | None = None
    input_fps: Number | None = None
    start: Number | None = None
    end: Number | None = None
    max_gap: Number | None = None
    cuts: str = "auto"
    cut_threshold: float | None = None
    drop_duplicates: bool = False
    preview: Number | None = None
    keep_frames: bool = True
    deinterlace: Deinterlace = "auto"
    tonemap: Tonemap | None = None
    square_pixels: bool = False
    audio: bool = True
    audio_codec: str | None = None
    slow_audio: SlowAudio = "stretch"
    codec: str | None = None
    crf: int | None = None
    preset: str | None = None
    encoder_options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str | None = None
    image_format: ImageFormat = "png"
    strict: bool = False
    segment_frames: int = SEGMENT_FRAMES

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(RenderOptions).items():
            value = getattr(self, name)
            value = os.fspath(value) if name == "cuts" and isinstance(value, os.PathLike) else value
            object.__setattr__(self, name, convert(value, annotation, name))


class Progress(NamedTuple):
    """How far a render is.

    Attributes:
        stage: "rendering" or "joining".
        frames: How many are done.
        total: How many there are, None while that is not known.
        seconds: Time since the stage began.
        resumed: How many of ``frames`` an earlier run had finished.
    """

    stage: Literal["rendering", "joining"]
    frames: int
    total: int | None
    seconds: float
    resumed: int = 0


ProgressCallback = Callable[[Progress], None]


class Cancelled(RuntimeError):
    """A render was stopped on request; what it had finished is kept for ``resume``."""


class Cancellation:
    """Asks a running render to stop, from any thread; the render then raises ``Cancelled``."""

    def __init__(self) -> None:
        self._after_segment = threading.Event()
        self._now = threading.Event()

    def after_segment(self) -> None:
        """Stops when the segment that is being rendered is finished."""
        self._after_segment.set()

    def now(self) -> None:
        """Stops after the picture that is being rendered."""
        self._now.set()
        self._after_segment.set()

    @property
    def requested(self) -> bool:
        """Whether the render was asked to stop in either way."""
        return self._after_segment.is_set()

    def check(self, segment_finished: bool = False) -> None:
        """Raise ``Cancelled`` where the render has to stop here.

        Args:
            segment_finished: Whether a segment has just been finished.

        Raises:
            Cancelled: It was asked to stop at once, or after a segment, and one is finished.
        """
        if self._now.is_set() or (segment_finished and self._after_segment.is_set()):
            raise Cancelled("the render was stopped")
