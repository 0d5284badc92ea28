"""`captionmill pack`."""

from pathlib import Path

import click

from captionmill.pipeline.terminal.options import FILE_PATH, FOLDER_PATH, log_format_option
from captionmill.pipeline.terminal.results import show_result


@click.command(short_help="Write a model as one file.")
@click.argument("model", type=FOLDER_PATH)
@click.argument("output", type=FILE_PATH)
@log_format_option
def pack(model: Path, output: Path) -> None:
    """Write the folder MODEL as one file OUTPUT (.tar), which every --model takes, from a disk or a URL.

    The same model makes the same bytes. Whoever adds the #sha256= that is shown to the path or URL gets this model or
    an error.

    Example: captionmill pack model model.tar
    """
    from captionmill.data.models.archive import pack_model

    summary = pack_model(model, output)
    text = f"{output}: {', '.join(summary.files)}; {summary.size_bytes / 1e6:.1f} MB\n{output}#sha256={summary.sha256}"
    fields = {"output": output, "files": summary.files, "bytes": summary.size_bytes}
    show_result(text, fields | {"sha256": summary.sha256})
