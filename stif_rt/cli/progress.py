"""What a render says while it runs: a bar for people, lines for log files, JSON for programs. All on standard error."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from stif_rt.cli.terminal import console, progress_bar, state
from stif_rt.video.options import Progress

if TYPE_CHECKING:
    from stif_rt.video.estimate import Estimate
    from stif_rt.video.job import Job
    from stif_rt.video.notices import Notice
    from stif_rt.video.run import Rendered

Form = Literal["auto", "plain", "json"]
FORMS: tuple[Form, ...] = ("auto", "plain", "json")
LINE_EVERY = 10.0
"""Seconds between two lines of plain progress."""
JSON_EVERY = 0.5
"""Seconds between two JSON objects of progress."""


class Reporter:
    """Says what a render does, in the form that was asked for.

    Args:
        form: ``auto`` is a bar on a terminal, else ``plain``.
        quiet: only warnings and errors.
    """

    def __init__(self, form: Form, quiet: bool) -> None:
        if form not in FORMS:
            raise ValueError(f"--progress {form}: there are {', '.join(FORMS)}")
        self.json = form == "json"
        self.bar = form == "auto" and console.is_terminal
        self.quiet = quiet
        state["json"] = self.json

    def say(self, text: str, event: str, **values: Any) -> None:
        """A line for people, or an event with its values for programs."""
        if self.json:
            emit(event, **values)
        elif not self.quiet:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, notice: "Notice") -> None:
        if self.json:
            emit("warning", text=notice.text, places=notice.places)
        else:
            console.print(f"warning: {notice}", highlight=False, markup=False, soft_wrap=True)

    def error(self, text: str) -> None:
        """Shows the error of one render among several."""
        if self.json:
            emit("error", message=text)
        else:
            console.print(f"error: {text}", highlight=False, markup=False, soft_wrap=True)

    def start(self, job: "Job", where: str) -> None:
        reader, (H, W) = job.reader, job.layout.frame
        rate = float(job.rates.playing)
        slow = f", {float(job.rates.slowdown):g} times as long" if job.rates.slowdown != 1 else ""
        h, w = job.layout.region[2:]
        bars = f" (a picture of {w}x{h} with black bars)" if (h, w) != (H, W) else ""
        self.say(
            f"{reader.width}x{reader.height} at {float(reader.rate):g}/s -> {W}x{H}{bars} at {rate:g}/s{slow}, {where}",
            "start",
            input=str(job.input),
            output=str(job.output),
            width=W,
            height=H,
            fps=rate,
            total=job.expected,
        )

    def estimate(self, job: "Job", estimate: "Estimate | None") -> None:
        """What ``--dry-run`` tells."""
        codec = f"{job.encoding.codec}, {job.encoding.pixel_format}"
        if estimate is None:
            self.say(f"{job.output}: {codec}; the input does not say how long it is", "estimate", codec=codec)
            return
        from stif_rt.errors import format_bytes

        seconds, length = estimate.seconds or 0.0, estimate.frames / float(job.rates.playing)
        self.say(
            f"{job.output}: {estimate.frames} frames, {length:.2f} s long, {codec}, "
            f"about {format_bytes(estimate.bytes)} of disk space and {clock(seconds)} of time",
            "estimate",
            output=str(job.output),
            frames=estimate.frames,
            codec=job.encoding.codec,
            pixel_format=job.encoding.pixel_format,
            bytes=estimate.bytes,
            seconds=round(seconds, 1),
        )

    def finish(self, rendered: "Rendered") -> None:
        (H, W), rate, frames = rendered.size, float(rendered.rate), rendered.frames
        noun = "frame" if frames == 1 else "frames"
        self.say(
            f"wrote {frames} {noun} to {rendered.output}: {W}x{H} at {rate:g}/s, {frames / rate:.2f} s long, "
            f"in {clock(rendered.seconds)} ({frames / max(rendered.seconds, 1e-9):.2f} frames/s)",
            "finished",
            output=str(rendered.output),
            frames=frames,
            width=W,
            height=H,
            fps=rate,
            seconds=round(rendered.seconds, 3),
            warnings=len(rendered.warnings),
        )

    @contextmanager
    def progress(self) -> Iterator["Watch"]:
        """Shows how far a render is; to be told by calling what this gives."""
        watch = Watch(self)
        try:
            yield watch
        finally:
            watch.stop()


class Watch:
    """Takes the progress of one render. Made by ``Reporter.progress``."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._bar = progress_bar() if reporter.bar and not reporter.quiet else None
        self._task = None if self._bar is None else self._bar.add_task("rendering", total=None)
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.start()

    def __call__(self, progress: Progress) -> None:
        total = progress.total
        if total is not None and progress.frames > total:
            total = None  # the input is longer than it says of itself
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.frames, total=total, description=progress.stage)
            return
        now = time.monotonic()
        if self.reporter.quiet or now - self._last < (JSON_EVERY if self.reporter.json else LINE_EVERY):
            return
        self._last = now
        rate = (progress.frames - progress.resumed) / progress.seconds if progress.seconds else 0.0
        left = None if total is None or not rate else (total - progress.frames) / rate
        of = "" if total is None else f" of {total}"
        until = "" if left is None else f", {clock(left)} left"
        self.reporter.say(
            f"{progress.stage}: {progress.frames}{of} frames, {rate:.2f}/s{until}",
            "progress",
            stage=progress.stage,
            frames=progress.frames,
            total=total,
            rate=round(rate, 3),
            seconds_left=None if left is None else round(left, 1),
        )

    def stop(self, frames: int | None = None) -> None:
        """Ends the bar; with the number of frames that there were in the end."""
        if self._bar is not None and self._task is not None:
            if frames is not None:
                self._bar.update(self._task, completed=frames, total=frames, description="rendered")
            self._bar.stop()
            self._bar = None


def emit(event: str, **values: Any) -> None:
    """One JSON object on a line of standard error."""
    console.file.write(json.dumps({"event": event, **values}) + "\n")
    console.file.flush()


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
