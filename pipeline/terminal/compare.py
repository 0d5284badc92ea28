"""`captionmill compare`."""

from pathlib import Path
from typing import Any

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import comparison_fields
from captionmill.pipeline.terminal.options import (
    ANY_OR_URL,
    FILE,
    FILE_PATH,
    captions_options,
    quiet_option,
    take_captions,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_result


@click.command(short_help="Show what differs between two tables of captions.")
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@captions_options("Reference captions to score both tables with, in any format that `train` reads", required=False)
@click.option("--output", type=FILE_PATH, help="Table of the images with different captions (CSV).")
@click.option("--page", type=FILE_PATH, help="The same as a page (HTML).")
@click.option("--images", type=ANY_OR_URL, help="Images to show on the page, as `caption` takes them.")
@quiet_option
def compare(
    first: Path,
    second: Path,
    output: Path | None,
    page: Path | None,
    images: Path | str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Show what differs between two tables of captions, such as those of two models.

    With references, both are scored on the same images (those of the test split, if there is one, without those whose
    captions a person wrote or accepted), and each difference has a paired 95 % bootstrap interval: one that covers 0
    can be chance.

    Example: captionmill compare before.csv after.csv --page compare.html --images photos
    """
    captions = take_captions(options)
    from captionmill.pipeline.compare import compare_tables

    with ProgressBars(quiet=quiet) as progress:
        comparison = compare_tables(
            first,
            second,
            captions=captions if captions.paths else None,
            output=output,
            page=page,
            images=images,
            progress=progress,
        )
    lines = [summaries.comparison_lines(comparison)]
    for path, what in ((output, "the images with different captions"), (page, "the page, open it in a browser")):
        lines += [f"{path}: {what}"] if path is not None else []
    show_result("\n".join(lines), comparison_fields(comparison, output, page))
