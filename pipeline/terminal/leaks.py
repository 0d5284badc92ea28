"""`captionmill leaks`."""

from pathlib import Path
from typing import Any

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import leak_fields
from captionmill.pipeline.terminal.options import (
    FILE,
    FILE_PATH,
    MODEL,
    captions_options,
    device_option,
    quiet_option,
    setting_options,
    take_captions,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_damaged, show_left_out, show_result
from captionmill.pipeline.words import show_count
from captionmill.stages.scoring.settings import LeakConfig


@click.command(short_help="Report nearly identical images in different splits.")
@click.argument("features", type=FILE_PATH)
@click.option("--model", type=MODEL, help="Model whose splits to compare, also if `train` drew them.")
@captions_options("Captions with splits; not needed with lists", required=False)
@click.option("--train-list", type=FILE, help="Images of the split train, one per line.")
@click.option("--val-list", type=FILE, help="Images of the split val, one per line.")
@click.option("--test-list", type=FILE, help="Images of the split test, one per line.")
@setting_options(LeakConfig)
@click.option("--output", type=FILE_PATH, help="Table for the pairs (CSV), closest first.")
@device_option
@quiet_option
def leaks(features: Path, quiet: bool, **options: Any) -> None:
    """Report identical and nearly identical images in different splits, by the features in the store FEATURES.

    The splits come from the model, or from the lists, or else from the captions file. With --within, all images of the
    store are compared if no splits are named, as by `duplicates`. Images are identical if their files have the same
    content.

    Example: captionmill leaks features.h5 --model model --output leaks.csv
    """
    captions = take_captions(options)
    from captionmill.stages.scoring.leaks import SPLIT_NAMES, find_leaks

    config = take_settings(LeakConfig, options)
    lists = {name: path for name in SPLIT_NAMES if (path := options.pop(f"{name}_list"))}
    with ProgressBars(quiet=quiet) as progress:
        report = find_leaks(
            features, captions if captions.paths else None, config, lists=lists, progress=progress, **options
        )
    show_result(summaries.leak_lines(report), leak_fields(report, options["output"]))
    show_left_out("Not compared, without features", report.without_features)
    show_damaged("compared", report.damaged)
    if report.in_no_split:
        click.echo(f"Not compared, in no split: {show_count(report.in_no_split, 'image')} of the store", err=True)
