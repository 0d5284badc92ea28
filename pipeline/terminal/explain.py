"""`captionmill explain`."""

from pathlib import Path
from typing import Any

import click

from captionmill.pipeline.terminal.options import (
    FILE_PATH,
    FILE_PATH_OR_URL,
    NETWORK_SETTINGS,
    captions_options,
    log_format_option,
    models_option,
    moved_weights_option,
    network_options,
    search_options,
    take_captions,
    take_settings,
)
from captionmill.pipeline.terminal.results import show_result
from captionmill.stages.settings import ExtractConfig, SearchConfig


@click.command(short_help="Show how an image gets its caption.")
@click.argument("image", type=FILE_PATH_OR_URL)
@models_option
@click.option("--output", type=FILE_PATH, help="Page to write (HTML, one file).  [default: text on the terminal]")
@captions_options("Reference captions, in any format that `train` reads", required=False)
@click.option(
    "--features", type=FILE_PATH, help="Take the numbers from this store; IMAGE may then be a key without a file."
)
@click.option(
    "--key",
    help="Key of IMAGE in the --captions and --features, and for the draws of --sample.  [default: the end of its path "
    "that is a key, else its name]",
)
@moved_weights_option
@search_options
@network_options
@log_format_option
def explain(image: Path | str, models: tuple[Path, ...], output: Path | None, **options: Any) -> None:
    """Show how IMAGE gets its caption, with the network's own numbers at each step.

    The 2048 numbers, the first state, the ten best words of each step with index, score and probability, the search as
    a tree; with --captions, the cross entropy of each reference word. With the options of `caption`, the caption is
    its caption.

    Example: captionmill explain photo.jpg --model model --output page.html
    """
    files = take_captions(options)
    options["captions"] = files if files.paths else None
    from captionmill.pipeline.explain import explain_image

    search, machine = take_settings(SearchConfig, options), take_settings(ExtractConfig, options, *NETWORK_SETTINGS)
    explained = explain_image(image, models, output=output, search=search, machine=machine, **options)
    from captionmill.pipeline.terminal.texts import render_text

    confidence = explained.explanation.confidence
    text = f"{output}: {explained.caption} (confidence {confidence:.4f})" if output else render_text(explained)
    fields = {"output": output, "caption": explained.caption, "confidence": confidence}
    show_result(text, fields)
