"""`captionmill export`."""

from pathlib import Path
from typing import cast, get_args

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.options import FILE, FOLDER_PATH, overwrite_option, quiet_option
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.stages.settings import ExportFormat


@click.command()
@click.argument("models", metavar="MODEL...", type=FOLDER_PATH, nargs=-1, required=True)
@click.option("--output", type=FOLDER_PATH, required=True, help="Folder for the files.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(get_args(ExportFormat)),
    required=True,
    help="onnx needs captionmill[onnx]; torchscript is deprecated by torch, and runs in C++ and old versions.",
)
@click.option("--weights", type=FILE, help="The backbone's weights file, if it was moved since training.")
@click.option("--no-encoder", is_flag=True, help="Leave out the network that makes features of pictures.")
@overwrite_option
@quiet_option
def export(
    models: tuple[Path, ...],
    output: Path,
    file_format: str,
    weights: Path | None,
    no_encoder: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write MODEL as files that run without captionmill: its encoder, one decoder step, words and a manifest.

    Each file is compared with torch before it is put in place. Several MODELs become one ensemble. docs/export.md shows
    how to caption with the files.

    Example: captionmill export model --output exported --format onnx
    """
    from captionmill.pipeline.export import export_model

    with ProgressBars(quiet=quiet) as progress:
        summary = export_model(
            models,
            output,
            cast(ExportFormat, file_format),
            weights=weights,
            with_encoder=not no_encoder,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(f"{output}: {summaries.export_line(summary)}")
