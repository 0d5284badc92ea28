"""`captionmill evaluate`."""

from pathlib import Path
from typing import Any

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.options import (
    FILE,
    FILE_PATH,
    FOLDER_PATH,
    device_option,
    models_option,
    quiet_option,
    search_options,
    setting,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.words import show_list
from captionmill.stages.settings import BootstrapConfig, SearchConfig


@click.command()
@click.argument("features", type=FILE_PATH)
@models_option
@click.option("--captions", type=FILE, required=True, help="Reference captions, in any format that `train` reads.")
@click.option(
    "--list",
    "image_list",
    type=FILE,
    help="Images to score, one a line.  [default: the test split, else all the model has not seen]",
)
@click.option("--output", type=FILE_PATH, help="Scores and captions as JSON.")
@click.option("--per-image", type=FILE_PATH, help="Table of each image's caption, scores and traits (CSV).")
@click.option(
    "--against", metavar="MODEL", type=FOLDER_PATH, help="Another model for the same images; show the differences."
)
@click.option("--java-metrics", is_flag=True, help="METEOR and SPICE too; needs Java and captionmill[java].")
@setting(BootstrapConfig, "resamples", "Times the images are drawn anew for the 95 % intervals.")
@search_options
@device_option
@quiet_option
def evaluate(
    features: Path,
    models: tuple[Path, ...],
    captions: Path,
    image_list: Path | None,
    output: Path | None,
    per_image: Path | None,
    against: Path | None,
    java_metrics: bool,
    resamples: int,
    device: str,
    quiet: bool,
    **settings: Any,
) -> None:
    """Caption images of the feature store FEATURES and score the captions against all references.

    Each score comes with its 95 % bootstrap interval over the images. Columns of --per-image: key, caption, confidence,
    bleu_4 (of the image alone), rouge_l, cider_d, meteor and spice if asked for, words, copied (the same words as a
    training caption), repeated_word (twice in a row), repeated_trigram. Text that a spreadsheet could take for a
    formula has a ' in front.

    Example: captionmill evaluate features.h5 --model model --captions captions.csv --output scores.json
    """
    from captionmill.stages.scoring.evaluate import evaluate

    search = take_settings(SearchConfig, settings)
    with ProgressBars(quiet=quiet) as progress:
        evaluation = evaluate(
            features,
            models,
            captions,
            image_list=image_list,
            output=output,
            per_image=per_image,
            against=against,
            java_metrics=java_metrics,
            bootstrap=BootstrapConfig(resamples=resamples, seed=search.seed),
            search=search,
            device=device,
            progress=progress,
        )
    click.echo(summaries.score_table(evaluation))
    for line in evaluation.left_out:
        click.echo(f"Note: {line}", err=True)
    if evaluation.missing:
        click.echo(f"Not scored, without features or references: {len(evaluation.missing)}", err=True)
        click.echo(show_list(evaluation.missing), err=True)
