"""`captionmill run`, `status`, `init` and `demo`: several stages at once."""

from pathlib import Path

import click

from captionmill.data.errors import InputError
from captionmill.pipeline import words
from captionmill.pipeline.terminal.options import FILE, FILE_PATH, FOLDER_PATH, log_format_option, quiet_option
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import (
    epoch_printer,
    show_graph,
    show_outcome,
    show_outcomes,
    show_splits,
    show_standings,
    stage_printer,
)


@click.command()
@click.argument("pipeline", type=FILE)
@click.option("--dry-run", is_flag=True, help="Run nothing; print what would be run, and why.")
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

    What is stopped or fails is gone on with by the next run. A task that fails stops only those that need it.

    A run that made something writes report.html beside PIPELINE: all outputs on one page.

    Example: captionmill run pipeline.toml
    """
    from captionmill.pipeline.plan.run import run_pipeline
    from captionmill.pipeline.plan.standing import survey

    if dry_run:
        show_standings(survey(pipeline, start)[1])
        return
    if cluster and jobs > 1:
        raise InputError("--jobs is for this machine: with --cluster, the cluster's workers are the processes")
    with ProgressBars(quiet=quiet) as progress:
        run_pipeline(
            pipeline,
            jobs=jobs,
            cluster=cluster,
            start=start,
            on_stage=stage_printer(quiet),
            on_outcome=lambda outcome: show_outcome(outcome, progress),
            on_splits=show_splits,
            on_epoch=epoch_printer(quiet, progress),
            on_report=lambda path: click.echo(f"{path}: the report, open it in a browser"),
            progress=progress,
        )


@click.command()
@click.argument("pipeline", type=FILE)
@log_format_option
def status(pipeline: Path) -> None:
    """Show the graph of the TOML file PIPELINE: what is up to date, and why the rest is not.

    Each task stands after those that it needs (<-), with its output.

    Example: captionmill status pipeline.toml
    """
    from captionmill.pipeline.plan.standing import survey

    show_graph(*survey(pipeline))


@click.command()
@click.argument("pipeline", metavar="[PIPELINE]", type=FILE_PATH, default=Path("pipeline.toml"))
@log_format_option
def init(pipeline: Path) -> None:
    """Write a pipeline file to fill in, with every setting, its default and its meaning.

    PIPELINE is pipeline.toml unless given. A file that exists is left as it is.

    Example: captionmill init
    """
    from captionmill.data.files import write_text
    from captionmill.pipeline.terminal.starting_plan import starting_plan

    if pipeline.exists():
        raise InputError(f"{pipeline}: exists already; name another file")
    write_text(pipeline, starting_plan(pipeline.name))
    click.echo(f"{pipeline}: fill in the paths, then: captionmill run {pipeline} --dry-run")


@click.command()
@click.argument("folder", metavar="[DIR]", type=FOLDER_PATH, default=Path("captionmill-demo"))
@quiet_option
def demo(folder: Path, quiet: bool) -> None:
    """Draw pictures into DIR, extract, train, caption pictures held out, score, and write a page. Offline.

    DIR is captionmill-demo unless given. The commands are shown, to be repeated on photographs.

    Example: captionmill demo
    """
    from captionmill.pipeline.demo.demo import run_demo

    with ProgressBars(quiet=quiet) as progress:
        summary = run_demo(
            folder, on_stage=stage_printer(quiet), on_epoch=epoch_printer(quiet, progress), progress=progress
        )
    show_outcomes(summary.outcomes)
    click.echo(
        f"\n{summary.right_count} of {summary.held_out_count} held-out captions are right in every object, colour, "
        f"size and background ({words.show_duration(summary.duration_s)})\n"
        f"  captions  {summary.captions_path}\n  page      {summary.page_path}"
    )
    if summary.report_path:
        click.echo(f"  report    {summary.report_path}")
    click.echo(f"  repeat    captionmill run {folder / 'pipeline.toml'}")
