"""`captionmill report`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from captionmill.pipeline.terminal.options import (
    ANY_OR_URL,
    FILE,
    FILE_PATH,
    MODEL,
    captions_options,
    log_format_option,
    take_captions,
)
from captionmill.pipeline.terminal.results import show_result


@click.command()
@click.argument("models", metavar="[MODEL]...", type=MODEL, nargs=-1)
@click.option("--features", type=FILE_PATH, multiple=True, help="Feature store; may be given several times.")
@click.option(
    "--scores", type=FILE, multiple=True, help="File that `evaluate --output` wrote; may be given several times."
)
@click.option(
    "--captions-table",
    "tables",
    type=FILE,
    multiple=True,
    help="Table that `caption` wrote; may be given several times.",
)
@captions_options("Reference captions of the training, for word counts", required=False)
@click.option(
    "--images",
    type=ANY_OR_URL,
    multiple=True,
    help="Location of the scored images.  [default: where the last extraction found them]",
)
@click.option("--title", default="", help="Heading of the page.  [default: the first model's name]")
@click.option(
    "--output", type=FILE_PATH, default=Path("report.html"), show_default=True, help="Page to write (HTML, one file)."
)
@log_format_option
def report(
    models: tuple[Path, ...],
    features: tuple[Path, ...],
    scores: tuple[Path, ...],
    tables: tuple[Path, ...],
    images: tuple[Path | str, ...],
    title: str,
    output: Path,
    **options: Any,
) -> None:
    """Write a page about a run, from its files on disk.

    The page shows which images were extracted, where the time went, the curves of each MODEL, its scores with
    intervals, its best, median and worst captions, and the settings. Files that are not given or were never written are
    listed as missing.

    Example: captionmill report model --features features.h5 --scores scores.json --output report.html
    """
    files = take_captions(options)
    captions = [replace(files, paths=(path,)) for path in files.paths]
    from captionmill.pipeline.pages.run_report import ReportSources, write_run_report

    write_run_report(output, ReportSources(models, features, scores, tables, captions, images), title=title)
    size_bytes = output.stat().st_size
    show_result(f"{output}: {size_bytes / 1000:,.0f} kB", {"output": output, "bytes": size_bytes})
