"""`captionmill export`."""

from pathlib import Path

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import export_fields
from captionmill.pipeline.terminal.options import (
    FOLDER_PATH,
    MODEL,
    moved_weights_option,
    overwrite_option,
    quiet_option,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_result


@click.command(short_help="Write a model as ONNX files that run without captionmill.")
@click.argument("models", metavar="MODEL...", type=MODEL, nargs=-1, required=True)
@click.option("--output", type=FOLDER_PATH, required=True, help="Folder for the files.")
@moved_weights_option
@click.option(
    "--no-encoder",
    "with_encoder",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Leave out the network that turns images into features.",
)
@overwrite_option
@quiet_option
def export(
    models: tuple[Path, ...], output: Path, weights: Path | None, with_encoder: bool, overwrite: bool, quiet: bool
) -> None:
    """Write MODEL as ONNX files that run without captionmill: encoder, one decoder step, words and a manifest.

    Needs captionmill[onnx]. Each file is compared with torch before it is put in place. Several MODELs become one
    ensemble. docs/export.md shows how to caption with the files.

    Example: captionmill export model --output exported
    """
    from captionmill.pipeline.export import export_model

    with ProgressBars(quiet=quiet) as progress:
        summary = export_model(
            models, output, weights=weights, with_encoder=with_encoder, overwrite=overwrite, progress=progress
        )
    show_result(f"{output}: {summaries.export_line(summary)}", export_fields(summary))
