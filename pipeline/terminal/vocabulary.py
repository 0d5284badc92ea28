"""`captionmill vocabulary`."""

from pathlib import Path

import click

from captionmill.data.errors import InputError
from captionmill.pipeline.terminal.options import MODEL, log_format_option
from captionmill.pipeline.terminal.results import show_result


@click.command(short_help="Print the words of a model and their indices.")
@click.argument("model", type=MODEL)
@click.option("--word", help="Print only the index of this word.")
@log_format_option
def vocabulary(model: Path, word: str | None) -> None:
    """Print the words of MODEL and their indices.

    Example: captionmill vocabulary model --word tree
    """
    from captionmill.data.models.source import read_model

    words = read_model(model).vocabulary
    if word is None:
        listed = "\n".join(f"{index}\t{listed}" for index, listed in enumerate(words.words))
        show_result(listed, {"words": list(words.words)})
    elif word.lower() in words:
        index = words.index(word.lower())
        show_result(str(index), {"word": word.lower(), "index": index})
    else:
        raise InputError(
            f"{word}: not among the {len(words)} words of {model}, which reads it as <unk>, index {words.index(word)}"
        )
