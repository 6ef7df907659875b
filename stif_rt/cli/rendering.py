"""The work of ``stif-rt render`` and its relatives, and what they say of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stif_rt.cli.progress import Reporter
from stif_rt.cli.signals import stopped_by_signals
from stif_rt.dtypes import dtype_name
from stif_rt.video.options import Cancellation, Cancelled, RenderOptions

if TYPE_CHECKING:
    from stif_rt.runtime import Runtime
    from stif_rt.video.job import Job
    from stif_rt.video.run import Rendered

WITH_WARNINGS = 3
"""Exit status of a render that is complete, but had something to warn of."""


@dataclass
class Run:
    """One call of the command: perhaps several renders with one runtime.

    tasks: (input, output) of each. machine: arguments of ``Runtime.load``. jobs: processes that work on each render.
    """

    tasks: list[tuple[Path, Path]]
    options: RenderOptions
    weights: Path | None
    machine: dict[str, Any]
    overwrite: bool
    resume: bool
    jobs: int
    reporter: Reporter
    loaded: "tuple[Path | str, Runtime] | None" = None

    def all(self) -> int:
        """Renders everything; returns the exit status."""
        self._make_folder()
        failures = warnings = 0
        with stopped_by_signals(self._announce) as cancel:
            for source, target in self.tasks:
                if self._was_finished(target):
                    self.reporter.say(f"{target} is there already", "skipped", output=str(target))
                    continue
                try:
                    with self._job(source, target) as job:
                        weights = self._weights_for(job)
                        render = self._in_processes if self.jobs > 1 else self._here
                        rendered = render(job, weights, cancel)
                    warnings += len(rendered.warnings)
                    self.reporter.finish(rendered)
                except Cancelled:
                    return 130
                except (ValueError, OSError, RuntimeError) as error:
                    if len(self.tasks) == 1:
                        raise
                    failures += 1
                    self.reporter.error(f"{source}: {error}")
        return 1 if failures else WITH_WARNINGS if warnings else 0

    def _make_folder(self) -> None:
        """That of the outputs of several inputs."""
        folder = self.tasks[0][1].parent
        if len(self.tasks) > 1 and folder.parent.is_dir():
            folder.mkdir(exist_ok=True)

    def _was_finished(self, target: Path) -> bool:
        """Whether an earlier run of several inputs, which this one resumes, has done this one."""
        from stif_rt.video.workspace import workspace_path

        resumed = self.resume and not self.overwrite and len(self.tasks) > 1
        return resumed and target.exists() and not workspace_path(target).exists()

    def dry(self) -> int:
        """Says what would be done, and about how long it would take; returns the exit status."""
        from stif_rt.video.estimate import estimate

        for source, target in self.tasks:
            with self._job(source, target) as job:
                runtime = self._load(self._weights_for(job))
                self.reporter.start(job, f"{runtime.device}, {dtype_name(runtime.dtype)}")
                self.reporter.estimate(job, estimate(job, runtime))
        return 0

    def _weights_for(self, job: "Job") -> Path | str:
        """The weights that the user names, else the bundled ones that fit the scale, which are then said."""
        if self.weights is not None:
            return self.weights
        name = job.fitting_weights()
        self.reporter.say(f"weights: {name}, which fit the scale {job.scale:.3g}", "weights", weights=name)
        return name

    def _load(self, weights: Path | str) -> "Runtime":
        """The runtime with these weights, loaded again only where they differ from those of the render before."""
        from stif_rt.runtime import Runtime

        if self.loaded is None or self.loaded[0] != weights:
            self.loaded = None  # makes room
            self.loaded = weights, Runtime.load(weights, **self.machine)
        return self.loaded[1]

    @contextmanager
    def _job(self, source: Path, target: Path) -> "Iterator[Job]":
        """A render; however it ends, what was wrong with its input is said, and what is kept of it."""
        from stif_rt.video.job import make_job

        job = make_job(source, target, self.options, self.overwrite)
        try:
            yield job
        finally:
            for notice in job.reader.notices:
                self.reporter.warn(notice)
            job.reader.close()
            self._say_what_is_kept(target)

    def _say_what_is_kept(self, target: Path) -> None:
        """Say where a render that has ended can be gone on with."""
        from stif_rt.video.workspace import workspace_path

        folder = workspace_path(target)
        if folder.is_dir() and any(path.stem.isdecimal() for path in folder.iterdir()):
            text = f"what is finished is kept in {folder}; --resume goes on with it"
            self.reporter.say(text, "kept", folder=str(folder))

    def _here(self, job: "Job", weights: Path | str, cancel: Cancellation) -> "Rendered":
        from stif_rt.video.run import run_job

        runtime = self._load(weights)

        self.reporter.start(job, f"{runtime.device}, {dtype_name(runtime.dtype)}")
        with self.reporter.progress() as watch:
            rendered = run_job(job, runtime, weights, self.overwrite, self.resume, watch, cancel)
            watch.stop(rendered.frames)
        return rendered

    def _in_processes(self, job: "Job", weights: Path | str, cancel: Cancellation) -> "Rendered":
        import torch

        from stif_rt.runtime.device import default_memory
        from stif_rt.video.shards import run_jobs

        devices = every_gpu() if self.machine["device"] in ("auto", "cuda") else [self.machine["device"]]
        names = ("dtype", "kernels", "encoder")
        arguments = [text for name in names for text in (f"--{name}", str(self.machine[name]))]
        memory = self.machine["max_memory"]
        if memory is None and devices == ["cpu"]:  # they share what is there
            memory = default_memory(torch.device("cpu")) // self.jobs
        arguments += [] if memory is None else ["--max-memory", str(memory / 2**30)]
        self.reporter.start(job, f"{self.jobs} processes on {', '.join(devices)}")
        with self.reporter.progress() as watch:
            rendered = run_jobs(job, weights, self.jobs, arguments, devices, self.overwrite, self.resume, watch, cancel)
            watch.stop(rendered.frames)
        return rendered

    def _announce(self, text: str) -> None:
        self.reporter.say(text, "stopping", message=text)


def every_gpu() -> list[str]:
    """The devices for several processes: all GPUs, else the CPU."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def run_shard(path: Path, shard: int, machine: dict[str, Any], reporter: Reporter) -> int:
    """Renders one shard of a plan; returns the exit status."""
    from stif_rt.runtime import Runtime
    from stif_rt.video.shards import read_plan, render_shard

    plan = read_plan(path)

    def announce(text: str) -> None:
        reporter.say(text, "stopping", message=text)

    with stopped_by_signals(announce) as cancel:
        runtime = Runtime.load(plan["weights"], **machine)
        try:
            with reporter.progress() as watch:
                frames = render_shard(plan, shard, runtime, watch, cancel)
                watch.stop(frames)
        except Cancelled:
            return 130
    reporter.say(f"shard {shard}: {frames} frames are finished", "shard", shard=shard, frames=frames)
    return 0
