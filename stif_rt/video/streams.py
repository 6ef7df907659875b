"""What a file holds besides its pictures, carried over: sound, subtitles, attachments, chapters, metadata.

``plan_streams`` finds out before anything is rendered what the output's container can hold, by writing all of it into
nothing; ``carry_streams`` then writes it. Nothing about sound can end a run: what cannot be stored is encoded anew,
what cannot be read is left out, and both are said.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import av
import av.container
from av.stream import AttachmentStream, Disposition

from stif_rt.video.notices import Notices
from stif_rt.video.reader import VideoReader, demuxed, open_input
from stif_rt.video.sound import SoundEncoder, add_encoder
from stif_rt.video.timing import Continuity

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Muxers by the output's suffix."""
ENCODERS = {".webm": "libopus"}
"""For sound that cannot be stored as it is; AAC elsewhere."""
LEAD = Fraction(1, 2)
"""Seconds by which sound runs ahead of the pictures in the file, so that players need not seek."""
NOTICED_LOSS = Fraction(1, 10)
"""Seconds of sound before the first picture whose loss is worth a word."""
OWN_METADATA = {
    "alpha_mode",
    "compatible_brands",
    "duration",
    "encoder",
    "handler_name",
    "major_brand",
    "minor_version",
    "vendor_id",
}
"""Entries that describe the file they are in, or how its pictures are stored."""
REFUSALS = (av.error.InvalidDataError, av.error.ArgumentError)
"""What a muxer raises for a packet it cannot store; anything else, such as a full disk, is not about the packet."""


@dataclass(frozen=True)
class StreamOptions:
    """Options for the sound, and the part of the input that is rendered.

    audio: keep it. audio_codec: encode it by this encoder; None copies what the container can hold.
    start, end: of the part, seconds after the first picture; None for the end of the input.
    slowdown: how many times as long as the input the output plays. slow_audio: stretch its sound or drop it.
    """

    audio: bool = True
    audio_codec: str | None = None
    start: Fraction = Fraction(0)
    end: Fraction | None = None
    slowdown: Fraction = Fraction(1)
    slow_audio: Literal["stretch", "drop"] = "stretch"

    @property
    def length(self) -> Fraction | None:
        """Seconds of the part."""
        return None if self.end is None else self.end - self.start


@dataclass
class Track:
    """A stream of the input that is carried over.

    index: its number. encoder: None for one that is copied. refused: numbers of packets that the container refuses.
    """

    index: int
    encoder: str | None = None
    refused: set[int] = field(default_factory=set)


class _Copier:
    """Moves the packets of a stream onto the output's clock, in order."""

    def __init__(
        self, source: av.stream.Stream, copy: av.stream.Stream, origin: Fraction, options: StreamOptions, track: Track
    ) -> None:
        self.copy, self.origin, self.options, self.track = copy, origin, options, track
        self.failures = 0
        self.number = -1
        self._last: int | None = None
        self._filter = None
        if source.type == "audio" and source.codec_context.name.startswith("aac"):
            self._filter = av.bitstream.BitStreamFilterContext("aac_adtstoasc", source)

    def feed(self, packet: "av.Packet[Any]") -> "Iterator[av.Packet[Any]]":
        """Takes a packet of the input and gives what is to be written of it."""
        pts = packet.dts if packet.pts is None else packet.pts
        if not packet.size:
            return
        self.number += 1
        if self.number in self.track.refused:
            return
        start = Fraction(0) if pts is None else pts * packet.time_base - self.origin
        duration = (packet.duration or 0) * packet.time_base
        length = self.options.length
        if start + 2 * duration < 0 or (length is not None and start >= length):  # decoders need one packet before
            return
        scale = self.options.slowdown
        for part in self._filtered(packet):
            part.stream, part.time_base = self.copy, self.copy.time_base or Fraction(1, 1000)
            part.duration = round(duration * scale / part.time_base)
            time = round(start * scale / part.time_base)
            part.dts = time if self._last is None else max(time, self._last + 1)
            part.pts, self._last = part.dts, part.dts
            yield part

    def _filtered(self, packet: "av.Packet[Any]") -> "list[av.Packet[Any]]":
        if self._filter is None:
            return [packet]
        try:
            return self._filter.filter(packet)
        except av.FFmpegError:  # a broken header
            self.failures += 1
            return []

    def finish(self) -> "Iterator[av.Packet[Any]]":
        return iter(())


class _Nothing(io.RawIOBase):
    """A file that forgets what is written."""

    def __init__(self) -> None:
        self._position = self._size = 0

    def write(self, data: Any) -> int:
        self._position += len(data)
        self._size = max(self._size, self._position)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


def plan_streams(reader: VideoReader, suffix: str, options: StreamOptions, notices: Notices) -> list[Track]:
    """Decides what becomes of each stream of the input.

    Args:
        reader: the input.
        suffix: of the output, one of ``FORMATS``.
        options: what is asked for.
        notices: gets what cannot be kept.

    Raises:
        ValueError: if ``options.audio_codec`` does not encode sound for that container.
    """
    encoder = options.audio_codec or ENCODERS.get(suffix, "aac")
    with open_input(reader.path, Notices()) as file:
        if options.audio_codec is not None and file.streams.audio and options.audio:
            _check_encoder(encoder, suffix)
        streams = [stream for stream in file.streams if stream.index != reader.stream_index]
        audio = [stream for stream in streams if stream.type == "audio" and options.audio]
        if options.slowdown != 1 and options.slow_audio == "drop":
            audio = []
        copied = [stream for stream in streams if stream.type == "subtitle" or _is_cover(stream)]
        encoded = audio if options.slowdown != 1 or options.audio_codec is not None else []
        copied += [stream for stream in audio if stream not in encoded]
        tracks = _try_to_copy(reader, file, copied, suffix, options, notices)
        kept = {track.index for track in tracks}
        for stream in audio:
            if stream.index in kept:
                continue
            if stream.codec_context is None:
                notices.add(f"{_name(stream)} is of an unknown kind and is left out")
            elif not _can_encode(stream, encoder, suffix):
                notices.add(f"{_name(stream)} cannot be stored in {suffix} and is left out")
            else:
                tracks.append(Track(stream.index, encoder))
                if stream not in encoded:
                    notices.add(f"{_name(stream)} cannot be stored in {suffix} as it is; it is encoded as {encoder}")
        _say_what_is_lost(streams, kept, suffix, notices)
    return sorted(tracks, key=lambda track: track.index)


def _try_to_copy(
    reader: VideoReader,
    file: av.container.InputContainer,
    streams: list[av.stream.Stream],
    suffix: str,
    options: StreamOptions,
    notices: Notices,
) -> list[Track]:
    """Those streams that the output's container takes, found by writing each into a file of its own."""
    origin = reader.origin + options.start
    trials: dict[int, tuple[av.container.OutputContainer, _Copier]] = {}
    for stream in streams:
        if suffix in (".mp4", ".m4v") and stream.codec_context is not None and _is_pcm(stream):
            continue  # the format has a place for it, players do not
        with contextlib.suppress(av.FFmpegError, ValueError):
            container = av.open(_Nothing(), "w", format=FORMATS[suffix])
            copy = _add_copy(container, stream)
            container.start_encoding()
            trials[stream.index] = container, _Copier(stream, copy, origin, options, Track(stream.index))
    continuity = Continuity(file, Notices())
    early: dict[int, Fraction] = {}
    for packet in demuxed(file):
        continuity.correct(packet)
        if packet.stream.type == "audio" and packet.pts is not None and options.audio and not options.start:
            length = (packet.duration or 0) * packet.time_base
            if packet.pts * packet.time_base + length <= origin:
                early[packet.stream_index] = early.get(packet.stream_index, Fraction(0)) + length
        if packet.stream_index not in trials:
            continue
        container, copier = trials[packet.stream_index]
        try:
            container.mux(list(copier.feed(packet)))
        except REFUSALS:
            copier.track.refused.add(copier.number)
    lost = max(early.values(), default=Fraction(0))
    if lost > NOTICED_LOSS:
        notices.add(f"{float(lost):.2f} s of sound before the first picture are left out")
    tracks = []
    for container, copier in trials.values():
        with contextlib.suppress(av.FFmpegError):
            container.close()
            if 2 * len(copier.track.refused) <= copier.number + 1:
                tracks.append(copier.track)
    return tracks


def _add_copy(container: av.container.OutputContainer, stream: av.stream.Stream) -> av.stream.Stream:
    """Adds a stream like that one, with its language and what it is for."""
    copy = container.add_stream_from_template(stream, opaque=True)
    _describe(copy, stream)
    return copy


def _describe(copy: av.stream.Stream, stream: av.stream.Stream) -> None:
    copy.metadata.update(_lasting(stream.metadata))
    copy.disposition = stream.disposition


def _lasting(metadata: dict[str, str]) -> dict[str, str]:
    """Without what describes the file rather than the work."""
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in OWN_METADATA and not key.upper().startswith(("_STATISTICS", "NUMBER_OF_", "BPS"))
    }


def _is_cover(stream: av.stream.Stream) -> bool:
    return stream.type == "video" and bool(stream.disposition & Disposition.attached_pic)


def _is_pcm(stream: av.stream.Stream) -> bool:
    return stream.codec_context.name.startswith("pcm")


def _check_encoder(codec: str, suffix: str) -> None:
    try:
        kind = av.Codec(codec, "w").type
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"--audio-codec {codec}: this build of FFmpeg has no such encoder") from error
    if kind != "audio":
        raise ValueError(f"--audio-codec {codec} does not encode sound; aac, libopus and flac do")
    try:
        with av.open(_Nothing(), "w", format=FORMATS[suffix]) as container:
            container.add_stream(codec, rate=48000)
            container.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"--audio-codec {codec}: {suffix} cannot hold it; try aac, libopus or flac") from error


def _can_encode(stream: av.stream.Stream, encoder: str, suffix: str) -> bool:
    try:
        with av.open(_Nothing(), "w", format=FORMATS[suffix]) as container:
            assert isinstance(stream, av.AudioStream)
            add_encoder(container, encoder, stream)
            container.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _name(stream: av.stream.Stream) -> str:
    """For people."""
    same = [other for other in stream.container.streams if other.type == stream.type]
    kind = {"audio": "the sound", "subtitle": "the subtitles"}.get(stream.type, f"the {stream.type} stream")
    number = f" {same.index(stream) + 1}" if len(same) > 1 else ""
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown codec"
    language = stream.language if stream.language != "und" else None
    return f"{kind}{number} ({', '.join(filter(None, (language, codec)))})"


def _say_what_is_lost(streams: list[av.stream.Stream], kept: set[int], suffix: str, notices: Notices) -> None:
    advice = "" if suffix == ".mkv" else "; .mkv holds them"
    attachments = [stream.metadata.get("filename", "unnamed") for stream in streams if stream.type == "attachment"]
    if attachments and suffix != ".mkv":
        notices.add(f"attachments ({', '.join(attachments)}) cannot be stored in {suffix} and are left out{advice}")
    for stream in streams:
        if stream.index in kept or stream.type in ("audio", "attachment"):
            continue
        if stream.type == "subtitle":
            notices.add(f"{_name(stream)} cannot be stored in {suffix} and are left out{advice}")
        elif stream.type == "video":
            what = "the cover picture" if _is_cover(stream) else "another video stream"
            notices.add(f"{what} is left out")
        elif not stream.container.chapters():  # MP4 keeps the names of chapters in a stream
            notices.add(f"{_name(stream)} is left out")


@contextlib.contextmanager
def carry_streams(
    container: av.container.OutputContainer,
    reader: VideoReader,
    tracks: list[Track],
    options: StreamOptions,
    notices: Notices,
) -> Iterator[Callable[[Fraction | None], None]]:
    """Adds what ``plan_streams`` has decided on, with chapters, attachments and metadata, to an output.

    Args:
        container: the output, with its video stream, not begun.
        reader: the input.
        tracks: what ``plan_streams`` returned for it and the container's format.
        options: the same as there.
        notices: gets what could not be read or stored after all.

    Yields:
        A function that writes all of it up to a time of the output in seconds, and the rest for None.
    """
    origin = reader.origin + options.start
    with open_input(reader.path, Notices()) as file:
        workers: dict[int, _Copier | SoundEncoder] = {}
        for track in tracks:
            stream = file.streams[track.index]
            if track.encoder is None:
                workers[track.index] = _Copier(stream, _add_copy(container, stream), origin, options, track)
            else:
                assert isinstance(stream, av.AudioStream)
                encoded = add_encoder(container, track.encoder, stream)
                _describe(encoded, stream)
                workers[track.index] = SoundEncoder(stream, encoded, origin, options.length, options.slowdown)
        _add_descriptions(container, file, reader.stream_index, origin, options)
        packets = _output_packets(file, workers)
        waiting: av.Packet[Any] | None = None
        begun = False

        def mux(until: Fraction | None) -> None:
            nonlocal waiting, begun
            if not begun:  # the streams' time bases are settled by then
                container.start_encoding()
                waiting, begun = next(packets, None), True
            while waiting is not None:
                time = (waiting.dts or 0) * waiting.time_base
                if until is not None and time > until + LEAD:
                    return
                try:
                    container.mux(waiting)
                except REFUSALS:
                    notices.add("a part of the sound cannot be stored; it is left out", f"{float(time):.2f} s")
                waiting = next(packets, None)

        yield mux
        failures = sum(worker.failures for worker in workers.values())
        if failures:
            notices.add(f"damaged sound is left out (packets: {failures})")


def _output_packets(
    file: av.container.InputContainer, workers: dict[int, _Copier | SoundEncoder]
) -> "Iterator[av.Packet[Any]]":
    continuity = Continuity(file, Notices())
    for packet in demuxed(file):
        continuity.correct(packet)
        worker = workers.get(packet.stream_index)
        if worker is not None:
            yield from worker.feed(packet)
    for worker in workers.values():
        yield from worker.finish()


def _add_descriptions(
    container: av.container.OutputContainer,
    file: av.container.InputContainer,
    video_index: int,
    origin: Fraction,
    options: StreamOptions,
) -> None:
    """Metadata, attachments, and the chapters that lie in the part that is rendered."""
    container.metadata.update(_lasting(file.metadata))
    if container.streams.video:
        container.streams.video[0].metadata.update(_lasting(file.streams[video_index].metadata))
        container.streams.video[0].disposition = Disposition.default
    if container.format.name == "matroska":
        for stream in file.streams:
            if isinstance(stream, AttachmentStream):
                name = stream.metadata.get("filename", "unnamed")
                container.add_attachment(name, stream.mimetype or "application/octet-stream", stream.data)
    chapters = []
    for chapter in file.chapters():
        base = chapter["time_base"] or Fraction(1)
        start, end = (max(chapter[side] * base - origin, Fraction(0)) for side in ("start", "end"))
        if options.length is not None:
            end = min(end, options.length)
        if start < end:
            first, last = (round(time * options.slowdown * 1000) for time in (start, end))
            chapter["start"], chapter["end"], chapter["time_base"] = first, last, Fraction(1, 1000)
            chapters.append(chapter)
    container.set_chapters(chapters)
