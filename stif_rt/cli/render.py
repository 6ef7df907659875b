"""``stif-rt render``."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from stif_rt.cli.arguments import pair_up, render_options
from stif_rt.cli.options import NETWORK, Device, Dtype, EncoderOption, KernelsOption, Weights
from stif_rt.cli.progress import Reporter
from stif_rt.cli.rendering import Run, run_shard

Command = TypeVar("Command", bound=Callable[..., None])
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
    """An option of the command line, listed in a panel of ``--help``."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


def render(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT... OUTPUT",
            help="Videos or folders of images, then the output; - is Y4M in a pipe.",
        ),
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
    size: Annotated[str | None, option("WIDTHxHEIGHT, instead of --scale.", metavar="WIDTHxHEIGHT", panel=SIZE)] = None,
    width: Annotated[
        int | None, option("Width; the height keeps the shape, or is --height.", "--width", "-w", panel=SIZE)
    ] = None,
    height: Annotated[int | None, option("Height; -1 keeps the shape.", panel=SIZE)] = None,
    fit: Annotated[
        str,
        option(
            "For a size of another shape: contain (all of it, with black bars; the default), cover (cut off what is "
            "too much), stretch.",
            metavar="contain|cover|stretch",
            panel=SIZE,
        ),
    ] = "contain",
    region: Annotated[
        str | None, option("X,Y,WIDTH,HEIGHT of the output: render that part alone.", metavar="X,Y,W,H", panel=SIZE)
    ] = None,
    time_scale: Annotated[
        str | None,
        option(
            "Output frames per input frame, such as 8 or 5/2.",
            "--time-scale",
            "--multi",
            "-m",
            metavar="FACTOR",
            panel=TIME,
        ),
    ] = None,
    fps: Annotated[
        str | None,
        option(
            "Output frames per second, such as 60 or 60000/1001.", "--fps", "--rate", "-r", metavar="RATE", panel=TIME
        ),
    ] = None,
    slow_motion: Annotated[
        str | None, option("How many times as long as the input the output plays.", metavar="FACTOR", panel=TIME)
    ] = None,
    start: Annotated[
        str | None, option("Where to begin: seconds, or a time such as 1:02:03.5.", metavar="TIME", panel=TIME)
    ] = None,
    end: Annotated[
        str | None, option("Where to stop, likewise; not rendered any more.", metavar="TIME", panel=TIME)
    ] = None,
    preview: Annotated[
        str | None, option("A time: render its picture alone, into an image file.", metavar="TIME", panel=TIME)
    ] = None,
    input_fps: Annotated[
        str | None, option("Frames per second of a folder of images; 24.", metavar="RATE", panel=TIME)
    ] = None,
    keep_frames: Annotated[
        bool, option("At --scale 1, show the input's own frames at their times; or render them too.", panel=TIME)
    ] = True,
    square_pixels: Annotated[
        bool, option("Stretch pictures whose pixels are not square.", "--square-pixels", panel=SIZE)
    ] = False,
    deinterlace: Annotated[
        str,
        option(
            "auto (pictures that are flagged as interlaced; the default), on, off.",
            metavar="auto|on|off",
            panel=PICTURES,
        ),
    ] = "auto",
    tonemap: Annotated[
        str | None,
        option(
            "SDR from HDR: clip (what is brighter than 203 cd/m2 is white), mobius, bt2390.",
            metavar="clip|mobius|bt2390",
            panel=PICTURES,
        ),
    ] = None,
    pix_fmt: Annotated[
        str | None,
        option(
            "Pixel format, as FFmpeg names it; by default 10 bits for input above 8.", metavar="NAME", panel=PICTURES
        ),
    ] = None,
    image_format: Annotated[
        str, option("Of a folder: png (the default), tiff, exr.", metavar="png|tiff|exr", panel=PICTURES)
    ] = "png",
    max_gap: Annotated[
        str | None,
        option("Seconds above which a gap in the input is held, not interpolated; 1.", metavar="SECONDS", panel=TIME),
    ] = None,
    drop_duplicates: Annotated[
        bool, option("Leave out input pictures that repeat the one before.", "--drop-duplicates", panel=TIME)
    ] = False,
    cuts: Annotated[
        str,
        option(
            "auto, none, or a file with the frame number or time of each scene's first frame.",
            metavar="auto|none|FILE",
            panel=TIME,
        ),
    ] = "auto",
    cut_threshold: Annotated[
        float | None, option("How much of a change is a cut; 0.6, higher finds fewer.", panel=TIME)
    ] = None,
    codec: Annotated[
        str | None,
        option(
            "Encoder, such as libx264, libx265, ffv1, prores_ks or h264_nvenc.",
            "--codec",
            "-c",
            metavar="NAME",
            panel=FILE,
        ),
    ] = None,
    crf: Annotated[int | None, option("Quality of the video: lower is better; 16.", min=0, max=63, panel=FILE)] = None,
    preset: Annotated[
        str | None, option("Of the encoder: how much time it takes to save space.", metavar="NAME", panel=FILE)
    ] = None,
    encoder_option: Annotated[
        list[str] | None,
        option("KEY=VALUE for the encoder. Repeatable.", "--encoder-option", "-e", metavar="KEY=VALUE", panel=FILE),
    ] = None,
    audio: Annotated[bool, option("Keep the input's sound.", panel=FILE)] = True,
    audio_codec: Annotated[
        str | None,
        option(
            "Encode sound by this encoder, such as aac; by default only what the file cannot hold.",
            metavar="NAME",
            panel=FILE,
        ),
    ] = None,
    slow_audio: Annotated[
        str,
        option("In slow motion: stretch (the pitch stays; the default) or drop.", metavar="stretch|drop", panel=FILE),
    ] = "stretch",
    overwrite: Annotated[bool, option("Replace an output that exists.", "--overwrite", "-y", panel=FILE)] = False,
    resume: Annotated[
        bool, option("Go on with what an earlier run has finished, whatever ended it.", "--resume", panel=RUN)
    ] = False,
    segment_frames: Annotated[
        int | None, option("Output frames of a segment, which a stop can cost; 256.", min=1, panel=RUN)
    ] = None,
    dry_run: Annotated[
        bool,
        option("Say what would be done, and about how long it takes.", "--dry-run", "-n", panel=RUN),
    ] = False,
    jobs: Annotated[
        int,
        option(
            "Processes that share the work: one for each GPU, or for some of the cores.",
            "--jobs",
            "-j",
            min=1,
            panel=RUN,
        ),
    ] = 1,
    plan: Annotated[Path | None, option("Work on a plan that stif-rt plan has made ...", panel=RUN)] = None,
    shard: Annotated[int | None, option("... on this part of it, counted from 0.", min=0, panel=RUN)] = None,
    strict: Annotated[bool, option("Make errors of warnings.", "--strict", panel=RUN)] = False,
    progress: Annotated[
        str,
        option(
            "auto (a bar on a terminal, else lines), plain (lines), json (a line each).",
            metavar="auto|plain|json",
            panel=RUN,
        ),
    ] = "auto",
    quiet: Annotated[bool, option("Say nothing but warnings and errors.", "--quiet", "-q", panel=RUN)] = False,
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
    max_memory: Annotated[
        float | None,
        option(
            "GiB of working memory; what is larger goes in tiles. A quarter of what is free, at most 4.",
            min=0,
            max=2**20,
            panel=NETWORK,
        ),
    ] = None,
) -> None:
    """Render a video at another size and frame rate."""
    given = dict(locals())
    reporter = Reporter(progress, quiet)  # type: ignore[arg-type]  # it checks the name
    machine = machine_options(given)
    if plan is not None:
        if shard is None or paths or inputs or output:
            raise typer.BadParameter("--plan needs --shard, and no input or output: the plan has them")
        status = run_shard(plan, shard, machine, reporter)
    else:
        tasks = pair_up(paths or [], inputs or [], output)
        run = Run(tasks, render_options(given), weights, machine, overwrite, resume, jobs, reporter)
        status = run.dry() if dry_run else run.all()
    if status:
        raise typer.Exit(status)


def machine_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``Runtime.load`` from the options of a command, but for the weights."""
    machine = {name: given[name] for name in ("device", "dtype", "kernels", "encoder")}
    return machine | {"max_memory": None if given["max_memory"] is None else int(given["max_memory"] * 2**30)}


def with_options_of_render(without: Sequence[str], **own: tuple[Any, Any]) -> Callable[[Command], Command]:
    """A decorator for a command that takes the options of ``stif-rt render``, all of them as keywords.

    Args:
        without: the names of those that it does not take.
        own: the type and the default of those that it takes besides.
    """
    given = inspect.signature(render).parameters  # get_type_hints of Python 3.10 hides those whose default is None
    types = {name: (value.annotation, value.default) for name, value in given.items() if name not in without} | own
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, keyword, default=value, annotation=type_) for name, (type_, value) in types.items()
    ]

    def decorate(command: Command) -> Command:
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {name: type_ for name, (type_, _) in types.items()}
        return command

    return decorate
