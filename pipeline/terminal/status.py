"""`captionmill status`."""

from pathlib import Path

import click

from captionmill.pipeline.terminal.options import FILE, log_format_option
from captionmill.pipeline.terminal.results import show_graph


@click.command(short_help="Show which tasks of a pipeline file are up to date.")
@click.argument("pipeline", type=FILE)
@log_format_option
def status(pipeline: Path) -> None:
    """Show the graph of the TOML file PIPELINE: what is up to date, and why the rest is not.

    Each task is listed after those that it needs (<-), with its output.

    Example: captionmill status pipeline.toml
    """
    from captionmill.pipeline.plan.standing import survey

    show_graph(*survey(pipeline))
