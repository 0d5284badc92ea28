"""`captionmill search`."""

from pathlib import Path
from typing import Any

import click

from captionmill.pipeline.result_fields import search_fields
from captionmill.pipeline.terminal.options import (
    ANY_OR_URL,
    FILE_PATH,
    NETWORK_SETTINGS,
    matcher_option,
    moved_weights_option,
    network_options,
    quiet_option,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_left_out, show_result
from captionmill.stages.settings import LISTED_IMAGES, ExtractConfig


@click.command(short_help="Find the images that fit words, or are like an image.")
@click.argument("features", type=FILE_PATH)
@click.argument("words", metavar="[WORDS]...", nargs=-1)
@matcher_option
@click.option(
    "--like",
    metavar="KEY|FILE",
    help="Instead of words: an image, by its key in the store or as a file, that others should be like.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=LISTED_IMAGES, show_default=True, help="Number of images to show."
)
@click.option("--gallery", type=FILE_PATH, help="Page with these images (HTML), best first.")
@click.option("--images", type=ANY_OR_URL, help="Images to show on the page, as `extract` takes them.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["csv", "jsonl"]),
    help="Format of the table, which has the columns key and cosine.  [default: by the suffix of --output, else lines "
    "of text]",
)
@click.option("--output", type=FILE_PATH, help="File for the table.  [default: the terminal]")
@moved_weights_option
@network_options
@quiet_option
def search(
    features: Path, words: tuple[str, ...], model: Path, like: str | None, top: int, quiet: bool, **options: Any
) -> None:
    """Find the images of the feature store FEATURES that fit WORDS, or that are like another image.

    The model's matcher turns words and images into vectors; the images with the largest cosine are shown. Words that
    the model does not know are left out. With --like KEY, that image itself is left out.

    Example: captionmill search features.h5 "a dog in the snow" --model model --gallery page.html --images photos
    """
    from captionmill.data.csv_tables import render_records
    from captionmill.pipeline.search import FOUND_COLUMNS, RetrievalFiles, search_store

    layout = options.pop("layout")
    files = RetrievalFiles(options.pop("output"), layout, options.pop("gallery"), options.pop("images"))
    machine = take_settings(ExtractConfig, options, *NETWORK_SETTINGS)
    query = " ".join(words) if words else None
    with ProgressBars(quiet=quiet) as progress:
        found = search_store(
            features, model, query, like=like, top=top, files=files, machine=machine, progress=progress, **options
        )
    if files.output is not None:
        text = f"{files.output}: the best {len(found.images):,} of {found.searched:,} images"
    elif layout is not None:
        text = render_records(map(vars, found.images), FOUND_COLUMNS, layout).rstrip("\n")
    else:
        text = "\n".join(f"{image.cosine:7.4f}  {image.key}" for image in found.images)
    show_result(text, search_fields(found, files))
    if found.unknown_words:
        click.echo(f"Note: the model does not know these words: {', '.join(found.unknown_words)}", err=True)
    show_left_out("Left out, as their features are damaged", found.damaged, "run extract again")
