"""`captionmill explain`."""

from pathlib import Path
from typing import Any

import click

from captionmill.pipeline.terminal.options import (
    FILE,
    FILE_PATH,
    device_option,
    log_format_option,
    models_option,
    setting,
)
from captionmill.stages.settings import ExtractConfig, SearchConfig


@click.command()
@click.argument("image", type=FILE_PATH)
@models_option
@click.option("--output", type=FILE_PATH, help="Page to write (HTML, one file).  [default: text on the terminal]")
@click.option("--captions", type=FILE, help="Reference captions, in any format that `train` reads.")
@click.option(
    "--features", type=FILE_PATH, help="Take the numbers from this store; IMAGE may then be a key without a file."
)
@click.option("--key", help="What IMAGE is called in these two.  [default: the end of its path that is a key]")
@click.option("--weights", type=FILE, help="The backbone's weights file, if it was moved since training.")
@setting(SearchConfig, "beam_size", "Captions kept at each step; 1 is greedy search.")
@setting(SearchConfig, "length_penalty", "Power of a caption's length that divides its score; 0 favours short ones.")
@setting(SearchConfig, "max_length", "Words a caption at most.")
@device_option
@setting(ExtractConfig, "engine", "What runs the network; auto is openvino on a CPU where it is installed.")
@setting(ExtractConfig, "precision", "Arithmetic of the network.")
@log_format_option
def explain(
    image: Path,
    models: tuple[Path, ...],
    output: Path | None,
    captions: Path | None,
    features: Path | None,
    key: str | None,
    weights: Path | None,
    beam_size: int,
    length_penalty: float,
    max_length: int,
    **machine: Any,
) -> None:
    """Show how the picture IMAGE becomes its caption, with the network's own numbers at each step.

    The 2048 numbers, the first state, the ten best words of each step with index, score and probability, the beam as a
    tree; with --captions, the cross entropy of each reference word.

    Example: captionmill explain photo.jpg --model model --output page.html
    """
    from captionmill.pipeline.explain import explain_picture
    from captionmill.pipeline.terminal.texts import render_text

    explained = explain_picture(
        image,
        models,
        output=output,
        features=features,
        captions=captions,
        key=key,
        search=SearchConfig(beam_size=beam_size, length_penalty=length_penalty, max_length=max_length),
        machine=ExtractConfig(**machine),
        weights=weights,
    )
    if output:
        click.echo(f"{output}: {explained.caption} (confidence {explained.explanation.caption.confidence:.4f})")
    else:
        click.echo(render_text(explained))
