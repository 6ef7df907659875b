"""A long render: does memory grow, does the rate fall? One hour of 640x360 at x1.5, unless told otherwise.

``python -m benchmarks.soak --output out/soak``, or ``--minutes 5 --stand-in`` for the pipeline without the network.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import av
import numpy as np
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

from stif_rt.runtime import Runtime
from stif_rt.video.colour import Picture
from stif_rt.video.options import Progress
from stif_rt.video.render import NetworkRenderer
from stif_rt.video.run import render_video

HEIGHT, WIDTH, RATE = 360, 640, 24
SAMPLES = 60
"""Points of the curves."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def write_clip(path: Path, frames: int) -> None:
    """A picture that drifts, with a new one every ten seconds."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(frames):
            if number % (10 * RATE) == 0:
                coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8 + 64, 3), dtype=np.uint8)
                scene = coarse.repeat(8, 0).repeat(8, 1)
            left = 2 * (number % (10 * RATE))
            image = np.ascontiguousarray(scene[:, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


class StandIn(NetworkRenderer):
    """Bilinear enlargement of the blended frames in place of the network."""

    def _rendered(self, before: Picture, after: Picture, times: list[float]) -> Iterator[Picture]:
        for t in times:
            blend = before.rgb.lerp(after.rgb, t)[None]
            yield Picture(F.interpolate(blend, self.layout.picture, mode="bilinear")[0])


def resident_memory() -> int:
    """Bytes of this process that are in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the largest so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sampled(every: int, points: list[dict[str, float]]) -> Callable[[Progress], None]:
    """A progress callback that takes a point of the curves every so many frames."""
    last = time.perf_counter()

    def sample(progress: Progress) -> None:
        nonlocal last
        if progress.frames % every == 0:
            now = time.perf_counter()
            points.append({"frames": progress.frames, "rate": every / (now - last), "bytes": resident_memory()})
            last = now

    return sample


@app.command()
def soak(
    output: Annotated[Path, typer.Option(help="Folder for the clips and soak.json.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="Length of the clip.")] = 60,
    scale: Annotated[float, typer.Option(help="Output pixels per input pixel.")] = 1.5,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Enlarge bilinearly, to load the pipeline alone.")
    ] = False,
) -> None:
    """Renders a long clip, and prints memory and rate over time."""
    output.mkdir(parents=True, exist_ok=True)
    frames = round(minutes * 60 * RATE)
    source = output / f"clip-{frames}.mp4"
    if not source.exists():
        write_clip(source, frames)
    points: list[dict[str, float]] = []
    progress = sampled(max(1, frames // SAMPLES), points)
    renderer = StandIn if stand_in else NetworkRenderer
    with patch("stif_rt.video.run.NetworkRenderer", renderer):
        done = render_video(
            source, output / "out.mp4", scale=scale, runtime=Runtime.load(), overwrite=True, progress=progress
        )
    if done.frames != frames or done.rate != Fraction(RATE):
        raise RuntimeError(f"{done.frames} frames at {done.rate}/s instead of {frames} at {RATE}/s")
    (output / "soak.json").write_text(json.dumps(points, indent=1))
    table = Table("frames", "frames/s", "MiB", title=f"{frames} frames in {done.seconds:.0f} s", title_justify="left")
    for point in points[:: max(1, len(points) // 10)]:
        table.add_row(f"{point['frames']:.0f}", f"{point['rate']:.1f}", f"{point['bytes'] / 2**20:.0f}")
    Console().print(table)
    Console().print("Frames done so far, frames a second lately, memory of the process.")


if __name__ == "__main__":
    app()
