"""A render in segments of some hundred frames: what is finished stays, and is joined without encoding it again."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import av.container

from stif_rt.video.workspace import Workspace, flush_to_disk

T = TypeVar("T")


def missing_runs(finished: Iterable[int], wanted: range) -> list[range]:
    """The segments of ``wanted`` that are not finished, as runs of consecutive ones."""
    runs: list[range] = []
    for index in sorted(set(wanted) - set(finished)):
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs


def shard_range(segments: int, shard: int, shards: int) -> range:
    """The consecutive segments that process ``shard`` of ``shards`` works on."""
    return range(segments * shard // shards, segments * (shard + 1) // shards)


def write_segments(
    workspace: Workspace,
    pictures: Iterable[T],
    first: int,
    open_writer: Callable[[Path], AbstractContextManager[Callable[[T], None]]],
    segment_frames: int,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Writes pictures into segment ``first`` and those after it, until there are no more.

    Args:
        workspace: where the segments go.
        pictures: those of the output, from the first one of segment ``first``.
        first: the number of the first segment.
        open_writer: opens a file of one segment and gives the function that appends a picture to it.
        segment_frames: pictures of a segment; the last one may have fewer.
        between: called after each finished segment; what it raises ends the work there.

    Returns:
        The number of pictures written.
    """
    iterator = iter(pictures)
    written = 0
    for index in itertools.count(first):
        head = list(itertools.islice(iterator, 1))  # a segment is not opened before there is something for it
        if not head:
            break
        with workspace.writing(index) as path, open_writer(path) as write:
            for picture in itertools.chain(head, itertools.islice(iterator, segment_frames - 1)):
                write(picture)
                written += 1
        between()
    return written


class SegmentFile(NamedTuple):
    """An encoded segment, as joining needs to know it.

    frames: its number of pictures. delay: by how many pictures decoding runs ahead of showing. header: the encoder's
    parameters, which all segments of one file must share.
    """

    frames: int
    delay: int
    header: bytes


def inspect(path: Path, rate: Fraction) -> SegmentFile:
    """Reads through a segment. ValueError where it is damaged."""
    try:
        with av.open(str(path.absolute())) as file:
            stream = file.streams.video[0]
            shown = list(_shown(file, stream, rate))
            header = bytes(stream.codec_context.extradata or b"")
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"the finished segment {path} cannot be read; delete it and give --resume") from error
    if sorted(shown) != list(range(len(shown))):
        raise ValueError(f"the finished segment {path} is damaged; delete it and give --resume")
    delay = max((number - time for number, time in enumerate(shown)), default=0)
    return SegmentFile(len(shown), delay, header)


def _shown(file: av.container.InputContainer, stream: av.VideoStream, rate: Fraction) -> Iterator[int]:
    """For each packet in decoding order, the number of its picture in the segment."""
    for packet in file.demux(stream):
        if packet.pts is not None and packet.size:
            yield round(packet.pts * packet.time_base * rate)


def check_complete(workspace: Workspace, segment_frames: int, frames: int) -> int:
    """The number of segments of that many frames. ValueError where one is not finished."""
    count = -(-frames // segment_frames)
    lacking = sorted(set(range(count)) - set(workspace.finished()))
    if lacking:
        raise ValueError(f"{len(lacking)} of {count} segments are not rendered yet, the first one is {lacking[0]}")
    return count


def check_segments(
    workspace: Workspace, rate: Fraction, segment_frames: int, frames: int | None = None
) -> list[SegmentFile]:
    """All segments of a finished video, in order. ValueError where one lacks or differs from the rest.

    ``frames``: of the video; None where the segments tell, of which then only the last one may be short.
    """
    if frames is None:
        last = max(workspace.finished())
        frames = last * segment_frames + inspect(workspace.segment(last), rate).frames
    count = check_complete(workspace, segment_frames, frames)
    files = [inspect(workspace.segment(index), rate) for index in range(count)]
    for index, file in enumerate(files):
        expected = min(segment_frames, frames - index * segment_frames)
        path = workspace.segment(index)
        if file.frames != expected:
            raise ValueError(f"{path} holds {file.frames} frames instead of {expected}; delete it and give --resume")
        if file.header != files[0].header:
            raise ValueError(f"{path} was encoded with other settings than the first segment; delete it and --resume")
    return files


def joined_packets(
    workspace: Workspace, files: list[SegmentFile], stream: av.VideoStream, rate: Fraction
) -> Iterator["av.Packet[Any]"]:
    """The packets of all segments for ``stream``, with their times in units of 1/rate counted through."""
    delay = max(file.delay for file in files)
    first = 0
    for index, segment in enumerate(files):
        with av.open(str(workspace.segment(index).absolute())) as file:
            number = first
            for packet in file.demux(video=0):
                if packet.pts is None or not packet.size:
                    continue  # the demuxer's end mark
                shown = round(packet.pts * packet.time_base * rate)
                packet.pts, packet.dts, packet.duration = first + shown, number - delay, 1
                packet.time_base = 1 / rate
                packet.stream = stream
                number += 1
                yield packet
        first += segment.frames


def join_video(
    workspace: Workspace,
    files: list[SegmentFile],
    path: Path,
    rate: Fraction,
    open_others: Callable[[av.container.OutputContainer], AbstractContextManager[Callable[[Fraction | None], None]]],
    options: dict[str, str] | None = None,
) -> None:
    """Joins the segments into the file ``path``.

    Args:
        workspace: holds the segments.
        files: what ``check_segments`` returns.
        path: the file to write, anew.
        rate: frames per second.
        open_others: adds sound and what else there is to the container, and gives a function that writes it up to a
            time in seconds, all of it for None.
        options: of the container's format.
    """
    with contextlib.ExitStack() as stack:
        template = stack.enter_context(av.open(str(workspace.segment(0).absolute())))
        container = stack.enter_context(av.open(str(path), "w", container_options=options or {}))
        source = template.streams.video[0]
        stream = container.add_stream_from_template(source, opaque=True)  # a decoder need not have an encoder's name
        stream.codec_context.codec_tag = source.codec_context.codec_tag
        stream.metadata.update({key: value for key, value in source.metadata.items() if key.lower() == "alpha_mode"})
        stream.time_base = 1 / rate
        mux_others = stack.enter_context(open_others(container))
        for number, packet in enumerate(joined_packets(workspace, files, stream, rate)):
            container.mux(packet)
            mux_others((number + 1) / rate)
        mux_others(None)
    flush_to_disk(path)


@contextlib.contextmanager
def nothing_else(container: av.container.OutputContainer) -> Iterator[Callable[[Fraction | None], None]]:
    """For ``join_video``: a video without sound."""
    yield lambda until: None


def join_images(workspace: Workspace, folder: Path, segment_frames: int, frames: int) -> None:
    """Puts the images of all segments into ``folder``, numbered through, as further names of the same files."""
    folder.mkdir()
    for index in range(check_complete(workspace, segment_frames, frames)):
        files = sorted(workspace.segment(index).iterdir())
        expected = min(segment_frames, frames - index * segment_frames)
        if len(files) != expected:
            path = workspace.segment(index)
            raise ValueError(f"{path} holds {len(files)} images instead of {expected}; delete it and give --resume")
        for number, file in enumerate(files, index * segment_frames):
            name = folder / f"frame_{number:06d}{file.suffix}"
            try:
                os.link(file, name)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, name)
