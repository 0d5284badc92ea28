"""`captionmill evaluate`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import evaluation_fields
from captionmill.pipeline.terminal.options import (
    FILE,
    FILE_PATH,
    MODEL,
    captions_options,
    models_option,
    quiet_option,
    search_options,
    setting_options,
    take_captions,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_damaged, show_left_out, show_result
from captionmill.stages.scoring.settings import BootstrapConfig, EvaluateConfig
from captionmill.stages.settings import SearchConfig


@click.command(short_help="Caption images of a feature store and score the captions.")
@click.argument("features", type=FILE_PATH)
@models_option
@captions_options()
@click.option(
    "--list",
    "image_list",
    type=FILE,
    help="Images to score, one per line.  [default: the test split, else all that the model has not seen]",
)
@click.option("--output", type=FILE_PATH, help="File for scores and captions (JSON).")
@click.option("--per-image", type=FILE_PATH, help="Table with the caption, scores and properties of each image (CSV).")
@click.option(
    "--against",
    metavar="MODEL",
    type=MODEL,
    help="Another model to score on the same images; shows the differences.",
)
@setting_options(EvaluateConfig, "java_metrics")
@setting_options(BootstrapConfig, "resamples")
@search_options
@setting_options(EvaluateConfig, "device")
@quiet_option
def evaluate(features: Path, models: tuple[Path, ...], quiet: bool, **options: Any) -> None:
    """Caption images of the feature store FEATURES and score the captions against all references.

    Each score comes with its 95 % bootstrap interval over the images. Columns of --per-image: key, caption, confidence,
    bleu_4 (of this image only), rouge_l, cider_d, meteor and spice if requested, words, copied (the same words as a
    training caption), repeated_word (twice in a row), repeated_trigram. Text that a spreadsheet could read as a formula
    has a ' in front.

    Example: captionmill evaluate features.h5 --model model --captions captions.csv --output scores.json
    """
    captions = take_captions(options)
    from captionmill.stages.scoring.evaluate import evaluate

    search = take_settings(SearchConfig, options)
    bootstrap = replace(take_settings(BootstrapConfig, options, "resamples"), seed=search.seed)
    config = replace(take_settings(EvaluateConfig, options), search=search, bootstrap=bootstrap)
    with ProgressBars(quiet=quiet) as progress:
        evaluation = evaluate(features, models, captions, config, progress=progress, **options)
    show_result(summaries.score_table(evaluation), evaluation_fields(evaluation, options["output"]))
    for line in evaluation.left_out:
        click.echo(f"Note: {line}", err=True)
    show_left_out("Not scored, without features or references", evaluation.missing)
    show_damaged("scored", evaluation.damaged)
