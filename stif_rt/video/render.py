"""The pipeline of ``stif-rt render``: read, plan, render, write, with a few frames in memory at a time."""

from collections.abc import Callable
from fractions import Fraction

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
    for pair in plan(reader, rate):
        if pair.times:
            runtime.encode(pair.before.image, pair.after.image)
        shown = image = None
        for t in pair.times:
            if image is None or t != shown:
                shown, image = t, runtime.render(t, size=size, output="uint8").cpu().numpy()
            writer.write(image)
            advance()
            written += 1
    return written
