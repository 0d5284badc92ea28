"""`captionmill run`."""

from pathlib import Path

import click

from captionmill.data.errors import InputError
from captionmill.pipeline.terminal.options import FILE, quiet_option
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import (
    epoch_printer,
    show_outcome,
    show_splits,
    show_standings,
    stage_printer,
)


@click.command()
@click.argument("pipeline", type=FILE)
@click.option("--dry-run", is_flag=True, help="Run nothing; show what would be run, and why.")
@click.option(
    "--from",
    "start",
    metavar="STAGE",
    help="Run this in any case, and what depends on it: a kind (train), a task (train.base) or a name (base).",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes on this machine that do independent tasks side by side, and an extraction together.",
)
@click.option("--cluster", metavar="URL", help="Processes of dask://HOST:PORT or ray://HOST:PORT instead.")
@quiet_option
def run(pipeline: Path, dry_run: bool, start: str | None, jobs: int, cluster: str | None, quiet: bool) -> None:
    """Run the tasks that the TOML file PIPELINE describes, in order; what is up to date is skipped.

    The next run resumes whatever was stopped or failed. A task that fails stops only those that need it.

    A run that made something writes report.html beside PIPELINE: all outputs on one page.

    Example: captionmill run pipeline.toml
    """
    from captionmill.pipeline.plan.run import RunEvents, run_pipeline
    from captionmill.pipeline.plan.standing import survey

    if dry_run:
        show_standings(survey(pipeline, start)[1])
        return
    if cluster and jobs > 1:
        raise InputError("--jobs is for this machine: with --cluster, the cluster's workers are the processes")
    with ProgressBars(quiet=quiet) as progress:
        events = RunEvents(
            on_stage=stage_printer(quiet),
            on_outcome=lambda outcome: show_outcome(outcome, progress),
            on_splits=show_splits,
            on_epoch=epoch_printer(quiet, progress),
            on_report=lambda path: click.echo(f"{path}: the report, open it in a browser"),
        )
        run_pipeline(pipeline, jobs=jobs, cluster=cluster, start=start, events=events, progress=progress)
