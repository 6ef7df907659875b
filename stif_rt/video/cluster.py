"""Renders on a Ray cluster: a pool of workers that are told paths and numbers of segments, and never frames.

Each worker keeps a network and renders the segments that it is given into the output's workspace, as the shards of a
plan do; what it needs besides is a folder that all machines share. Segments of lost workers are given to others.
"""

import contextlib
import errno
import functools
import importlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stif_rt.runtime import Runtime
from stif_rt.runtime.device import default_memory
from stif_rt.version import VERSION
from stif_rt.video.estimate import check_space
from stif_rt.video.job import Job, describe
from stif_rt.video.options import Cancellation, Cancelled, Progress, ProgressCallback
from stif_rt.video.run import Rendered, check_encoding, other_streams, prepare
from stif_rt.video.shards import join_plan, make_plan, render_shard
from stif_rt.video.workspace import JOB, Busy, open_workspace, workspace_path

TRIES = 5
"""How often a segment is rendered whose worker is lost or cannot read or write, and a worker is started, in vain."""
PAUSE = 1.0
"""Seconds before the second try; each later one waits twice as long as the one before."""
TICK = 0.5
"""Seconds between two looks at what the workers have done."""
CONNECTING = 10.0
"""Seconds within which an address must answer."""
STOPPING = 10.0
"""Seconds that workers get to leave nothing unfinished behind."""
PATIENCE = 60.0
"""Seconds without any worker after which that is said."""
STORE = 100 << 20
"""Bytes of Ray's store of objects on a machine where it is started here: nothing large goes through it."""


class NotSharedError(OSError):
    """A worker cannot see a file that the machine which started it can."""


class About(NamedTuple):
    """A worker's machine and process, and its version of stif-rt."""

    host: str
    pid: int
    version: str


class Worker:
    """The process on the cluster: renders segments, and keeps the network that it has loaded for them.

    Args:
        machine: arguments of ``Runtime.load``.
        cores: threads to compute with; None for a worker that has a GPU.
    """

    def __init__(self, machine: dict[str, Any], cores: int | None) -> None:
        self._machine = dict(machine)
        if cores is not None:
            torch.set_num_threads(cores)
            if self._machine["max_memory"] is None:  # the workers of a machine share what is there
                workers = max((os.cpu_count() or 1) // cores, 1)
                self._machine["max_memory"] = default_memory(torch.device("cpu")) // workers
        self._loaded: tuple[str | None, Runtime] | None = None
        self._cancel = Cancellation()
        self._frames = 0

    def about(self) -> About:
        return About(socket.gethostname(), os.getpid(), VERSION)

    def frames(self) -> int:
        """The number of frames that are done of the segment in work."""
        return self._frames

    def stop(self) -> None:
        """Ends the segment in work after the picture in work."""
        self._cancel.now()

    def render(self, plan: dict[str, Any], segment: int) -> int:
        """Renders one segment of a plan that has one shard for each; returns its number of frames."""
        self._frames = 0
        if (path := unseen(plan)) is not None:
            raise NotSharedError(
                errno.ENOENT, f"{path} is not to be seen there: all machines must have the folder under one name"
            )
        weights = plan["weights"]
        if self._loaded is None or self._loaded[0] != weights:
            self._loaded = None  # makes room
            self._loaded = weights, Runtime.load(weights, **self._machine)

        def report(progress: Progress) -> None:
            self._frames = progress.frames

        return render_shard(plan, segment, self._loaded[1], report, self._cancel)


def unseen(plan: dict[str, Any]) -> Path | None:
    """The first file of a plan that this machine does not see, None where it sees all."""
    weights = Path(plan["weights"] or "")
    needed = [Path(plan["job"]["input"]), workspace_path(Path(plan["job"]["output"])) / JOB]
    needed += [weights] if weights.is_absolute() else []  # others are bundled
    return next((path for path in needed if not path.exists()), None)


def import_ray() -> Any:
    """The module. RuntimeError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise RuntimeError(f"a cluster needs Ray ({error}): pip install 'stif-rt[ray]'") from error


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Gives Ray's module, connected within.

    Args:
        address: HOST:PORT of the cluster's head; ``ray://HOST:PORT`` of its server for clients; ``auto``, the cluster
            of which this machine is a part; ``local``, one that is started on this machine alone.

    Raises:
        RuntimeError: Ray is not installed, or the address does not answer.
    """
    ray = import_ray()
    if ray.is_initialized():  # by the program that calls
        yield ray
        return
    given: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        given = {"include_dashboard": False, "object_store_memory": STORE}
    elif address != "auto":
        _knock(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **given)
    except (OSError, RuntimeError, ValueError) as error:
        if address == "auto":
            raise RuntimeError(
                "this machine is part of no Ray cluster: run ray start here, give --address HOST:PORT of another "
                "machine, or --address local"
            ) from error
        raise RuntimeError(
            f"the Ray cluster at {address} cannot be used: {' '.join(str(error).split())} (one that asks for a token "
            "needs RAY_AUTH_MODE=token here)"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises RuntimeError where nothing listens at an address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--address {address}: give HOST:PORT, ray://HOST:PORT, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECTING).close()
    except (OSError, OverflowError) as error:
        raise RuntimeError(f"no Ray cluster answers at {address}: {error}") from error


@dataclass(eq=False)
class Work:
    """One render on the cluster.

    waiting: the segments that nobody renders, with the times from which they may be, on the performance counter. tries:
    by segment. done: frames of finished segments; resumed: those that an earlier run had finished. error: why it has
    failed.
    """

    plan: dict[str, Any]
    suffix: str
    overwrite: bool
    started: float
    waiting: dict[int, float] = field(default_factory=dict)
    tries: "Counter[int]" = field(default_factory=Counter)
    running: int = 0
    done: int = 0
    resumed: int = 0
    error: Exception | None = None

    @property
    def output(self) -> Path:
        return Path(self.plan["job"]["output"])

    @property
    def complete(self) -> bool:
        """Whether all of its segments are finished."""
        return self.error is None and not self.waiting and not self.running

    def frames_of(self, segment: int) -> int:
        """The number of frames of a segment."""
        length: int = self.plan["job"]["options"]["segment_frames"]
        return min(length, self.plan["frames"] - segment * length)

    def fail(self, error: Exception) -> None:
        """Gives it up; what is finished of it stays."""
        self.error = error
        self.waiting.clear()

    def join(self) -> Rendered | Exception:
        """The output from the finished segments, or why there is none."""
        if self.error is None:
            try:
                return join_plan(self.plan, self.overwrite, self.started)
            except (ValueError, OSError, RuntimeError) as error:
                self.fail(error)
                return error
        return self.error

    def tidy(self) -> None:
        """Removes what nobody can go on with."""
        with contextlib.suppress(Busy), open_workspace(self.output, self.suffix):
            pass


def plan_work(job: Job, weights: str | Path, overwrite: bool, resume: bool) -> Work:
    """Prepares a render on the cluster: its plan, and the workspace that the workers look for.

    Args:
        job: the render. Its reader can be closed then.
        weights, overwrite, resume: as for ``render_video``.
    """
    started = time.perf_counter()
    if job.kind not in ("video", "images"):
        raise ValueError(f"{job.output}: a cluster renders videos and folders of images")
    check_space(job)
    with open_workspace(job.output, job.suffix, keep=True) as workspace:
        check_encoding(job, workspace)
        other_streams(job)  # what the output cannot hold is found out before anything is rendered
        prepare(workspace, describe(job, None, weights), overwrite, resume)
        work = Work(make_plan(job, weights), job.suffix, overwrite, started)
        finished = set(workspace.finished())
    for segment in range(work.plan["shards"]):
        if segment in finished:
            work.resumed += work.frames_of(segment)
        else:
            work.waiting[segment] = 0.0
    work.done = work.resumed
    return work


def render_on_cluster(
    ray: Any,
    works: list[Work],
    machine: dict[str, Any],
    workers: int | None,
    cores: int,
    progress: ProgressCallback,
    cancel: Cancellation,
    warn: Callable[[str], None],
) -> Iterator[tuple[Work, Rendered | Exception]]:
    """Renders everything on the workers of a cluster; yields each render when it is finished or has failed.

    Args:
        ray: the module, connected.
        works: the renders, which ``plan_work`` has prepared.
        machine: arguments of ``Runtime.load`` for each worker.
        workers: how many; None for as many as the cluster has GPUs, or CPU cores for.
        cores: CPU cores of each worker where there are no GPUs.
        progress: told about twice a second how far all renders together are.
        cancel: stops when the segments that are being rendered are finished, or at once.
        warn: told in a line what was lost and goes on.

    Raises:
        ValueError: the cluster has nothing for a worker.
        RuntimeError: no worker is left.
        Cancelled: it was stopped. What is finished is kept.
    """
    try:
        with Pool(ray, machine, workers, cores, warn) as pool:
            yield from pool.render(works, progress, cancel)
    finally:
        for work in works:
            if workspace_path(work.output).exists():
                work.tidy()


@dataclass(eq=False)
class Member:
    """A worker, as the machine that started it sees it.

    about: what it has said of itself; None until it can be given work. segment: what it renders; frames: how many of
    that are done. busy: whether another call than that of rendering waits for its answer. failures: how often in a row
    it did not start. rest: when it may be asked again, on the performance counter.
    """

    actor: Any
    about: About | None = None
    segment: tuple[Work, int] | None = None
    frames: int = 0
    busy: bool = False
    failures: int = 0
    rest: float = 0.0


Answer = Callable[[Any, Exception | None], None]
"""Takes what a call has returned, or how it failed."""


class Pool:
    """The workers of a cluster; as a context manager, it leaves none behind. Arguments as of ``render_on_cluster``."""

    def __init__(
        self, ray: Any, machine: dict[str, Any], workers: int | None, cores: int, warn: Callable[[str], None]
    ) -> None:
        self._ray, self._warn = ray, warn
        needs, count = resources([node["Resources"] for node in ray.nodes() if node["Alive"]], machine["device"], cores)
        actor = ray.remote(Worker).options(max_restarts=-1, max_concurrency=4, **needs)
        threads = None if "num_gpus" in needs else needs["num_cpus"]
        if not (count if workers is None else workers):
            raise ValueError("the cluster has no CPU core or GPU for a worker now; give --workers to wait for some")
        self._members = [Member(actor.remote(machine, threads)) for _ in range(count if workers is None else workers)]
        self._calls: dict[Any, Answer] = {}
        self._minor: dict[Any, Answer] = {}
        """Calls that nothing waits for."""
        self._ended: list[Work] = []
        """Those of which nothing is left to render, and that are not said to be finished yet."""
        self._silence = time.perf_counter()

    @property
    def workers(self) -> list[About]:
        """Those that can be given work."""
        return [member.about for member in self._members if member.about is not None]

    def render(
        self, works: list[Work], progress: ProgressCallback, cancel: Cancellation
    ) -> Iterator[tuple[Work, Rendered | Exception]]:
        """As ``render_on_cluster``."""
        started = time.perf_counter()
        self._ended = [work for work in works if work.complete]
        left = len(works)
        while True:
            cancel.check()
            if not cancel.requested:
                self._assign(works)
            elif not any(member.segment for member in self._members):
                raise Cancelled("the render was stopped")
            left -= len(self._ended)
            while self._ended:
                work = self._ended.pop()
                yield work, work.join()
            if not left:
                return
            self._listen()
            good = [work for work in works if work.error is None]
            done = sum(work.done for work in good) + sum(member.frames for member in self._members)
            total, resumed = sum(work.plan["frames"] for work in good), sum(work.resumed for work in good)
            progress(Progress("rendering", done, total, time.perf_counter() - started, resumed))

    def _assign(self, works: list[Work]) -> None:
        """Asks workers whether they are there, and gives segments to those that are free."""
        now = time.perf_counter()
        if self.workers:
            self._silence = now
        elif now - self._silence > PATIENCE:
            self._warn(f"none of {len(self._members)} workers has started yet; the cluster may be busy")
            self._silence = now
        for member in self._members:
            if member.about is None and not member.busy and member.rest <= now:
                member.busy = True
                self._calls[member.actor.about.remote()] = functools.partial(self._greeted, member)
            elif member.about is not None and member.segment is None:
                ready = ((work, n) for work in works for n, when in work.waiting.items() if when <= now)
                if (segment := next(ready, None)) is not None:
                    self._begin(member, *segment)

    def _begin(self, member: Member, work: Work, number: int) -> None:
        del work.waiting[number]
        work.running += 1
        work.tries[number] += 1
        member.segment = work, number
        self._calls[member.actor.render.remote(work.plan, number)] = functools.partial(self._rendered, member)

    def _listen(self) -> None:
        """Waits for an answer, a moment at most, and takes all that there are."""
        for member in self._members:
            if member.segment and not member.busy:
                member.busy = True
                call = member.actor.frames.remote()
                self._minor[call] = functools.partial(self._counted, member, member.segment)
        if self._calls:
            self._ray.wait(list(self._calls), timeout=TICK)
        else:
            time.sleep(TICK)
        for calls in (self._calls, self._minor):
            if not calls:
                continue
            for call in self._ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]:
                result, failure = None, None
                try:
                    result = self._ray.get(call)
                except self._ray.exceptions.RayError as error:
                    failure = error
                calls.pop(call)(result, failure)

    def _greeted(self, member: Member, about: About | None, error: Exception | None) -> None:
        """A worker has said what it is, or could not be started."""
        member.busy = False
        if about is not None and about.version == VERSION:
            member.about, member.failures = about, 0
        elif about is not None:
            self._leave_out(member, f"{about.host} has stif-rt {about.version}, and this machine {VERSION}")
        else:
            member.failures += 1
            member.rest = time.perf_counter() + pause(member.failures)
            if member.failures == TRIES:
                self._leave_out(member, f"it cannot be started: {last_line(error)}")

    def _counted(self, member: Member, segment: tuple[Work, int], frames: int | None, error: Exception | None) -> None:
        """A worker has said how many frames of its segment are done."""
        member.busy = False
        if member.segment is segment and frames is not None:
            member.frames = frames

    def _rendered(self, member: Member, frames: int | None, error: Exception | None) -> None:
        """A worker has finished its segment, or not."""
        assert member.segment is not None
        assert member.about is not None
        (work, number), host = member.segment, member.about.host
        member.segment, member.frames = None, 0
        work.running -= 1
        cause = getattr(error, "cause", None)  # what was raised there; None where the worker itself was lost
        if error is not None and cause is None:
            member.about = None
            self._warn(f"a worker on {host} was lost; segment {number} of {work.output} is rendered again")
        if isinstance(cause, NotSharedError):
            work.tries[number] -= 1
            self._leave_out(member, f"{host}: {cause.strerror}")
        if work.error is not None:
            return
        if error is None:
            work.done += work.frames_of(number)
        elif cause is not None and not isinstance(cause, (OSError, Busy)):
            work.fail(cause)
        elif work.tries[number] == TRIES:
            reason = cause or last_line(error)
            work.fail(RuntimeError(f"segment {number} was rendered {TRIES} times in vain: {reason}"))
        else:
            work.waiting[number] = time.perf_counter() + pause(work.tries[number])
        if work.complete or work.error is not None:
            self._ended.append(work)

    def _leave_out(self, member: Member, reason: str) -> None:
        """Goes on without a worker. RuntimeError where it was the last one."""
        self._members.remove(member)
        self._ray.kill(member.actor)
        if not self._members:
            raise RuntimeError(f"the cluster has no worker that can render: {reason}")
        self._warn(f"a worker is left out: {reason}")

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends what is being rendered, so that neither locks nor unfinished files stay, then the workers."""
        try:
            stopped = [member.actor.stop.remote() for member in self._members if member.segment]
            calls = [*stopped, *(call for call in self._calls if stopped)]
            if calls:
                self._ray.wait(calls, num_returns=len(calls), timeout=STOPPING)
            for member in self._members:
                self._ray.kill(member.actor)
        except self._ray.exceptions.RayError:
            pass  # the cluster is gone, and its workers with it


def resources(nodes: list[dict[str, float]], device: str, cores: int) -> tuple[dict[str, int], int]:
    """What Ray is asked for each worker, and how many of them the machines of a cluster have room for.

    Args:
        nodes: the resources of each machine.
        device: as of ``Runtime.load``.
        cores: CPU cores of each worker where there are no GPUs; fewer where no machine has so many.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(f"--device {device}: each worker of a cluster has one GPU; give cuda, cpu or auto")
    if device == "cuda" or (device == "auto" and gpus):
        return {"num_gpus": 1, "num_cpus": 1}, gpus
    processors = [int(node.get("CPU", 0)) for node in nodes]
    cores = max(1, min(cores, max(processors, default=cores)))
    return {"num_cpus": cores}, sum(count // cores for count in processors)


def pause(tries: int) -> float:
    """Seconds to wait after so many tries: a lost machine's locks, and a cluster's new machine, take their time."""
    return PAUSE * 2.0 ** (tries - 1)


def last_line(error: Exception | None) -> str:
    """What Ray says of an error at the end of its many lines."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
