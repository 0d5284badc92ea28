"""`captionmill caption`."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.options import (
    ANY_OR_URL,
    FILE_PATH,
    FOLDER_PATH,
    machine_options,
    models_option,
    moved_weights_option,
    quiet_option,
    search_options,
    setting_options,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.stages.settings import MACHINE_SETTINGS, ExtractConfig, SearchConfig, TableConfig


@click.command()
@click.argument("images", type=ANY_OR_URL)
@models_option
@click.option("--output", type=FILE_PATH, required=True, help="Table to write.")
@setting_options(TableConfig)
@click.option(
    "--features", type=FILE_PATH, help="Feature store that caches the features.  [default: OUTPUT with .features.h5]"
)
@moved_weights_option
@search_options
@machine_options
@click.option(
    "--embed-metadata", is_flag=True, help="Write each caption into a copy of its image, as XMP and IPTC description."
)
@click.option("--copies", type=FOLDER_PATH, help="Folder for these copies.  [default: OUTPUT with .images]")
@click.option(
    "--in-place", is_flag=True, help="With --embed-metadata: write into the images themselves, not into copies."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an OUTPUT that is not a table of captions, a cache whose features do not match the model, and "
    "sidecars and descriptions that another program wrote.",
)
@click.option(
    "--redo-corrected", is_flag=True, help="Forget the captions that a person corrected or accepted in OUTPUT."
)
@quiet_option
def caption(images: Path | str, models: tuple[Path, ...], output: Path, quiet: bool, **options: Any) -> None:
    """Write a table of captions for the images of IMAGES: a folder, a list of paths, a .tar or a URL, as for `extract`.

    IMAGES may also be a feature store, whose rows are captioned. Columns: path, caption, confidence (0 to 1), flags
    (cut, repeated, low-confidence), status, error. If the command is interrupted or images are added, run it again:
    only what is new or changed is done. Captions that you correct in OUTPUT are yours: they get the status corrected,
    no later run replaces them, and the next one writes them into sidecars, metadata and gallery. In CSV a text that a
    spreadsheet could read as a formula, such as a path that begins with = or -, has a ' in front.

    Example: captionmill caption photos --model model --output captions.csv
    """
    from captionmill.pipeline.captioning.folder import caption_folder
    from captionmill.pipeline.captioning.source import CacheConfig

    search, table = take_settings(SearchConfig, options), take_settings(TableConfig, options)
    table = replace(table, redo_corrected=options.pop("redo_corrected"))
    machine = take_settings(ExtractConfig, options, *MACHINE_SETTINGS)
    cache = CacheConfig(options.pop("features"), options.pop("weights"), machine)
    overwrite = options.pop("overwrite")
    embed_into = _embed_into(output, **options)
    with ProgressBars(quiet=quiet) as progress:
        summary = caption_folder(
            images,
            models,
            output,
            search,
            table=table,
            cache=cache,
            embed_into=embed_into,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(f"{output}: {summaries.folder_line(summary)}")
    for line in summaries.written_lines(summary):
        click.echo(line)
    if table.gallery is not None:
        click.echo(f"{table.gallery}: the gallery, open it in a browser")


def _embed_into(
    output: Path, *, embed_metadata: bool, copies: Path | None, in_place: bool
) -> Path | Literal["images"] | None:
    """Where to write captions into images: a folder of copies, "images" for the images themselves, or None."""
    if (in_place or copies is not None) and not embed_metadata:
        raise click.UsageError("--in-place and --copies need --embed-metadata")
    if in_place and copies is not None:
        raise click.UsageError("--in-place makes no copies: leave out one of --in-place and --copies")
    if not embed_metadata:
        return None
    return "images" if in_place else copies or output.with_suffix(".images")
