"""``stif-rt render``."""

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from stif_rt.cli.options import Device, Dtype, EncoderOption, KernelsOption, Weights, parse_rate
from stif_rt.cli.terminal import console, progress_bar
from stif_rt.runtime import Runtime, output_size
from stif_rt.video.plan import count
from stif_rt.video.reader import VideoReader, open_reader
from stif_rt.video.render import render_frames
from stif_rt.video.writer import check_target, image_writer, is_video, video_writer


def render(
    input: Annotated[Path, typer.Argument(help="A video file, or a folder of images in the order of their names.")],
    output: Annotated[Path, typer.Argument(help="A video file (.mp4, .mkv, .mov, .webm), or a folder for PNG images.")],
    scale: Annotated[float | None, typer.Option(help="Output pixels per input pixel. 4 unless given.")] = None,
    size: Annotated[str | None, typer.Option(help="Output size WIDTHxHEIGHT, instead of --scale.")] = None,
    time_scale: Annotated[str | None, typer.Option(help="Output frames per input frame, such as 8 or 5/2.")] = None,
    fps: Annotated[str | None, typer.Option(help="Output frames per second, such as 60 or 60000/1001.")] = None,
    input_fps: Annotated[str, typer.Option(help="Frames per second of a folder of images.")] = "24",
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: KernelsOption = "auto",
    encoder: EncoderOption = "auto",
    max_memory: Annotated[
        float, typer.Option(min=0, max=2**20, help="GiB of working memory for a frame; larger ones go in pieces.")
    ] = 1,
    crf: Annotated[int, typer.Option(min=0, max=63, help="Quality of the written video: lower is better.")] = 16,
    audio: Annotated[bool, typer.Option(help="Copy the input's sound.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Render a video at another size and frame rate."""
    as_video = is_video(output)
    check_target(output, input, overwrite)
    with contextlib.closing(open_reader(input, parse_rate(input_fps, "--input-fps"))) as reader:
        rate = output_rate(reader.rate, time_scale, fps)
        H, W = frame_size(reader.height, reader.width, scale, size, even=as_video)
        runtime = Runtime.load(
            weights, device=device, dtype=dtype, kernels=kernels, encoder=encoder, max_memory=int(max_memory * 2**30)
        )
        if as_video:
            sound = reader if audio and isinstance(reader, VideoReader) else None
            aspect = reader.sample_aspect_ratio if size is None else None  # a size of one's own has square pixels
            target = video_writer(output, (H, W), rate, crf, sound, aspect)
        else:
            target = image_writer(output)
        console.print(
            f"{reader.width}x{reader.height} at {float(reader.rate):g}/s -> {W}x{H} at {float(rate):g}/s, "
            f"{describe(runtime)}"
        )
        total = None if reader.frames is None else count(reader.frames, reader.rate, rate)
        with target as writer, progress_bar() as progress:
            task = progress.add_task("rendering", total=total)
            written = render_frames(runtime, reader, writer, (H, W), rate, lambda: progress.advance(task))
        notices = list(reader.notices)
    for notice in notices:
        console.print(f"warning: {notice}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {written} frames to {output}", highlight=False, markup=False)


def output_rate(input_rate: Fraction, time_scale: str | None, fps: str | None) -> Fraction:
    """Frames per second of the output, exactly."""
    if time_scale is not None and fps is not None:
        raise ValueError("give either --time-scale or --fps, not both")
    if fps is not None:
        rate = parse_rate(fps, "--fps")
    else:
        rate = input_rate * (1 if time_scale is None else parse_rate(time_scale, "--time-scale"))
    if max(rate.numerator, rate.denominator) >= 2**31:  # more than files can hold; 59.94005994... becomes 60000/1001
        rate = rate.limit_denominator(1001)
    if not 0 < rate < 2**20:
        raise ValueError(f"the output would have {float(rate):g} frames per second")
    return rate


def frame_size(height: int, width: int, scale: float | None, size: str | None, even: bool) -> tuple[int, int]:
    """(H, W) of the output. Video files need even sides: those of a scale are rounded to even, a size must be."""
    if size is None:
        H, W = output_size((height, width), 4 if scale is None else scale, None)
        return (max(2, 2 * round(H / 2)), max(2, 2 * round(W / 2))) if even else (H, W)
    try:
        W, H = (int(side) for side in size.lower().split("x"))
    except ValueError as error:
        raise ValueError(f"--size {size}: give WIDTHxHEIGHT, such as 1920x1080") from error
    if even and (H % 2 or W % 2):
        raise ValueError(f"--size {size}: sides of a video file must be even (4:2:0 chroma)")
    return output_size((height, width), scale, (H, W))


def describe(runtime: Runtime) -> str:
    return f"{runtime.device}, {str(runtime.dtype).removeprefix('torch.')}"
