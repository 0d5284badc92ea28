"""`captionmill caption`."""

from pathlib import Path
from typing import Any, Literal

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.options import (
    ANY_OR_URL,
    FILE,
    FILE_PATH,
    FOLDER_PATH,
    machine_options,
    models_option,
    quiet_option,
    search_options,
    setting,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.stages.settings import ExtractConfig, SearchConfig, TableConfig


@click.command()
@click.argument("images", type=ANY_OR_URL)
@models_option
@click.option("--output", type=FILE_PATH, required=True, help="Table to write.")
@setting(TableConfig, "format", "Of the table.  [default: by the suffix of OUTPUT, else csv]")
@click.option("--features", type=FILE_PATH, help="Cache of the features.  [default: OUTPUT with .features.h5]")
@click.option("--gallery", type=FILE_PATH, help="Page to write as well: every picture with its caption (HTML).")
@click.option("--weights", type=FILE, help="The backbone's weights file, if it was moved since training.")
@search_options
@setting(
    TableConfig,
    "low_confidence",
    "Flag captions less sure than this.  [default: what a tenth of the model's validation captions are below]",
)
@machine_options
@setting(
    TableConfig, "sidecar", "Write each caption beside its image too, such as .txt: a.jpg, a.txt.", metavar="SUFFIX"
)
@click.option(
    "--embed-metadata", is_flag=True, help="Write each caption into a copy of its image, as XMP and IPTC description."
)
@click.option("--copies", type=FOLDER_PATH, help="Folder of these copies.  [default: OUTPUT with .images]")
@click.option("--in-place", is_flag=True, help="With --embed-metadata: write into the images themselves, not copies.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an OUTPUT that is no table of captions or was edited, a cache of other features than the model "
    "needs, and others' sidecars and descriptions.",
)
@quiet_option
def caption(
    images: Path | str,
    models: tuple[Path, ...],
    output: Path,
    features: Path | None,
    gallery: Path | None,
    weights: Path | None,
    embed_metadata: bool,
    copies: Path | None,
    in_place: bool,
    overwrite: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Caption each image of IMAGES to a table: a folder, a list of paths, a .tar, or a URL, as for `extract`.

    A feature store as IMAGES has its rows captioned. Columns: path, caption, confidence (0 to 1), flags (cut, repeated,
    low-confidence), status, error. A further run does only what is new or changed; a killed one goes on. A table
    edited since is kept beside the new one: captions.edited.csv. In CSV a text that a spreadsheet could take for a
    formula, such as a path that begins with = or -, has a ' in front.

    Example: captionmill caption photos --model model --output captions.csv
    """
    from captionmill.pipeline.captioning.folder import caption_folder

    search, table = take_settings(SearchConfig, settings), take_settings(TableConfig, settings)
    if (in_place or copies is not None) and not embed_metadata:
        raise click.UsageError("--in-place and --copies belong to --embed-metadata")
    if in_place and copies is not None:
        raise click.UsageError("--in-place makes no copies: leave out one of --in-place and --copies")
    embed_into: Path | Literal["images"] | None = None
    if embed_metadata:
        embed_into = "images" if in_place else copies or output.with_suffix(".images")
    with ProgressBars(quiet=quiet) as progress:
        summary = caption_folder(
            images,
            models,
            output,
            features=features,
            gallery=gallery,
            search=search,
            low_confidence=table.low_confidence,
            table_format=table.format,
            machine=ExtractConfig(**settings),
            weights=weights,
            sidecar=table.sidecar,
            embed_into=embed_into,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(f"{output}: {summaries.folder_line(summary)}")
    for line in summaries.written_lines(summary):
        click.echo(line)
    if gallery is not None:
        click.echo(f"{gallery}: the gallery, open it in a browser")
