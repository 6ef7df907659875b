"""The stages of a render: input pairs, the network's pictures, the output's frames; decoding and network in threads."""

from collections.abc import Generator, Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.runtime import Runtime
from stif_rt.video.layout import Layout
from stif_rt.video.overlap import Prefetch
from stif_rt.video.plan import Pair
from stif_rt.video.reader import Image

PAIRS_AHEAD = 2
"""Input pairs that are decoded before the network needs them."""
PICTURES_AHEAD = 2
"""Output pictures that wait for the encoder."""
HOST_BUFFERS = PICTURES_AHEAD + 3
"""Pinned pictures: besides those that wait, one each that is copied, handed over, and encoded."""


class PairRenderer(Protocol):
    """Renders the pictures between two input frames."""

    def __call__(self, before: Image, after: Image, times: list[float]) -> Iterator[Tensor]:
        """One picture for each time in [0, 1], uint8 [H, W, 3]; the same object again where a time repeats."""
        ...


class NetworkRenderer:
    """Renders pairs by a runtime, as a layout asks.

    Args:
        runtime: makes the pictures.
        layout: size, part and bars of the output.
        keep_frames: where the layout does not change an input frame, show that frame itself at its own time.
    """

    def __init__(self, runtime: Runtime, layout: Layout, keep_frames: bool = True) -> None:
        self.runtime = runtime
        self.layout = layout
        self.keep_frames = keep_frames

    def __call__(self, before: Image, after: Image, times: list[float]) -> Iterator[Tensor]:
        encoded = False
        picture: Tensor | None = None
        shown: float | None = None
        for t in times:
            if picture is None or t != shown:
                kept = self._kept(before, after, t)
                if kept is None and not encoded:
                    self.runtime.encode(before, after)
                    encoded = True
                picture, shown = self._framed(self._rendered(t) if kept is None else kept), t
            yield picture

    def _kept(self, before: Image, after: Image, t: float) -> Tensor | None:
        """The input frame of that time, where the output shows it as it is."""
        if not self.keep_frames or t not in (0.0, 1.0) or before.shape[:2] != self.layout.picture:
            return None
        y, x, h, w = self.layout.region
        return torch.from_numpy((before if t == 0 else after)[y : y + h, x : x + w])

    def _rendered(self, t: float) -> Tensor:
        size, region = self.layout.picture, self.layout.region
        whole = region == (0, 0, *size)
        return self.runtime.render(t, size=size, region=None if whole else region, output="uint8")

    def _framed(self, picture: Tensor) -> Tensor:
        """The picture in its frame, with black around it."""
        if tuple(picture.shape[:2]) == self.layout.frame:
            return picture
        frame = torch.zeros(*self.layout.frame, 3, dtype=picture.dtype, device=picture.device)
        (y, x), (h, w) = self.layout.offset, picture.shape[:2]
        frame[y : y + h, x : x + w] = picture
        return frame


def select(pairs: Iterable[Pair], first: int, last: int | None) -> Iterator[Pair]:
    """The pairs of output frames ``first`` to ``last`` (excluded; None for the end), with those times alone."""
    number = 0
    for pair in pairs:
        start, number = number, number + len(pair.times)
        times = pair.times[max(0, first - start) : None if last is None else max(0, last - start)]
        if times:
            yield pair._replace(times=times)
        if last is not None and number >= last:
            return


def pictures(pairs: Iterable[Pair], render_pair: PairRenderer) -> Generator[NDArray[np.uint8], None, None]:
    """The output's frames; each stage works in a thread of its own, a few items ahead of the next one."""
    with Prefetch(pairs, PAIRS_AHEAD) as decoded:
        rendered = (image for pair in decoded for image in render_pair(pair.before.image, pair.after.image, pair.times))
        with Prefetch(to_host(rendered), PICTURES_AHEAD) as images:
            yield from images


def to_host(images: Iterable[Tensor]) -> Iterator[NDArray[np.uint8]]:
    """The pictures as arrays; one from a GPU is overwritten ``HOST_BUFFERS`` pictures later.

    From a GPU they are copied to pinned memory on a stream of their own, while the next picture is made.
    """
    copies: list[Tensor] = []  # used in turn
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    stream: torch.cuda.Stream | None = None
    for number, image in enumerate(images):
        if image.device.type != "cuda":
            yield image.numpy()
            continue
        if stream is None:
            stream = torch.cuda.Stream(image.device)
            copies = [torch.empty(image.shape, dtype=image.dtype, pin_memory=True) for _ in range(HOST_BUFFERS)]
        copy = copies[number % HOST_BUFFERS]
        stream.wait_stream(torch.cuda.current_stream(image.device))
        with torch.cuda.stream(stream):
            copy.copy_(image, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        image.record_stream(stream)  # its memory is not given to another before the copy ends
        if waiting is not None:
            yield _finished(*waiting)
        waiting = copy, done
    if waiting is not None:
        yield _finished(*waiting)


def _finished(copy: Tensor, done: torch.cuda.Event) -> NDArray[np.uint8]:
    done.synchronize()
    return copy.numpy()
