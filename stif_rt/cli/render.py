"""``stif-rt render``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stif_rt.cli.options import Device, Dtype, EncoderOption, KernelsOption, Weights, parse_size
from stif_rt.cli.progress import Reporter, clock
from stif_rt.cli.signals import stopped_by_signals
from stif_rt.dtypes import dtype_name
from stif_rt.video.options import (
    DEINTERLACE,
    IMAGE_FORMATS,
    TONEMAPS,
    Cancellation,
    Cancelled,
    RenderOptions,
)

if TYPE_CHECKING:
    from stif_rt.runtime import Runtime
    from stif_rt.video.job import Job
    from stif_rt.video.run import Rendered

WITH_WARNINGS = 3
"""Exit status of a render that is complete, but had something to warn of."""
SIZE, TIME, PICTURES, FILE, RUN = "Size", "Time", "Pictures", "Output file", "Running"
EPILOG = """
Examples:

  stif-rt render in.mp4 out.mp4 --scale 4 --fps 60

  stif-rt render in.mp4 slow.mp4 --scale 2 --slow-motion 8 --start 1:05 --end 1:07.5

  stif-rt render *.mov --output upscaled/ --width 1920 --resume

Exit status: 0 done; 1 an error, no output; 2 wrong usage; 3 done, with warnings; 130 stopped by Ctrl-C,
129 by SIGHUP, 143 by SIGTERM. docs/video.md is the guide.
"""


def option(help: str, *names: str, panel: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


def render(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="INPUT... OUTPUT", help="Videos or folders of images; then the output."),
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        option("A video, or a folder of images in the order of their names.", "--input", "-i", panel=FILE),
    ] = None,
    output: Annotated[
        Path | None,
        option(
            "A video (.mp4, .mkv, .mov, .webm), or a folder: for PNG images, or for the videos of several inputs.",
            "--output",
            "-o",
            panel=FILE,
        ),
    ] = None,
    scale: Annotated[
        float | None, option("Output pixels per input pixel. 4 unless given.", "--scale", "-s", panel=SIZE)
    ] = None,
    size: Annotated[str | None, option("WIDTHxHEIGHT, instead of --scale.", panel=SIZE)] = None,
    width: Annotated[
        int | None, option("Width; the height keeps the shape, or is --height.", "--width", "-w", panel=SIZE)
    ] = None,
    height: Annotated[int | None, option("Height; -1 keeps the shape.", panel=SIZE)] = None,
    fit: Annotated[
        str,
        option(
            "For a size of another shape: contain (all of it, with black bars; the default), cover (cut off what is "
            "too much), stretch.",
            panel=SIZE,
        ),
    ] = "contain",
    region: Annotated[str | None, option("X,Y,WIDTH,HEIGHT of the output: render that part alone.", panel=SIZE)] = None,
    time_scale: Annotated[
        str | None,
        option("Output frames per input frame, such as 8 or 5/2.", "--time-scale", "--multi", "-m", panel=TIME),
    ] = None,
    fps: Annotated[
        str | None,
        option("Output frames per second, such as 60 or 60000/1001.", "--fps", "--rate", "-r", panel=TIME),
    ] = None,
    slow_motion: Annotated[
        str | None, option("How many times as long as the input the output plays.", panel=TIME)
    ] = None,
    start: Annotated[str | None, option("Where to begin: seconds, or a time such as 1:02:03.5.", panel=TIME)] = None,
    end: Annotated[str | None, option("Where to stop, likewise; not rendered any more.", panel=TIME)] = None,
    input_fps: Annotated[str | None, option("Frames per second of a folder of images; 24.", panel=TIME)] = None,
    keep_frames: Annotated[
        bool, option("At --scale 1, show the input's own frames at their times; or render them too.", panel=TIME)
    ] = True,
    square_pixels: Annotated[
        bool, option("Stretch pictures whose pixels are not square.", "--square-pixels", panel=SIZE)
    ] = False,
    deinterlace: Annotated[
        str, option("auto (pictures that are flagged as interlaced; the default), on, off.", panel=PICTURES)
    ] = "auto",
    tonemap: Annotated[
        str | None,
        option("SDR from HDR: clip (what is brighter than 203 cd/m2 is white), mobius, bt2390.", panel=PICTURES),
    ] = None,
    pix_fmt: Annotated[
        str | None,
        option("Pixel format, as FFmpeg names it; by default 10 bits for input above 8.", panel=PICTURES),
    ] = None,
    image_format: Annotated[str, option("Of a folder: png (the default), tiff, exr.", panel=PICTURES)] = "png",
    max_gap: Annotated[
        str | None, option("Seconds above which a gap in the input is held, not interpolated; 1.", panel=TIME)
    ] = None,
    cuts: Annotated[
        str, option("auto, none, or a file with the frame number or time of each scene's first frame.", panel=TIME)
    ] = "auto",
    cut_threshold: Annotated[
        float | None, option("How much of a change is a cut; 0.6, higher finds fewer.", panel=TIME)
    ] = None,
    codec: Annotated[
        str | None,
        option("Encoder, such as libx264, libx265, ffv1, prores_ks or h264_nvenc.", "--codec", "-c", panel=FILE),
    ] = None,
    crf: Annotated[int | None, option("Quality of the video: lower is better; 16.", min=0, max=63, panel=FILE)] = None,
    preset: Annotated[str | None, option("Of the encoder: how much time it takes to save space.", panel=FILE)] = None,
    encoder_option: Annotated[
        list[str] | None,
        option("KEY=VALUE for the encoder. Repeatable.", "--encoder-option", "-e", panel=FILE),
    ] = None,
    audio: Annotated[bool, option("Keep the input's sound.", panel=FILE)] = True,
    audio_codec: Annotated[
        str | None,
        option("Encode sound by this encoder, such as aac; by default only what the file cannot hold.", panel=FILE),
    ] = None,
    overwrite: Annotated[bool, option("Replace an output that exists.", "--overwrite", "-y", panel=FILE)] = False,
    resume: Annotated[
        bool, option("Go on with what an earlier run has finished, whatever ended it.", "--resume", panel=RUN)
    ] = False,
    segment_frames: Annotated[
        int | None, option("Output frames of a segment, which a stop can cost; 256.", min=1, panel=RUN)
    ] = None,
    strict: Annotated[bool, option("Make errors of warnings.", "--strict", panel=RUN)] = False,
    progress: Annotated[
        str, option("auto (a bar on a terminal, else lines), plain (lines), json (a line each).", panel=RUN)
    ] = "auto",
    quiet: Annotated[bool, option("Say nothing but warnings and errors.", "--quiet", "-q", panel=RUN)] = False,
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
    max_memory: Annotated[
        float, typer.Option(min=0, max=2**20, help="GiB of working memory for a frame; larger ones go in pieces.")
    ] = 1,
) -> None:
    """Render a video at another size and frame rate."""
    reporter = Reporter(progress, quiet)  # type: ignore[arg-type]  # it checks the name
    tasks = pair_up(paths or [], inputs or [], output)
    width, height = chosen_size(size, width, height)
    options = {
        "scale": scale,
        "width": width,
        "height": height,
        "fit": fit,
        "region": None if region is None else integers(region, 4, "--region", "X,Y,WIDTH,HEIGHT"),
        "time_scale": time_scale,
        "fps": fps,
        "slow_motion": slow_motion,
        "start": start,
        "end": end,
        "input_fps": input_fps,
        "max_gap": max_gap,
        "cuts": cuts,
        "cut_threshold": cut_threshold,
        "keep_frames": keep_frames,
        "square_pixels": square_pixels,
        "deinterlace": one_of(deinterlace, DEINTERLACE, "--deinterlace"),
        "tonemap": tonemap and one_of(tonemap, TONEMAPS, "--tonemap"),
        "pix_fmt": pix_fmt,
        "image_format": one_of(image_format, IMAGE_FORMATS, "--image-format"),
        "audio": audio,
        "codec": codec,
        "audio_codec": audio_codec,
        "crf": crf,
        "preset": preset,
        "encoder_options": dict(assignment(text, "-e") for text in encoder_option or []),
        "strict": strict,
    }
    if segment_frames is not None:
        options["segment_frames"] = segment_frames
    machine = {
        "device": device,
        "dtype": dtype,
        "kernels": kernels,
        "encoder": encoder,
        "max_memory": int(max_memory * 2**30),
    }
    run = Run(tasks, RenderOptions(**options), weights, machine, overwrite, resume, reporter)  # type: ignore[arg-type]
    status = run.all()
    if status:
        raise typer.Exit(status)


def one_of(value: str, known: Sequence[str], option: str) -> str:
    """The value of an option. ValueError for one that is not known."""
    if value not in known:
        raise ValueError(f"{option} {value}: there are {', '.join(known)}")
    return value


def pair_up(paths: list[Path], inputs: list[Path], output: Path | None) -> list[tuple[Path, Path]]:
    """(input, output) of every render, from the positional arguments and -i and -o."""
    sources = [*inputs, *paths]
    if output is None:
        if len(paths) + len(inputs) < 2 or not paths:
            raise typer.BadParameter("give an input and an output; stif-rt render --help has examples")
        output = sources.pop()
    if not sources:
        raise typer.BadParameter("give an input")
    if len(sources) == 1:
        return [(sources[0], output)]
    if output.suffix and not output.is_dir():
        raise ValueError(f"{len(sources)} inputs need a folder as output, not {output}")
    from stif_rt.video.encoding import CODECS

    def target(source: Path) -> Path:
        if source.is_dir():
            return output / source.resolve().name
        return output / (source.name if source.suffix.lower() in CODECS else f"{source.stem}.mp4")

    tasks = [(source, target(source)) for source in sources]
    names = [target for _, target in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two inputs would both become {twice}; render them one by one")
    return tasks


def chosen_size(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """(width, height) from all the ways to ask for them; None where the input's shape decides."""
    if size is not None:
        if width is not None or height is not None:
            raise ValueError("give either --size or --width and --height, not both")
        width, height = parse_size(size, "--size")
    return (None if width == -1 else width), (None if height == -1 else height)


def assignment(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{option} {text}: give KEY=VALUE")
    return key, value


def integers(text: str, count: int, option: str, form: str) -> tuple[int, ...]:
    """``count`` whole numbers with commas between them."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise ValueError(f"{option} {text}: give {form}")
    return numbers


@dataclass
class Run:
    """One call of the command: perhaps several renders with one runtime."""

    tasks: list[tuple[Path, Path]]
    options: RenderOptions
    weights: Path | None
    machine: dict[str, Any]
    overwrite: bool
    resume: bool
    reporter: Reporter

    def all(self) -> int:
        """Renders everything; returns the exit status."""
        from stif_rt.runtime import Runtime

        folder = self.tasks[0][1].parent
        if len(self.tasks) > 1 and folder.parent.is_dir():
            folder.mkdir(exist_ok=True)
        runtime: Runtime | None = None
        failures = warnings = 0
        with stopped_by_signals(self._announce) as cancel:
            for source, target in self.tasks:
                try:
                    job = self._job(source, target)
                    runtime = runtime or Runtime.load(self.weights, **self.machine)
                    warnings += self._one(job, runtime, cancel)
                except Cancelled:
                    self._tell_what_is_kept(target)
                    return 130
                except SystemExit:
                    self._tell_what_is_kept(target)
                    raise
                except (ValueError, OSError, RuntimeError) as error:
                    self._tell_what_is_kept(target)
                    if len(self.tasks) == 1:
                        raise
                    failures += 1
                    self.reporter.say(f"error: {source}: {error}", "error", input=str(source), message=str(error))
        return 1 if failures else WITH_WARNINGS if warnings else 0

    def _job(self, source: Path, target: Path) -> "Job":
        from stif_rt.video.job import make_job

        return make_job(source, target, self.options, self.overwrite)

    def _one(self, job: "Job", runtime: "Runtime", cancel: Cancellation) -> int:
        """One render; returns the number of its warnings."""
        from stif_rt.video.run import run_job

        self._start(job, runtime)
        with self.reporter.progress() as watch:
            rendered = run_job(job, runtime, self.weights, self.overwrite, self.resume, watch, cancel)
            watch.stop(rendered.frames)
        for notice in rendered.warnings:
            self.reporter.warn(notice)
        self._finish(rendered)
        return len(rendered.warnings)

    def _start(self, job: "Job", runtime: "Runtime") -> None:
        reader, (H, W) = job.reader, job.layout.frame
        rate = float(job.rates.playing)
        slow = f", {float(job.rates.slowdown):g} times as long" if job.rates.slowdown != 1 else ""
        self.reporter.say(
            f"{reader.width}x{reader.height} at {float(reader.rate):g}/s -> {W}x{H} at {rate:g}/s{slow}, "
            f"{runtime.device}, {dtype_name(runtime.dtype)}",
            "start",
            input=str(job.input),
            output=str(job.output),
            width=W,
            height=H,
            fps=rate,
            total=job.expected,
        )

    def _finish(self, rendered: "Rendered") -> None:
        (H, W), rate, frames = rendered.size, float(rendered.rate), rendered.frames
        noun = "frame" if frames == 1 else "frames"
        self.reporter.say(
            f"wrote {frames} {noun} to {rendered.output}: {W}x{H} at {rate:g}/s, {frames / rate:.2f} s long, "
            f"in {clock(rendered.seconds)} ({frames / max(rendered.seconds, 1e-9):.2f} frames/s)",
            "finished",
            output=str(rendered.output),
            frames=frames,
            width=W,
            height=H,
            fps=rate,
            seconds=round(rendered.seconds, 3),
            warnings=len(rendered.warnings),
        )

    def _announce(self, text: str) -> None:
        self.reporter.say(text, "stopping", message=text)

    def _tell_what_is_kept(self, target: Path) -> None:
        from stif_rt.video.workspace import workspace_path

        folder = workspace_path(target)
        if folder.is_dir():
            self.reporter.say(
                f"what is finished is kept in {folder}; --resume goes on with it", "kept", folder=str(folder)
            )
