"""Sound decoded, stretched and encoded anew, in step with the pictures."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.container
import av.filter
from av.audio.resampler import AudioResampler

BITS_PER_CHANNEL = 96_000
"""A second; what lossy encoders are asked for."""


def add_encoder(container: av.container.OutputContainer, codec: str, source: av.AudioStream) -> av.AudioStream:
    """Adds a stream that ``codec`` encodes, with the sampling rate and channels of ``source`` where it takes them.

    Raises:
        ValueError, av.FFmpegError: if the container or the encoder refuses.
    """
    rate = source.codec_context.sample_rate or 48000
    rates = av.Codec(codec, "w").audio_rates
    if rates and rate not in rates:
        rate = min((r for r in rates if r >= rate), default=max(rates))
    layout = source.codec_context.layout.name
    try:
        with av.open(os.devnull, "w", format="null") as nowhere:
            nowhere.add_stream(codec, rate=rate, layout=layout).codec_context.open()
    except (av.FFmpegError, ValueError):
        layout = "stereo"  # any other arrangement is brought to one that all encoders know
    stream = container.add_stream(codec, rate=rate, layout=layout)
    assert isinstance(stream, av.AudioStream)
    stream.codec_context.bit_rate = BITS_PER_CHANNEL * len(stream.codec_context.layout.channels)
    stream.codec_context.open()
    return stream


class SoundEncoder:
    """Encodes the packets of a stream of sound anew.

    Gaps in the input become silence, so that it stays in step with the pictures.

    Args:
        source: the input's stream.
        stream: where it goes, made by ``add_encoder``.
        origin: what becomes time zero, seconds on the input's clock.
        length: seconds of the input after ``origin`` to be kept; None for all.
        slowdown: how many times as long as the input the output plays; the pitch stays.
    """

    def __init__(
        self,
        source: av.AudioStream,
        stream: av.AudioStream,
        origin: Fraction,
        length: Fraction | None,
        slowdown: Fraction,
    ) -> None:
        self.source, self.stream = source, stream
        self.origin, self.length, self.slowdown = origin, length, slowdown
        self.failures = 0
        self._graph: av.filter.Graph | None = None
        self._format: tuple[str, str, int] | None = None
        self._end = origin

    def feed(self, packet: "av.Packet[Any]") -> "Iterator[av.Packet[Any]]":
        """Takes a packet of the input and gives those of the output that are ready. Damaged ones are skipped."""
        try:
            frames = self.source.codec_context.decode(packet)
        except av.FFmpegError:
            self.failures += 1
            return
        for frame in frames:
            start = self._end if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
            self._end = start + Fraction(frame.samples, frame.sample_rate)
            if self.length is not None and start - self.origin >= self.length:
                return
            if self._graph is None:
                self._format = frame.format.name, frame.layout.name, frame.sample_rate
                self._graph = self._make_graph(*self._format)
            for part in self._converted(frame):
                part.time_base = Fraction(1, part.sample_rate)
                part.pts = round((start - self.origin) * part.sample_rate)
                start += Fraction(part.samples, part.sample_rate)
                self._graph.push(part)
            yield from self._filtered(self._graph)

    def finish(self) -> "Iterator[av.Packet[Any]]":
        """Gives the rest."""
        if self._graph is not None:
            with contextlib.suppress(EOFError):  # it has had all that it wants
                self._graph.push(None)
            yield from self._filtered(self._graph)
            yield from self.stream.encode(None)

    def _converted(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """The frame in the format of the first one, should it change midway."""
        assert self._format is not None
        if (frame.format.name, frame.layout.name, frame.sample_rate) == self._format:
            return [frame]
        frame.pts = None
        resampler = AudioResampler(*self._format)
        return [*resampler.resample(frame), *resampler.resample(None)]

    def _make_graph(self, sample_format: str, layout: str, rate: int) -> av.filter.Graph:
        context = self.stream.codec_context
        filters: list[tuple[str, str]] = [
            ("atrim", "start=0" + ("" if self.length is None else f":end={float(self.length):.6f}")),
            ("aresample", "async=1:first_pts=0"),  # silence where there is none
        ]
        tempo = 1 / self.slowdown
        while tempo != 1:
            factor = min(max(tempo, Fraction(1, 2)), Fraction(2))  # the range in which one filter sounds well
            filters.append(("atempo", f"{float(factor):.9f}"))
            tempo /= factor
        layout_out, format_out = context.layout.name, context.format.name
        target = f"sample_rates={context.sample_rate}:channel_layouts={layout_out}:sample_fmts={format_out}"
        filters.append(("aformat", target))
        if context.frame_size > 1:
            filters.append(("asetnsamples", f"n={context.frame_size}:p=0"))
        graph = av.filter.Graph()
        source = graph.add_abuffer(
            sample_rate=rate, format=sample_format, layout=layout, time_base=Fraction(1, rate), name="in"
        )
        graph.link_nodes(source, *(graph.add(name, args) for name, args in filters), graph.add("abuffersink"))
        graph.configure()
        return graph

    def _filtered(self, graph: av.filter.Graph) -> "Iterator[av.Packet[Any]]":
        while True:
            try:
                frame = graph.pull()
            except (BlockingIOError, EOFError):  # it needs more, or has given all
                return
            assert isinstance(frame, av.AudioFrame)
            yield from self.stream.encode(frame)
