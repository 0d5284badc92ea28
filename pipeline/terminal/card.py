"""`captionmill card`."""

from pathlib import Path

import click

from captionmill.pipeline.terminal.options import FILE, FOLDER_PATH, log_format_option
from captionmill.pipeline.terminal.results import show_result


@click.command(short_help="Write the card of a model, README.md, with its scores.")
@click.argument("model", type=FOLDER_PATH)
@click.option("--scores", type=FILE, multiple=True, help="File that `evaluate` wrote (JSON); may be given again.")
@log_format_option
def card(model: Path, scores: tuple[Path, ...]) -> None:
    """Write the card of MODEL again, README.md in its folder, with scores.

    `train` writes one without scores of held-out images. Model hubs read its header. A card that you changed is
    never replaced.

    Example: captionmill card model --scores scores.json
    """
    from captionmill.data.models.card import write_card

    path = write_card(model, scores)
    show_result(f"{path}: the card of the model", {"output": path})
