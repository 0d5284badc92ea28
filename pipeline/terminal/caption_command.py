"""`captionmill caption`."""

from pathlib import Path
from typing import Any

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.options import (
    ANY_OR_URL,
    FILE,
    FILE_PATH,
    machine_options,
    models_option,
    quiet_option,
    search_options,
)
from captionmill.pipeline.terminal.progress_bars import ProgressBars
from captionmill.stages.config import ExtractConfig, SearchConfig


@click.command()
@click.argument("images", type=ANY_OR_URL)
@models_option
@click.option("--output", type=FILE_PATH, required=True, help="Table to write (CSV).")
@click.option("--features", type=FILE_PATH, help="Cache of the features.  [default: OUTPUT with .features.h5]")
@click.option("--gallery", type=FILE_PATH, help="Page to write as well: every picture with its caption (HTML).")
@click.option("--weights", type=FILE, help="The backbone's weights file, if it was moved since training.")
@search_options
@machine_options
@click.option("--overwrite", is_flag=True, help="Replace a cache that holds other features than the model needs.")
@quiet_option
def caption(
    images: Path | str,
    models: tuple[Path, ...],
    output: Path,
    features: Path | None,
    gallery: Path | None,
    weights: Path | None,
    beam_size: int,
    length_penalty: float,
    max_length: int,
    overwrite: bool,
    quiet: bool,
    **machine: Any,
) -> None:
    """Caption each image of IMAGES to CSV: a folder, a list of paths, a .tar, or a URL, as for `extract`.

    Columns: path, caption, confidence (0 to 1), status, error. A second run reuses the cached features.

    Example: captionmill caption photos --model model --output captions.csv
    """
    from captionmill.pipeline.folder import caption_folder

    with ProgressBars(quiet=quiet) as progress:
        summary = caption_folder(
            images,
            models,
            output,
            features=features,
            gallery=gallery,
            search=SearchConfig(beam_size=beam_size, length_penalty=length_penalty, max_length=max_length),
            machine=ExtractConfig(**machine),
            weights=weights,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(f"{output}: {summaries.folder_line(summary)}")
    if gallery is not None:
        click.echo(f"{gallery}: the gallery, open it in a browser")
