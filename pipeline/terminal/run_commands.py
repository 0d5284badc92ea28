"""`captionmill run` and `captionmill demo`: several stages at once."""

from pathlib import Path

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.options import FILE, FOLDER_PATH, quiet_option
from captionmill.pipeline.terminal.progress_bars import ProgressBars
from captionmill.pipeline.terminal.results import epoch_printer, show_outcomes, show_splits, show_stage


@click.command()
@click.argument("pipeline", type=FILE)
@quiet_option
def run(pipeline: Path, quiet: bool) -> None:
    """Run the stages that the TOML file PIPELINE describes, in order; what is up to date is skipped.

    Example: captionmill run pipeline.toml
    """
    from captionmill.pipeline.run import run_pipeline

    with ProgressBars(quiet=quiet) as progress:
        outcomes = run_pipeline(
            pipeline,
            on_stage=show_stage,
            on_splits=show_splits,
            on_epoch=epoch_printer(quiet, progress),
            progress=progress,
        )
    show_outcomes(outcomes)


@click.command()
@click.argument("folder", metavar="[DIR]", type=FOLDER_PATH, default=Path("captionmill-demo"))
@quiet_option
def demo(folder: Path, quiet: bool) -> None:
    """Draw pictures into DIR, extract, train, caption pictures held out, score, and write a page. Offline.

    DIR is captionmill-demo unless given. The commands are shown, to be repeated on photographs.

    Example: captionmill demo
    """
    from captionmill.pipeline.demo import run_demo

    with ProgressBars(quiet=quiet) as progress:
        summary = run_demo(folder, on_stage=show_stage, on_epoch=epoch_printer(quiet, progress), progress=progress)
    show_outcomes(summary.outcomes)
    click.echo(
        f"\n{summary.right_count} of {summary.held_out_count} held-out captions are right in every object, colour, "
        f"size and background ({summaries.show_duration(summary.duration_s)})\n"
        f"  captions  {summary.captions_path}\n  page      {summary.page_path}\n"
        f"  report    {summary.report_path}\n"
        f"  repeat    captionmill run {folder / 'pipeline.toml'}"
    )
