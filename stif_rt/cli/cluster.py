"""``stif-rt cluster``."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stif_rt.cli.arguments import pair_up, render_options
from stif_rt.cli.progress import Reporter
from stif_rt.cli.render import machine_options, option, with_options_of_render
from stif_rt.cli.rendering import WITH_WARNINGS, Run
from stif_rt.cli.signals import stopped_by_signals
from stif_rt.video.options import Cancelled

if TYPE_CHECKING:
    from stif_rt.video.cluster import Work
    from stif_rt.video.run import Rendered

CLUSTER = "Cluster"
NOT_OF_A_CLUSTER = ("jobs", "shard", "plan", "dry_run", "preview")
"""Options of a render that a cluster does not have."""
EPILOG = """
Examples:

  stif-rt cluster /shared/in.mp4 /shared/out.mp4 --scale 4 --address head:6379

  stif-rt cluster /shared/*.mov --output /shared/upscaled/ --width 1920 --address ray://head:10001 --resume

docs/clusters.md is the guide.
"""


@dataclass
class ClusterRun(Run):
    """One call of the command: all renders together, on the workers of a Ray cluster."""

    address: str = "auto"
    workers: int | None = None
    cores: int = 1

    def all(self) -> int:
        """Renders everything; returns the exit status."""
        from stif_rt.video import cluster
        from stif_rt.video.notices import Notice

        def warn(text: str) -> None:
            self.reporter.warn(Notice(text))

        with cluster.connected(self.address) as ray, stopped_by_signals(self._announce) as cancel:
            works, outcomes = self._plan_all()
            pool = (ray, list(works), self.machine, self.workers, self.cores)
            try:
                with self.reporter.progress() as watch:
                    for work, outcome in cluster.render_on_cluster(*pool, watch, cancel, warn):
                        outcomes.append(self._say(works[work], outcome))
            except Cancelled:
                return 130
            finally:
                for work in works:
                    self._say_what_is_kept(work.output)
        return 1 if 1 in outcomes else max(outcomes, default=0)

    def _plan_all(self) -> "tuple[dict[Work, Path], list[int]]":
        """What is to be rendered, with its input, and the exit statuses of what cannot be."""
        from stif_rt.video.cluster import plan_work
        from stif_rt.video.job import make_job

        works: dict[Work, Path] = {}
        failures = []
        self._make_folder()
        for source, target in self.tasks:
            if self._was_finished(target):
                self.reporter.say(f"{target} is there already", "skipped", output=str(target))
                continue
            try:
                job = make_job(source, target, self.options, self.overwrite)
                with closing(job.reader):
                    work = plan_work(job, self._weights_for(job), self.overwrite, self.resume)
                    self.reporter.start(job, f"{work.plan['shards']} segments")
                works[work] = source
            except (ValueError, OSError, RuntimeError) as error:
                failures.append(self._say(source, error))
        return works, failures

    def _say(self, source: Path, outcome: "Rendered | Exception") -> int:
        """Says how one render has ended; returns its exit status. What it was alone is raised."""
        if isinstance(outcome, Exception):
            if len(self.tasks) == 1:
                raise outcome
            self.reporter.error(f"{source}: {outcome}")
            return 1
        for notice in outcome.warnings:
            self.reporter.warn(notice)
        self.reporter.finish(outcome)
        return WITH_WARNINGS if outcome.warnings else 0


@with_options_of_render(
    NOT_OF_A_CLUSTER,
    address=(
        Annotated[
            str,
            option(
                "HOST:PORT of the cluster's head, ray://HOST:PORT of its server for clients, auto (the cluster that "
                "this machine is part of; the default), local (started on this machine).",
                metavar="ADDRESS",
                panel=CLUSTER,
            ),
        ],
        "auto",
    ),
    workers=(
        Annotated[
            int | None, option("How many; else one for each GPU, or for some of the cores.", min=1, panel=CLUSTER)
        ],
        None,
    ),
    cores=(Annotated[int, option("CPU cores of each, where there are no GPUs; 4.", min=1, panel=CLUSTER)], 4),
)
def cluster(**given: Any) -> None:
    """Render on a Ray cluster, many videos at once.

    Inputs, outputs and weights lie in a folder that all machines see under the same name.
    """
    reporter = Reporter(given["progress"], given["quiet"])
    tasks = pair_up(given["paths"] or [], given["inputs"] or [], given["output"])
    render = (tasks, render_options(given), given["weights"], machine_options(given), given["overwrite"])
    run = ClusterRun(*render, given["resume"], 1, reporter, None, given["address"], given["workers"], given["cores"])
    if status := run.all():
        raise typer.Exit(status)
