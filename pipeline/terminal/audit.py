"""`captionmill audit`."""

from pathlib import Path
from typing import Any

import click

from captionmill.pipeline.result_fields import audit_fields
from captionmill.pipeline.terminal.options import (
    FILE_PATH,
    captions_options,
    device_option,
    matcher_option,
    quiet_option,
    take_captions,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_damaged, show_left_out, show_result
from captionmill.stages.settings import LISTED_CAPTIONS

_LISTED_WORDS = 10


@click.command(short_help="List the captions that fit their image worst.")
@click.argument("features", type=FILE_PATH)
@captions_options()
@matcher_option
@click.option(
    "--top", type=click.IntRange(min=1), default=LISTED_CAPTIONS, show_default=True, help="Number of captions to list."
)
@click.option(
    "--output",
    type=FILE_PATH,
    help="Table with the columns key, caption and fit (CSV, or JSON lines if it ends in .jsonl).  [default: the "
    "terminal]",
)
@device_option
@quiet_option
def audit(features: Path, model: Path, top: int, output: Path | None, quiet: bool, **options: Any) -> None:
    """List the captions that fit their image in the feature store FEATURES worst, for a person to look at.

    The worst come first: captions of another image, shuffled rows, captions that name what nobody sees. The model may
    have been trained on these captions. A caption's fit is 0 or less; it is low if the model's matcher would rather
    pick other images for the caption, other captions for the image, or finds it unlike the image's other captions.

    Example: captionmill audit features.h5 --captions captions.csv --model model --output audit.csv
    """
    captions = take_captions(options)
    from captionmill.stages.ranking.audit import audit_captions

    with ProgressBars(quiet=quiet) as progress:
        found = audit_captions(features, captions, model, output=output, top=top, progress=progress, **options)
    text = "\n".join(f"{caption.fit:8.4f}  {caption.key}  {caption.caption}" for caption in found.worst)
    if output is not None:
        text = f"{output}: the worst {len(found.worst):,} of {found.captions:,} captions of {found.images:,} images"
    show_result(text, audit_fields(found, output))
    if found.unknown_words:
        frequent = ", ".join(found.unknown_words[:_LISTED_WORDS])
        click.echo(
            f"Note: the model does not know {found.unknown_share:.1%} of the words ({frequent}"
            f"{', ...' if len(found.unknown_words) > _LISTED_WORDS else ''}); what they say is not compared",
            err=True,
        )
    show_left_out("Not compared, without features", found.without_features)
    show_damaged("compared", found.damaged)
