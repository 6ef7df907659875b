"""One render divided among processes: a plan, shards that may run on different machines, and the join."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stif_rt.files import write_whole
from stif_rt.runtime import Runtime, find_weights
from stif_rt.runtime.weights import name_of
from stif_rt.video.estimate import check_space
from stif_rt.video.job import Job, describe, differences, make_job
from stif_rt.video.options import Cancellation, Cancelled, Progress, ProgressCallback, RenderOptions
from stif_rt.video.run import Rendered, check_encoding, join, other_streams, prepare, render_range, rendered, renderer
from stif_rt.video.segments import missing_runs, shard_range
from stif_rt.video.workspace import PLAN, Workspace, open_workspace

FORMAT = 1
MESSAGES = 20
"""Lines of a failed process that are kept, to be shown."""


def make_plan(job: Job, weights: str | Path | None, shards: int | None = None) -> dict[str, Any]:
    """The plan of a render that is divided among several processes.

    Args:
        job: the render.
        weights: a weights file or a bundle, None for the bundled weights. Bundled ones are planned by name, since
            every machine has them at a place of its own.
        shards: number of parts; None for one for each segment.

    Raises:
        ValueError: for a number of shards below 1.
    """
    if shards is not None and shards < 1:
        raise ValueError(f"--shards {shards}: there must be at least one")
    frames = count_frames(job)
    name = None if weights is None else name_of(find_weights(weights).resolve())
    shards = shards or -(-frames // job.options.segment_frames)
    return {"format": FORMAT, "job": describe(job, None, name), "weights": name, "frames": frames, "shards": shards}


def write_plan(job: Job, weights: str | Path | None, shards: int, path: Path, overwrite: bool = False) -> int:
    """Writes the plan that ``make_plan`` makes to a JSON file; returns the number of output frames.

    Raises:
        ValueError: for a number of shards below 1.
        FileExistsError: the file exists, and is not to be overwritten.
    """
    plan = make_plan(job, weights, shards)
    write_whole(path, json.dumps(plan, indent=1) + "\n", overwrite)
    return plan["frames"]


def read_plan(path: Path) -> dict[str, Any]:
    """The plan that ``write_plan`` has written. Raises ValueError for anything else."""
    try:
        plan = json.loads(path.read_text("utf-8"))
        complete = plan["format"] == FORMAT and {"job", "weights", "frames", "shards"} <= plan.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is not a plan that this version of stif-rt plan has written")
    return plan


def count_frames(job: Job) -> int:
    """The exact number of output frames, from a pass over the input that converts no picture."""
    starts = job.reader.starts()
    end = max((frame.end for frame in job.reader.read(starts[-1])), default=starts[-1])
    frames = max(0, math.ceil((end - job.start) * job.rates.sampling))
    return frames if job.stop is None else min(frames, job.stop)


def planned_job(plan: dict[str, Any], overwrite: bool = True) -> Job:
    """The job of a plan, whose input must be as it was then."""
    description = plan["job"]
    job = make_job(Path(description["input"]), Path(description["output"]), options_of(description), overwrite)
    if changed := differences(describe(job, None, plan["weights"]), description):
        raise ValueError(f"{job.input} is not what it was when the plan was made: {changed}")
    return job


def options_of(description: dict[str, Any]) -> RenderOptions:
    """The options in the description of a job."""
    options = dict(description["options"])
    if options["region"] is not None:
        options["region"] = tuple(options["region"])
    return RenderOptions(**options)


def render_shard(
    plan: dict[str, Any], shard: int, runtime: Runtime, progress: ProgressCallback, cancel: Cancellation
) -> int:
    """Renders what is missing of one shard, counted from 0. Returns the number of frames that are finished of it."""
    if not 0 <= shard < plan["shards"]:
        raise ValueError(f"--shard {shard}: the plan has shards 0 to {plan['shards'] - 1}")
    job, started = planned_job(plan), time.perf_counter()
    length, total = job.options.segment_frames, plan["frames"]
    own = shard_range(-(-total // length), shard, plan["shards"])
    wanted = range(own.start * length, min(own.stop * length, total))
    with contextlib.closing(job.reader), open_workspace(job.output, job.suffix, shard) as workspace:
        if workspace.job() is None:
            workspace.claim(plan["job"])
        check_same_render(workspace, plan)
        finished = [index for index in workspace.finished() if index in own]
        resumed = sum(min((index + 1) * length, total) - index * length for index in finished)
        done = resumed

        def report(frame: int) -> None:
            nonlocal done
            done += 1
            progress(Progress("rendering", done, len(wanted), time.perf_counter() - started, resumed))

        render_pair = renderer(job, runtime)
        for gap in missing_runs(finished, own):
            stop = min(gap.stop * length, total)
            render_range(job, workspace, render_pair, gap.start * length, stop, report, cancel)
    return done


def check_same_render(workspace: Workspace, plan: dict[str, Any]) -> None:
    """Raises ValueError where a workspace is that of another render than the plan's."""
    if changed := differences(plan["job"], workspace.job() or plan["job"]):
        raise ValueError(f"{workspace.path} holds segments of another render: {changed}")


def join_plan(plan: dict[str, Any], overwrite: bool, started: float | None = None) -> Rendered:
    """Joins what the shards have rendered to the output.

    Args:
        plan: of ``make_plan``.
        overwrite: replace an output that exists.
        started: when the render began, on the performance counter; None for now.

    Raises:
        ValueError: something is missing.
    """
    started = time.perf_counter() if started is None else started
    job = planned_job(plan, overwrite)
    with contextlib.closing(job.reader), open_workspace(job.output, job.suffix) as workspace:
        check_same_render(workspace, plan)
        frames = join(job, workspace, overwrite, other_streams(job), plan["frames"])
        workspace.delete()
    return rendered(job, frames, started)


def run_jobs(
    job: Job,
    weights: str | Path | None,
    jobs: int,
    arguments: Sequence[str],
    devices: Sequence[str],
    overwrite: bool,
    resume: bool,
    progress: ProgressCallback,
    cancel: Cancellation,
) -> Rendered:
    """Renders a job in ``jobs`` processes of this machine.

    Args:
        job, weights, overwrite, resume, progress, cancel: as for ``run_job``.
        jobs: number of processes.
        arguments: of their command line, for the network.
        devices: one for each process, used in turn.
    """
    started = time.perf_counter()
    if job.kind not in ("video", "images"):
        raise ValueError("--jobs is for outputs that are written in segments: videos and folders of images")
    check_space(job)
    with open_workspace(job.output, job.suffix, keep=True) as workspace:
        check_encoding(job, workspace)
        streams = other_streams(job)
        prepare(workspace, describe(job, None, weights), overwrite, resume)
        path = workspace.path / PLAN
        frames = write_plan(job, weights, jobs, path, overwrite=True)
    try:
        with Processes(path, jobs, arguments, devices, progress, frames) as processes:
            processes.wait(cancel)
    except BaseException:
        with open_workspace(job.output, job.suffix):
            raise  # leaves nothing where nothing is finished
    with open_workspace(job.output, job.suffix) as workspace:
        join(job, workspace, overwrite, streams, frames)
        workspace.delete()
    return rendered(job, frames, started)


class Processes:
    """The processes of ``run_jobs``; as a context manager, it leaves none behind."""

    def __init__(
        self,
        plan: Path,
        jobs: int,
        arguments: Sequence[str],
        devices: Sequence[str],
        progress: ProgressCallback,
        total: int,
    ) -> None:
        self._progress, self._total, self._started = progress, total, time.perf_counter()
        self._lock = threading.Lock()
        self._done = [0] * jobs
        self._messages: list[deque[str]] = [deque(maxlen=MESSAGES) for _ in range(jobs)]
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ  # what the user has set is kept
        self._processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "stif_rt.cli",
                    "render",
                    "--plan",
                    str(plan),
                    "--shard",
                    str(shard),
                    "--progress",
                    "json",
                    "--device",
                    devices[shard % len(devices)],
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches them through this process, once
            )
            for shard in range(jobs)
        ]
        self._readers = [threading.Thread(target=self._read, args=(shard,), daemon=True) for shard in range(jobs)]
        for reader in self._readers:
            reader.start()

    def _read(self, shard: int) -> None:
        """Takes what a process says until it ends."""
        stream = self._processes[shard].stderr
        assert stream is not None
        for line in stream:
            try:
                event = json.loads(line)
                kind = event["event"]
            except (ValueError, TypeError, KeyError):
                self._messages[shard].append(line.strip())
                continue
            if kind == "progress":
                with self._lock:
                    self._done[shard] = event["frames"]
                    seconds = time.perf_counter() - self._started
                    self._progress(Progress("rendering", sum(self._done), self._total, seconds))
            elif kind == "error":
                self._messages[shard].append(event["message"])

    def wait(self, cancel: Cancellation) -> None:
        """Until all have ended. RuntimeError where one has failed, Cancelled where they were stopped."""
        stop_sent = False
        while any(process.poll() is None for process in self._processes):
            if cancel.requested and not stop_sent:
                stop_sent = True
                for process in self._processes:
                    _interrupt(process)
            cancel.check()
            time.sleep(0.05)
        if cancel.requested:
            raise Cancelled("the render was stopped")
        failed = [shard for shard, process in enumerate(self._processes) if process.returncode not in (0, 3)]
        if failed:
            self._readers[failed[0]].join()
            reason = "; ".join(self._messages[failed[0]]) or f"exit status {self._processes[failed[0]].returncode}"
            raise RuntimeError(f"{len(failed)} of {len(self._processes)} processes failed: {reason}")

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process, reader in zip(self._processes, self._readers, strict=True):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join()
            if process.stderr is not None:
                process.stderr.close()


def _interrupt(process: "subprocess.Popen[str]") -> None:
    """Asks a process to stop after its segment."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
