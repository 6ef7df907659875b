"""A job described: one input, one output, and everything that follows from them and the options."""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from stif_rt.dtypes import dtype_name
from stif_rt.files import check_target as check_file
from stif_rt.runtime import Runtime, find_weights, weights_for_scale
from stif_rt.version import VERSION
from stif_rt.video.cuts import CONTEXT, THRESHOLD, Cuts, detected_cuts, no_cuts, read_cuts
from stif_rt.video.encoding import IMAGE_CODECS, Encoding, choose_encoding, choose_image_encoding
from stif_rt.video.layout import Layout, make_layout
from stif_rt.video.notices import Notices
from stif_rt.video.options import RenderOptions
from stif_rt.video.plan import MAX_GAP, Pair, plan, without_duplicates
from stif_rt.video.rates import Rates, check_rate, output_rates, parse_number, parse_time
from stif_rt.video.reader import Frame, Reader, open_reader
from stif_rt.video.writer import check_target, is_video
from stif_rt.video.y4m import PIPE, PipeReader

INPUT_FPS = 24
Kind = Literal["video", "images", "image", "pipe"]


@dataclass(frozen=True)
class Job:
    """One input, one output, and everything that follows from them and the options."""

    input: Path
    output: Path
    options: RenderOptions
    layout: Layout
    rates: Rates
    expected: int | None
    """Output frames by what the input says of itself, which need not be so; None where it says nothing."""

    encoding: Encoding
    """How the output's frames are encoded."""
    reader: Reader
    """The open input. Its notices are those of the job."""

    cuts: Cuts
    start: Fraction
    stop: int | None
    """The number of the output frame that is not shown any more; None for the end of the input."""

    @property
    def kind(self) -> Kind:
        return output_kind(self.output, self.options)

    @property
    def as_video(self) -> bool:
        return self.kind == "video"

    @property
    def suffix(self) -> str:
        """The ending of segments' names."""
        return self.output.suffix.lower() if self.as_video else ""

    @property
    def scale(self) -> float:
        """Pixels of the rendered picture per pixel of the input."""
        return self.layout.scale((self.reader.height, self.reader.width))

    def fitting_weights(self) -> str:
        """The name of the bundled weights that fit the scale."""
        return weights_for_scale(self.scale)

    def pairs(self, first: int = 0, stop: int | None = None) -> Iterator[Pair]:
        """The input's pairs for the output frames from ``first`` to ``stop``, excluded; None for the end."""
        stop = min((number for number in (stop, self.stop) if number is not None), default=None)
        begin = self.start + first / self.rates.sampling
        end = None if stop is None else self.start + stop / self.rates.sampling
        max_gap = MAX_GAP if self.options.max_gap is None else parse_time(self.options.max_gap, "--max-gap")
        frames: Iterable[Frame]
        if self.options.drop_duplicates:  # with all of a run of repeated pictures up to what is a gap
            run = math.ceil((max_gap + 1) * self.reader.rate)
            frames = without_duplicates(self.reader.read(begin, end, CONTEXT + run))
        else:
            frames = self.reader.read(begin, end, CONTEXT)
        return plan(frames, self.rates.sampling, self.cuts, max_gap, self.start, first, stop)


def output_kind(output: Path, options: RenderOptions) -> Kind:
    """The kind of output that a name means. Raises ValueError where it means none."""
    if output == PIPE:
        return "pipe"
    if options.preview is not None:
        if output.suffix.lower() not in IMAGE_CODECS:
            raise ValueError(f"{output}: a preview is an image; give a name with {', '.join(IMAGE_CODECS)}")
        return "image"
    return "video" if is_video(output) else "images"


def make_job(input: Path, output: Path, options: RenderOptions, overwrite: bool = False) -> Job:
    """Checks everything that can be checked before rendering.

    Raises:
        FileNotFoundError, FileExistsError: for the input, and for an output that must not be replaced.
        ValueError: for an input that is no video, and options that cannot be.
    """
    kind = output_kind(output, options)
    if kind == "image":
        check_file(output, overwrite)
    elif kind != "pipe":
        check_target(output, input, overwrite)
    reader = _open(input, options)
    encoding = choose(output, options, reader)
    rates = output_rates(reader.rate, options.time_scale, options.fps, options.slow_motion)
    if kind == "video":
        check_rate(rates.playing, output.suffix.lower())
    layout = make_layout(
        (reader.height, reader.width),
        options.scale,
        options.width,
        options.height,
        options.fit,
        options.region,
        reader.sample_aspect_ratio,
        options.square_pixels,
        even=kind in ("video", "pipe") and encoding.subsampled,
    )
    start = parse_time((options.start if options.preview is None else options.preview) or 0, "--start")
    end = None if options.end is None else parse_time(options.end, "--end")
    if end is not None and end <= start:
        raise ValueError(f"--end {options.end} is not after --start {options.start or 0}")
    if reader.duration is not None and start >= reader.duration:
        given = options.start if options.preview is None else options.preview
        raise ValueError(f"{given} is not within the input, which ends at {float(reader.duration):g} s")
    stop = None if end is None else math.ceil((end - start) * rates.sampling)
    stop = 1 if kind == "image" else stop
    cuts = _cuts(options, reader)
    expected = _expected(reader, rates, start, end)
    return Job(input, output, options, layout, rates, expected, encoding, reader, cuts, start, stop)


def _open(path: Path, options: RenderOptions) -> Reader:
    """The input of a job."""
    notices = Notices(options.strict)
    if path == PIPE:
        return PipeReader(notices, options.tonemap)
    if options.input_fps is not None and path.is_file():
        raise ValueError(f"--input-fps is for folders of images; {path} is a file and has a rate of its own")
    input_fps = parse_number(options.input_fps or INPUT_FPS, "--input-fps")
    return open_reader(path, input_fps, notices, options.deinterlace, options.tonemap)


def choose(output: Path, options: RenderOptions, reader: Reader) -> Encoding:
    """The encoding of the output's frames. The reader's notices say what it cannot keep."""
    colour, notices, more = reader.colour, reader.notices, dict(options.encoder_options)
    kind = output_kind(output, options)
    if kind == "pipe":
        return choose_encoding(".mkv", colour, notices, "rawvideo", options.pix_fmt, None, more)
    if kind == "image":
        return choose_image_encoding(output.suffix.lower(), colour, notices, options.pix_fmt, more)
    if kind == "images":
        return choose_image_encoding(f".{options.image_format}", colour, notices, options.pix_fmt, more)
    if options.preset is not None:
        more.setdefault("preset", options.preset)
    suffix = output.suffix.lower()
    return choose_encoding(suffix, colour, notices, options.codec, options.pix_fmt, options.crf, more)


def _expected(reader: Reader, rates: Rates, start: Fraction, end: Fraction | None) -> int | None:
    """Output frames by what the input says of itself."""
    duration = reader.duration if reader.frames is None else reader.frames / reader.rate
    until = duration if end is None else end if duration is None else min(end, duration)
    return None if until is None else max(1, math.ceil((until - start) * rates.sampling))


def _cuts(options: RenderOptions, reader: Reader) -> Cuts:
    """The detector of scene cuts that the options ask for."""
    if options.cuts == "none":
        return no_cuts
    if options.cuts != "auto":
        return read_cuts(Path(options.cuts), reader)
    threshold = THRESHOLD if options.cut_threshold is None else options.cut_threshold
    return functools.partial(detected_cuts, threshold=threshold)


def describe(job: Job, runtime: Runtime | None, weights: str | Path | None) -> dict[str, Any]:
    """The properties in which two runs must agree to work on the same segments, as JSON has them.

    Without a runtime, as for several processes, its dtype is left open.
    """
    source = job.input.resolve()
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    identity = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    description = {
        "stif-rt": VERSION,
        "input": str(source),
        "input files": hashlib.sha256(repr(identity).encode()).hexdigest(),
        "output": str(job.output.absolute()),
        "options": asdict(job.options),
        "weights": _weights_identity(weights),
        "dtype": None if runtime is None else dtype_name(runtime.dtype),
    }
    return json.loads(json.dumps(description, default=str))


def _weights_identity(weights: str | Path | None) -> str:
    """A checksum of a weights file or of the files of a bundle."""
    path = find_weights(weights)
    checksum = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        checksum.update(file.read_bytes())
    return checksum.hexdigest()


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """In words, in what two descriptions differ; empty where they are equal."""
    differences = []
    for key in ours.keys() | theirs.keys():
        a, b = theirs.get(key), ours.get(key)
        if key == "dtype" and None in (a, b):
            continue  # several processes may differ in it
        if isinstance(a, dict) and isinstance(b, dict):
            differences += [
                f"{name} was {a.get(name)}, is {b.get(name)}" for name in a | b if a.get(name) != b.get(name)
            ]
        elif a != b:
            differences.append(f"{key} was {a}, is {b}" if key not in ("input files", "weights") else f"{key} changed")
    return "; ".join(sorted(differences))
