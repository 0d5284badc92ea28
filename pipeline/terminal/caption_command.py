"""`captionmill caption`."""

from pathlib import Path
from typing import Any, get_args

import click

from captionmill.data.caption_table import TableFormat
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
@click.option("--output", type=FILE_PATH, required=True, help="Table to write.")
@click.option(
    "--format",
    "table_format",
    type=click.Choice(get_args(TableFormat)),
    help="Of the table.  [default: by the suffix of OUTPUT, else csv]",
)
@click.option("--features", type=FILE_PATH, help="Cache of the features.  [default: OUTPUT with .features.h5]")
@click.option("--weights", type=FILE, help="The backbone's weights file, if it was moved since training.")
@search_options
@click.option(
    "--low-confidence",
    type=click.FloatRange(0, 1),
    help="Flag captions less sure than this.  [default: what a tenth of the model's validation captions are below]",
)
@machine_options
@click.option("--overwrite", is_flag=True, help="Replace a cache that holds other features than the model needs.")
@quiet_option
def caption(
    images: Path | str,
    models: tuple[Path, ...],
    output: Path,
    table_format: TableFormat | None,
    features: Path | None,
    weights: Path | None,
    beam_size: int,
    length_penalty: float,
    max_length: int,
    low_confidence: float | None,
    overwrite: bool,
    quiet: bool,
    **machine: Any,
) -> None:
    """Caption each image of IMAGES to a table: a folder, a list of paths, a .tar, or a URL, as for `extract`.

    A feature store as IMAGES has its rows captioned. Columns: path, caption, confidence (0 to 1), flags (cut, repeated,
    low-confidence), status, error. A further run does only what is new or changed; a killed one goes on.

    Example: captionmill caption photos --model model --output captions.csv
    """
    from captionmill.pipeline.folder import caption_folder

    with ProgressBars(quiet=quiet) as progress:
        summary = caption_folder(
            images,
            models,
            output,
            features=features,
            search=SearchConfig(beam_size=beam_size, length_penalty=length_penalty, max_length=max_length),
            low_confidence=low_confidence,
            table_format=table_format,
            machine=ExtractConfig(**machine),
            weights=weights,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(f"{output}: {summaries.folder_line(summary)}")
