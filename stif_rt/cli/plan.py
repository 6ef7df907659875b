"""``stif-rt plan`` and ``stif-rt join``: a render divided among processes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stif_rt.cli.arguments import pair_up, render_options
from stif_rt.cli.progress import Reporter
from stif_rt.cli.render import RUN, option, with_options_of_render
from stif_rt.cli.rendering import WITH_WARNINGS

NOT_OF_A_PLAN = ("device", "dtype", "kernels", "encoder", "max_memory", "resume", "jobs", "shard", "plan", "dry_run")
"""Options of a render that are those of each process, not of the plan."""


@with_options_of_render(
    NOT_OF_A_PLAN,
    shards=(Annotated[int, option("Number of processes.", min=1, panel=RUN)], 2),
    plan=(Annotated[Path | None, option("File for the plan; OUTPUT.plan.json.", panel=RUN)], None),
)
def plan(**given: Any) -> None:
    """Divide a render among several processes, which may run on several machines that share the files.

    Run `stif-rt render --plan PLAN --shard K` for every K from 0, in any order, at once or not; again for one that was
    stopped. Then `stif-rt join PLAN`.
    """
    from stif_rt.video.job import make_job
    from stif_rt.video.shards import write_plan

    reporter = Reporter(given["progress"], given["quiet"])
    tasks = pair_up(given["paths"] or [], given["inputs"] or [], given["output"])
    if len(tasks) > 1:
        raise typer.BadParameter("a plan is about one input")
    source, target = tasks[0]
    path = given["plan"] or target.with_name(f"{target.name}.plan.json")
    job = make_job(source, target, render_options(given), given["overwrite"])
    weights = given["weights"] or job.fitting_weights()
    frames = write_plan(job, weights, given["shards"], path, given["overwrite"])
    reporter.say(
        f"{path}: {frames} frames in {given['shards']} shards",
        "plan",
        plan=str(path),
        frames=frames,
        shards=given["shards"],
    )


def join(
    plan: Annotated[Path, typer.Argument(help="A plan whose shards are rendered.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", "-y", help="Replace an output that exists.")] = False,
    progress: Annotated[str, typer.Option(help="auto, plain or json.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")] = False,
) -> None:
    """Join what the processes of a plan have rendered, without encoding it again."""
    from stif_rt.video.shards import join_plan, read_plan

    reporter = Reporter(progress, quiet)  # type: ignore[arg-type]  # it checks the name
    rendered = join_plan(read_plan(plan), overwrite)
    for notice in rendered.warnings:
        reporter.warn(notice)
    reporter.finish(rendered)
    if rendered.warnings:
        raise typer.Exit(WITH_WARNINGS)
