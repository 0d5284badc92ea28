"""`captionmill leaks`."""

from pathlib import Path

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.options import FILE, FILE_PATH, FOLDER_PATH, device_option, quiet_option, setting
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.words import show_count, show_list
from captionmill.stages.settings import LeakConfig


@click.command()
@click.argument("features", type=FILE_PATH)
@click.option("--model", type=FOLDER_PATH, help="Model whose splits are meant, those that `train` drew included.")
@click.option("--captions", type=FILE, help="Captions file that names splits; not needed with lists.")
@click.option("--train-list", type=FILE, help="Images of the split train, one a line.")
@click.option("--val-list", type=FILE, help="Images of the split val, one a line.")
@click.option("--test-list", type=FILE, help="Images of the split test, one a line.")
@setting(LeakConfig, "threshold", "Least cosine of the features of a pair, 0 to 1.")
@click.option("--within", is_flag=True, default=LeakConfig.within, help="Compare within each split too.")
@click.option("--output", type=FILE_PATH, help="The pairs as CSV, the closest first.")
@device_option
@quiet_option
def leaks(
    features: Path,
    model: Path | None,
    captions: Path | None,
    train_list: Path | None,
    val_list: Path | None,
    test_list: Path | None,
    threshold: float,
    within: bool,
    output: Path | None,
    device: str,
    quiet: bool,
) -> None:
    """Report identical and nearly identical images across splits, by the features in the store FEATURES.

    Splits are those of the model, or those of the lists given, or else those of the captions file. Identical are images
    of the same content.

    Example: captionmill leaks features.h5 --model model --output leaks.csv
    """
    from captionmill.stages.scoring.leaks import find_leaks

    lists = {"train": train_list, "val": val_list, "test": test_list}
    with ProgressBars(quiet=quiet) as progress:
        report = find_leaks(
            features,
            captions,
            LeakConfig(threshold=threshold, within=within),
            lists={name: path for name, path in lists.items() if path},
            model=model,
            output=output,
            device=device,
            progress=progress,
        )
    click.echo(summaries.leak_lines(report))
    if report.without_features:
        click.echo(f"Not compared, without features: {len(report.without_features):,}", err=True)
        click.echo(show_list(report.without_features), err=True)
    if report.in_no_split:
        click.echo(f"Not compared, in no split: {show_count(report.in_no_split, 'image')} of the store", err=True)
