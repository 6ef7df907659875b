"""The stages of a render: input pairs, the network's pictures, the output's frames; decoding and network in threads."""

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from stif_rt.runtime import Runtime
from stif_rt.runtime.pair import Pair as EncodedPair
from stif_rt.video.colour import Components, Picture, flatten
from stif_rt.video.layout import Layout
from stif_rt.video.overlap import Prefetch
from stif_rt.video.plan import Pair

PAIRS_AHEAD = 2
"""Input pairs that are decoded before the network needs them."""
PICTURES_AHEAD = 2
"""Output pictures that wait for the encoder."""
TIMES_AT_ONCE = 8
"""Pictures between two frames that are rendered in one call, at most ..."""
BYTES_AT_ONCE = 256 << 20
"""... and the memory for them."""
HOST_BUFFERS = PICTURES_AHEAD + 3
"""Pinned frames: besides those that wait, one each that is copied, handed over, and encoded."""


class PairRenderer(Protocol):
    """Renders the pictures between two input frames."""

    def __call__(self, before: Picture, after: Picture, times: list[float]) -> Iterator[Components]:
        """What is to be stored of one picture for each time in [0, 1]; the same object again where a time repeats."""
        ...


class NetworkRenderer:
    """Renders pairs by a runtime, as a layout asks.

    Args:
        runtime: makes the pictures.
        layout: size, part and bars of the output.
        prepare: turns a picture into the values that its file stores, on the device where it is.
        keep_frames: where the layout does not change an input frame, show that frame itself at its own time.
    """

    def __init__(
        self, runtime: Runtime, layout: Layout, prepare: Callable[[Picture], Components], keep_frames: bool = True
    ) -> None:
        self.runtime = runtime
        self.layout = layout
        self.prepare = prepare
        self.keep_frames = keep_frames

    def __call__(self, before: Picture, after: Picture, times: list[float]) -> Iterator[Components]:
        kept = {t: picture for t in times if (picture := self._kept(before, after, t)) is not None}
        rendered = self._rendered(before, after, [t for t in dict.fromkeys(times) if t not in kept])
        prepared: Components | None = None
        shown: float | None = None
        for t in times:
            if prepared is None or t != shown:
                rgb, alpha = kept[t] if t in kept else next(rendered)
                picture = Picture(self._framed(rgb), None if alpha is None else self._framed(alpha))
                prepared, shown = self.prepare(picture), t
            yield prepared

    def _kept(self, before: Picture, after: Picture, t: float) -> Picture | None:
        """The input frame of that time, where the output shows it as it is."""
        if not self.keep_frames or t not in (0.0, 1.0) or before.rgb.shape[1:] != self.layout.picture:
            return None
        y, x, h, w = self.layout.region
        rgb, alpha = before if t == 0 else after
        return Picture(rgb[:, y : y + h, x : x + w], None if alpha is None else alpha[y : y + h, x : x + w])

    def _encode(self, before: Picture, after: Picture) -> tuple[EncodedPair, EncodedPair | None]:
        """Transparent pictures are rendered on black, and their alpha as a grey picture of its own."""
        pair = self.runtime.encode(flatten(before), flatten(after))
        if before.alpha is None and after.alpha is None:
            return pair, None
        opaque = torch.ones_like(before.rgb[0])
        alphas = ((opaque if p.alpha is None else p.alpha).expand(3, -1, -1) for p in (before, after))
        return pair, self.runtime.encode(*alphas)

    def _rendered(self, before: Picture, after: Picture, times: list[float]) -> Iterator[Picture]:
        """The pictures of those times, several in one call."""
        if not times:
            return
        pair, alpha_pair = self._encode(before, after)
        grey = is_grey(before) and is_grey(after)  # the network may tint what has no colour
        size, region = self.layout.picture, self.layout.region
        part = None if region == (0, 0, *size) else region
        at_once = max(1, min(TIMES_AT_ONCE, BYTES_AT_ONCE // (region[2] * region[3] * 12)))
        for first in range(0, len(times), at_once):
            some = times[first : first + at_once]
            pictures = pair.render(some, size=size, region=part)
            if grey:
                pictures = pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1)
            if alpha_pair is None:
                yield from map(Picture, pictures)
                continue
            for rgb, alpha in zip(pictures, alpha_pair.render(some, size=size, region=part).mean(1), strict=True):
                yield Picture((rgb / alpha.clamp(min=1e-6)).clamp_(0, 1), alpha)

    def _framed(self, plane: Tensor) -> Tensor:
        """[..., h, w] in its frame, with black (and opaque) around it."""
        h, w = plane.shape[-2:]
        if (h, w) == self.layout.frame:
            return plane
        frame = plane.new_full((*plane.shape[:-2], *self.layout.frame), float(plane.ndim == 2))
        y, x = self.layout.offset
        frame[..., y : y + h, x : x + w] = plane
        return frame


def is_grey(picture: Picture) -> bool:
    """Whether there is no colour anywhere."""
    red, green, blue = picture.rgb
    return torch.equal(red, green) and torch.equal(green, blue)


def pictures(pairs: Iterable[Pair], render_pair: PairRenderer) -> Generator[Components, None, None]:
    """The output's frames; each stage works in a thread of its own, a few items ahead of the next one."""
    with Prefetch(pairs, PAIRS_AHEAD) as decoded:
        rendered = (
            prepared
            for pair in decoded
            for prepared in render_pair(pair.before.picture, pair.after.picture, pair.times)
        )
        with Prefetch(to_host(rendered), PICTURES_AHEAD) as frames:
            yield from frames


def to_host(frames: Iterable[Components]) -> Iterator[Components]:
    """The frames in the host's memory; one from a GPU is overwritten ``HOST_BUFFERS`` frames later.

    From a GPU they are copied to pinned memory on a stream of their own, while the next one is made.
    """
    buffers: list[Components] = []  # used in turn
    waiting: tuple[Components, torch.cuda.Event] | None = None
    stream: torch.cuda.Stream | None = None
    for number, frame in enumerate(frames):
        device = next(iter(frame.values())).device
        if device.type != "cuda":
            yield frame
            continue
        if stream is None:
            stream = torch.cuda.Stream(device)
            buffers = [
                {name: torch.empty(plane.shape, dtype=plane.dtype, pin_memory=True) for name, plane in frame.items()}
                for _ in range(HOST_BUFFERS)
            ]
        buffer = buffers[number % HOST_BUFFERS]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for name, plane in frame.items():
                buffer[name].copy_(plane, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        for plane in frame.values():
            plane.record_stream(stream)  # its memory is not given to another before the copy ends
        if waiting is not None:
            yield _finished(*waiting)
        waiting = buffer, done
    if waiting is not None:
        yield _finished(*waiting)


def _finished(frame: Components, done: torch.cuda.Event) -> Components:
    done.synchronize()
    return frame
