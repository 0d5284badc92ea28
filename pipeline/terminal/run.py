"""`captionmill run`."""

from pathlib import Path

import click

from captionmill.pipeline.terminal.options import FILE, quiet_option, wait_option
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import (
    epoch_printer,
    first_score_printer,
    show_outcome,
    show_result,
    show_splits,
    show_standings,
    stage_printer,
)


@click.command(short_help="Run the tasks of a pipeline file.")
@click.argument("pipeline", type=FILE)
@click.option("--dry-run", is_flag=True, help="Show what would run, and why, without running it.")
@click.option(
    "--from",
    "start",
    metavar="STAGE",
    help="Run these tasks and those that need them in any case: a kind (train), a task (train.base) or a name (base).",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes on this machine; they run independent tasks in parallel, and each extraction together.",
)
@click.option("--cluster", metavar="URL", help="Run on a cluster instead: dask://HOST:PORT or ray://HOST:PORT.")
@wait_option
@quiet_option
def run(
    pipeline: Path, dry_run: bool, start: str | None, jobs: int, cluster: str | None, wait_s: int, quiet: bool
) -> None:
    """Run the tasks that the TOML file PIPELINE describes, in order; tasks that are up to date are skipped.

    The next run resumes whatever was stopped or failed. If a task fails, only the tasks that need it are not run.

    A run that made something writes report.html beside PIPELINE: all outputs on one page.

    Example: captionmill run pipeline.toml
    """
    from captionmill.pipeline.plan.run import RunEvents, run_pipeline
    from captionmill.pipeline.plan.standing import survey

    if dry_run:
        show_standings(survey(pipeline, start)[1])
        return
    with ProgressBars(quiet=quiet) as progress:
        events = RunEvents(
            on_stage=stage_printer(quiet),
            on_outcome=lambda outcome: show_outcome(outcome, progress),
            on_splits=show_splits,
            on_first_score=first_score_printer(quiet, progress),
            on_epoch=epoch_printer(quiet, progress),
            on_report=lambda path: show_result(f"{path}: the report, open it in a browser", {"output": path}),
        )
        run_pipeline(pipeline, jobs=jobs, cluster=cluster, wait_s=wait_s, start=start, events=events, progress=progress)
