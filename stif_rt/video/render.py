"""The pipeline of ``stif-rt render``: read, plan, render, write, with a few frames in memory at a time."""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.runtime import Runtime
from stif_rt.video.plan import plan
from stif_rt.video.reader import Reader
from stif_rt.video.writer import Writer


def render_frames(
    runtime: Runtime, reader: Reader, writer: Writer, size: tuple[int, int], rate: Fraction, advance: Callable[[], None]
) -> int:
    """Renders all of ``reader`` at ``size`` (H, W) and ``rate`` into ``writer``; calls ``advance`` after each frame.

    Returns the number of frames written.
    """
    written = 0
    for image in to_host(_pictures(runtime, reader, size, rate)):
        writer.write(image)
        advance()
        written += 1
    return written


def _pictures(runtime: Runtime, reader: Reader, size: tuple[int, int], rate: Fraction) -> Iterator[Tensor]:
    """One uint8 [H, W, 3] for each frame of the output; the same one again where the time is the same."""
    for pair in plan(reader, rate):
        if pair.times:
            runtime.encode(pair.before.image, pair.after.image)
        shown = image = None
        for t in pair.times:
            if image is None or t != shown:
                shown, image = t, runtime.render(t, size=size, output="uint8")
            yield image


def to_host(images: Iterable[Tensor]) -> Iterator[NDArray[np.uint8]]:
    """The pictures as arrays, each valid until the next one is asked for.

    From a GPU they are copied to pinned memory on a stream of their own, while the next picture is made.
    """
    copies: list[Tensor] = []  # two, used in turn
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    stream: torch.cuda.Stream | None = None
    for number, image in enumerate(images):
        if image.device.type != "cuda":
            yield image.numpy()
            continue
        if stream is None:
            stream = torch.cuda.Stream(image.device)
            copies = [torch.empty(image.shape, dtype=image.dtype, pin_memory=True) for _ in range(2)]
        copy = copies[number % 2]
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
