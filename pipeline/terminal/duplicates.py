"""`captionmill duplicates`."""

from pathlib import Path

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import leak_fields
from captionmill.pipeline.terminal.options import FILE_PATH, device_option, quiet_option, setting_options
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_damaged, show_result
from captionmill.stages.scoring.settings import LeakConfig


@click.command(short_help="Report nearly identical images of a feature store.")
@click.argument("features", type=FILE_PATH)
@setting_options(LeakConfig, "threshold")
@click.option("--output", type=FILE_PATH, help="Table for the pairs (CSV), closest first.")
@device_option
@quiet_option
def duplicates(features: Path, threshold: float, output: Path | None, device: str, quiet: bool) -> None:
    """Report identical and nearly identical images of the feature store FEATURES: `leaks --within` without splits.

    Images are identical if their files have the same content. No file is changed.

    Example: captionmill duplicates features.h5 --output duplicates.csv
    """
    from captionmill.stages.scoring.leaks import find_leaks

    config = LeakConfig(threshold, within=True)
    with ProgressBars(quiet=quiet) as progress:
        report = find_leaks(features, None, config, output=output, device=device, progress=progress)
    show_result(summaries.leak_lines(report), leak_fields(report, output))
    show_damaged("compared", report.damaged)
