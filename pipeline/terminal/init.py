"""`captionmill init`."""

from pathlib import Path

import click

from captionmill.data.errors import InputError
from captionmill.pipeline.terminal.options import FILE_PATH, log_format_option
from captionmill.pipeline.terminal.results import show_result


@click.command(short_help="Write a pipeline file to fill in.")
@click.argument("pipeline", metavar="[PIPELINE]", type=FILE_PATH, default=Path("pipeline.toml"))
@log_format_option
def init(pipeline: Path) -> None:
    """Write a pipeline file to fill in, with all settings, their defaults and meanings.

    PIPELINE is pipeline.toml unless given. An existing file is never overwritten.

    Example: captionmill init
    """
    from captionmill.data.files import write_text
    from captionmill.pipeline.terminal.starting_plan import starting_plan

    if pipeline.exists():
        raise InputError(f"{pipeline}: exists already; name another file")
    write_text(pipeline, starting_plan(pipeline.name))
    text = f"{pipeline}: fill in the paths, then: captionmill run {pipeline} --dry-run"
    show_result(text, {"output": pipeline})
