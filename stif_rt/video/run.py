"""Whole renders, from files to a file: ``render_video``, and the same work divided among processes."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.container
import torch

from stif_rt.files import publish, whole_file
from stif_rt.runtime import Runtime
from stif_rt.video.colour import Components, Picture
from stif_rt.video.estimate import check_space
from stif_rt.video.job import Job, describe, differences, make_job
from stif_rt.video.matroska import write_pixel_shape
from stif_rt.video.notices import Notice
from stif_rt.video.options import Cancellation, Progress, ProgressCallback, RenderOptions
from stif_rt.video.reader import VideoReader
from stif_rt.video.render import NetworkRenderer, PairRenderer, pictures
from stif_rt.video.segments import check_segments, join_images, join_video, missing_runs, nothing_else, write_segments
from stif_rt.video.streams import StreamOptions, carry_streams, plan_streams
from stif_rt.video.workspace import Workspace, open_workspace
from stif_rt.video.writer import ImageWriter, VideoWriter, publish_images
from stif_rt.video.y4m import PipeWriter, standard_output

OpenStreams = Callable[[av.container.OutputContainer], AbstractContextManager[Callable[[Fraction | None], None]]]
"""Adds streams to a container that is not begun, and gives a function that writes them up to a time."""


class Rendered(NamedTuple):
    """The result of ``render_video``.

    Attributes:
        output: The file or folder.
        frames: How many are in it.
        size: (height, width).
        rate: Frames per second.
        seconds: How long it took.
        warnings: What was wrong with the input or could not be kept.
    """

    output: Path
    frames: int
    size: tuple[int, int]
    rate: Fraction
    seconds: float
    warnings: tuple[Notice, ...]


def render_video(
    input: str | Path,
    output: str | Path,
    *,
    runtime: Runtime | None = None,
    weights: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: ProgressCallback = lambda progress: None,
    cancel: Cancellation | None = None,
    **options: Any,
) -> Rendered:
    """Renders a video file or a folder of images at another size and frame rate: what ``stif-rt render`` does.

    The work is done in segments in a folder beside the output, ``OUTPUT.segments``. What is finished there survives
    any stop; ``resume`` goes on with it. The output appears when it is complete.

    Args:
        input: a video file, or a folder of images in the order of their names.
        output: a video file (.mp4, .mkv, .mov, .webm), or a folder for PNG images.
        runtime: makes the pictures; by default ``Runtime.load(weights)``.
        weights: a weights file, a bundle or a name, instead of a runtime; by default the bundled weights that fit the
            scale.
        overwrite: replace an output that exists, and discard what an earlier run has finished of it.
        resume: go on with what an earlier run with the same options has finished.
        progress: called after each frame.
        cancel: stops the render from another thread, or from ``progress``.
        options: those of ``RenderOptions``, such as ``scale=2, fps=60``.

    Returns:
        What was written.

    Raises:
        ValueError, TypeError, OSError: for inputs, outputs and options that cannot be used; nothing is left behind
            then.
        Cancelled: the render was stopped.
        RuntimeError: another process works on the same output.
    """
    if runtime is not None and weights is not None:
        raise ValueError("give either a runtime or weights, not both")
    job = make_job(Path(input), Path(output), RenderOptions(**options), overwrite)
    if runtime is None:
        weights = job.fitting_weights() if weights is None else weights
        runtime = Runtime.load(weights)
    return run_job(job, runtime, weights, overwrite, resume, progress, cancel or Cancellation())


def run_job(
    job: Job,
    runtime: Runtime,
    weights: str | Path | None,
    overwrite: bool,
    resume: bool,
    progress: ProgressCallback,
    cancel: Cancellation,
) -> Rendered:
    """Renders a job, or what is missing of it. As ``render_video``."""
    started = time.perf_counter()
    cancel.check(segment_finished=True)  # it may have been asked for while the network was loaded
    if job.kind in ("pipe", "image"):
        frames = (write_pipe if job.kind == "pipe" else write_preview)(job, runtime, overwrite, progress, cancel)
        return rendered(job, frames, started)
    check_space(job)
    with open_workspace(job.output, job.suffix) as workspace:
        check_encoding(job, workspace)
        streams = other_streams(job)
        prepare(workspace, describe(job, runtime, weights), overwrite, resume)
        length = job.options.segment_frames
        resumed = len(workspace.finished()) * length

        def report(frames: int) -> None:
            progress(Progress("rendering", frames, job.expected, time.perf_counter() - started, resumed))

        render_pair = renderer(job, runtime)
        done = workspace.finished()
        for gap in missing_runs(done, range(max(done, default=-1) + 1)):
            render_range(job, workspace, render_pair, gap.start * length, gap.stop * length, report, cancel)
        render_range(job, workspace, render_pair, (max(done, default=-1) + 1) * length, None, report, cancel)
        frames = join(job, workspace, overwrite, streams)
        workspace.delete()
    return rendered(job, frames, started)


def rendered(job: Job, frames: int, started: float) -> Rendered:
    """The result of a job that began at ``started`` on the performance counter."""
    seconds = time.perf_counter() - started
    return Rendered(job.output, frames, job.layout.frame, job.rates.playing, seconds, tuple(job.reader.notices))


def renderer(job: Job, runtime: Runtime) -> PairRenderer:
    """Renders the pairs of a job by a runtime."""
    job.reader.device = runtime.device
    return NetworkRenderer(runtime, job.layout, job.encoding.components, job.options.keep_frames)


def write_pipe(job: Job, runtime: Runtime, overwrite: bool, progress: ProgressCallback, cancel: Cancellation) -> int:
    """Renders a job to standard output; returns the number of frames."""
    started, number = time.perf_counter(), 0
    output = standard_output()
    try:
        writer = PipeWriter(output, job.layout.frame, job.rates.playing, job.encoding, job.layout.sample_aspect_ratio)
        with contextlib.closing(pictures(job.pairs(), renderer(job, runtime))) as frames:
            for frame in frames:
                cancel.check(segment_finished=True)
                writer.write(frame)
                number += 1
                progress(Progress("rendering", number, job.expected, time.perf_counter() - started))
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # what is still buffered goes nowhere
        raise RuntimeError(
            f"the program that reads standard output has ended after {number} frame{'s' * (number != 1)}"
        ) from error
    return number


def write_preview(job: Job, runtime: Runtime, overwrite: bool, progress: ProgressCallback, cancel: Cancellation) -> int:
    """Renders the one picture of a job into an image file; returns 1."""
    with contextlib.closing(pictures(job.pairs(), renderer(job, runtime))) as frames:
        frame = next(frames, None)
    if frame is None:
        raise ValueError(f"{job.input} shows nothing at {job.options.preview}")
    with whole_file(job.output, overwrite) as path:
        job.encoding.write_image(path, frame, job.layout.frame)
    progress(Progress("rendering", 1, 1, 0.0))
    return 1


def prepare(workspace: Workspace, description: dict[str, Any], overwrite: bool, resume: bool) -> None:
    """Makes the workspace one of this job: a new one, or the one that an earlier run has left."""
    earlier, finished = workspace.job(), workspace.finished()
    if resume and earlier is not None:
        if changed := differences(description, earlier):
            raise ValueError(
                f"{workspace.path} cannot be resumed: {changed}. Give the options of the earlier run, or --overwrite "
                "without --resume to discard it"
            )
        return
    if finished and not overwrite:
        raise FileExistsError(
            f"{workspace.path} holds {len(finished)} finished segments of an earlier run: give --resume to go on with "
            "it, or --overwrite to discard it"
        )
    workspace.begin(description)


def render_range(
    job: Job,
    workspace: Workspace,
    render_pair: PairRenderer,
    first: int,
    last: int | None,
    report: Callable[[int], None],
    cancel: Cancellation,
) -> int:
    """Renders the output frames from ``first``, the start of a segment, to ``last``; None for the end of the input.

    ``report`` is told the number of the frames that are done. Returns it.
    """
    done = first

    def watched(images: Iterator[Components]) -> Iterator[Components]:
        nonlocal done
        for image in images:
            cancel.check()
            yield image
            done += 1
            report(done)

    def finish_segment() -> None:
        workspace.keep_notices(job.reader.notices, first)
        cancel.check(segment_finished=True)

    with contextlib.closing(pictures(job.pairs(first, last), render_pair)) as images:
        write_segments(
            workspace,
            watched(images),
            first // job.options.segment_frames,
            segment_writer(job),
            job.options.segment_frames,
            between=finish_segment,
        )
    return done


def segment_writer(job: Job) -> Callable[[Path], AbstractContextManager[Callable[[Components], None]]]:
    """Opens the file of a segment, or for images the folder, and gives the function that appends a frame."""

    @contextlib.contextmanager
    def open_video(path: Path) -> Iterator[Callable[[Components], None]]:
        ratio = job.layout.sample_aspect_ratio
        with av.open(str(path), "w") as container:
            writer = VideoWriter(container, job.layout.frame, job.rates.playing, job.encoding, ratio)
            yield writer.write
            writer.finish()

    @contextlib.contextmanager
    def open_images(path: Path) -> Iterator[Callable[[Components], None]]:
        path.mkdir()
        suffix = f".{job.options.image_format}"
        yield ImageWriter(path, job.layout.frame, job.encoding, suffix).write

    return open_video if job.as_video else open_images


def check_encoding(job: Job, workspace: Workspace) -> None:
    """Raises ValueError where the output's file cannot be started, before time is spent on its pictures."""
    if not job.as_video:
        return
    with workspace.temporary(f"trial{job.suffix}") as path, segment_writer(job)(path) as write:
        write(job.encoding.components(Picture(torch.zeros(3, *job.layout.frame))))


def join(job: Job, workspace: Workspace, overwrite: bool, streams: OpenStreams, expected: int | None = None) -> int:
    """Joins the finished segments to the output.

    Args:
        job: the job.
        workspace: holds its segments.
        overwrite: replace an output that exists.
        streams: what ``other_streams`` returned for the job.
        expected: the number of frames that there should be; None for those that there are.

    Returns:
        The number of frames of the output.
    """
    workspace.recall_notices(job.reader.notices)
    if not job.as_video:
        frames = expected or sum(len(list(workspace.segment(index).iterdir())) for index in workspace.finished())
        with workspace.temporary("joined") as path:
            join_images(workspace, path, job.options.segment_frames, frames)
            publish_images(path, job.output, overwrite)
        return frames
    files = check_segments(workspace, job.rates.playing, job.options.segment_frames, expected)
    with workspace.temporary(f"joined{job.suffix}") as path:
        join_video(workspace, files, path, job.rates.playing, streams)
        if job.suffix in (".mkv", ".webm") and job.layout.sample_aspect_ratio:
            try:
                write_pixel_shape(path, job.layout.sample_aspect_ratio)
            except ValueError:
                job.reader.notices.add(
                    f"the shape of pixels, {job.layout.sample_aspect_ratio}, is not in the container"
                )
        publish(path, job.output, overwrite)
    return sum(file.frames for file in files)


def other_streams(job: Job) -> OpenStreams:
    """What the input holds besides its pictures, for the container of the output. What cannot be kept is noticed."""
    reader = job.reader
    if not isinstance(reader, VideoReader) or not job.as_video:
        return nothing_else
    options = StreamOptions(
        audio=job.options.audio,
        audio_codec=job.options.audio_codec,
        start=job.start,
        end=None if job.stop is None else job.start + job.stop / job.rates.sampling,
        slowdown=job.rates.slowdown,
        slow_audio=job.options.slow_audio,
    )
    tracks = plan_streams(reader, job.suffix, options, reader.notices)
    return functools.partial(carry_streams, reader=reader, tracks=tracks, options=options, notices=reader.notices)
