"""What FFmpeg says of a decoded frame and PyAV does not hand out."""

import re
import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import cast

import av
import av.logging
from av.buffer import Buffer

_showinfo_lock = threading.Lock()


def side_data(frame: av.VideoFrame, kind: str) -> bytes | None:
    """The bytes of one kind of a frame's side data, by PyAV's name of it; None where it has none."""
    while True:
        try:
            data = cast("Mapping[str, Buffer]", frame.side_data).get(kind)
        except ValueError as error:  # FFmpeg has more kinds, such as EXIF; PyAV then lists none at all
            unknown = re.match(r"\d+", str(error))
            if unknown is None:
                raise
            frame = _filtered(frame, "sidedata", f"mode=delete:type={unknown[0]}")
        else:
            return None if data is None else bytes(data)


def chroma_siting(frame: av.VideoFrame) -> str | None:
    """Where the frame is tagged to have its chroma samples, such as "left"; None where it does not say.

    FFmpeg's filter ``showinfo`` prints it.
    """
    with _showinfo_lock:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        try:
            with av.logging.Capture() as messages:
                _filtered(frame, "showinfo", "checksum=0")
        finally:
            av.logging.set_level(level)
    match = re.search(r"\bcl:(\w+)", " ".join(message for _, _, message in messages))
    return None if match is None or match[1] == "unspecified" else match[1]


def _filtered(frame: av.VideoFrame, name: str, arguments: str) -> av.VideoFrame:
    """A frame after one of FFmpeg's filters."""
    graph, time_base = av.filter.Graph(), frame.time_base or Fraction(1, 25)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    graph.link_nodes(source, graph.add(name, arguments), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.vpull()
