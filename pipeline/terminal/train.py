"""`captionmill train`."""

import os
from pathlib import Path
from typing import Any

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.options import (
    FILE,
    FILE_PATH,
    FOLDER_PATH,
    device_option,
    overwrite_option,
    quiet_option,
    setting,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import epoch_printer, show_splits
from captionmill.stages.settings import SearchConfig, TrainConfig


@click.command()
@click.argument("features", type=FILE_PATH)
@click.option("--captions", type=FILE, required=True, help="Flickr token file, COCO or Karpathy JSON, or CSV.")
@click.option("--output", type=FOLDER_PATH, required=True, help="Folder for the model.")
@click.option("--train-list", type=FILE, help="Images to train on, one a line; goes with --val-list.")
@click.option("--val-list", type=FILE, help="Images that choose the best epoch, one a line.")
@click.option(
    "--restval",
    type=click.Choice(["train", "drop"]),
    default="train",
    show_default=True,
    help="What becomes of the restval images of Karpathy's JSON.",
)
@setting(TrainConfig, "min_count", "Times a training word must occur to get an index.")
@setting(TrainConfig, "image_input", "The LSTM's initial state, before the first word, or beside every word.")
@setting(TrainConfig, "feature_scaling", "Each number standardised, the row made one length, or both.")
@setting(TrainConfig, "embed_dim", "Numbers a word embedding.")
@setting(TrainConfig, "hidden_dim", "Numbers in the LSTM's state.")
@setting(TrainConfig, "layers", "LSTM layers.")
@click.option(
    "--tie-weights/--no-tie-weights",
    default=TrainConfig.tie_weights,
    show_default=True,
    help="Use a word's embedding as its output weights too.",
)
@setting(TrainConfig, "dropout", "Share of values dropped in training, 0 to 1.")
@setting(TrainConfig, "feature_dropout", "Share of the image's numbers dropped in training, 0 to 1.")
@setting(TrainConfig, "forget_bias", "First bias of the LSTM's forget gates; the higher, the longer it remembers.")
@setting(TrainConfig, "label_smoothing", "Share of each target spread over all words, 0 to 1.")
@setting(TrainConfig, "batch_size", "Captions an optimizer step, over all processes.")
@setting(TrainConfig, "learning_rate", "Largest step size of AdamW; rises, then falls to 0.")
@setting(TrainConfig, "weight_decay", "AdamW's, of matrices.")
@setting(TrainConfig, "clip_norm", "A gradient longer than this is made this long.")
@setting(TrainConfig, "max_epochs", "Passes over the captions.  [default: 6, up to 100 for few captions]")
@setting(
    TrainConfig, "patience", "Epochs without a better validation CIDEr before an early end.  [default: half of all]"
)
@setting(TrainConfig, "self_critical_epochs", "Passes after that with CIDEr-D as the reward.")
@setting(TrainConfig, "self_critical_learning_rate", "Largest step size in these.")
@setting(TrainConfig, "self_critical_samples", "Captions sampled an image in these.")
@setting(TrainConfig, "max_length", "Words of a caption used, and decoded, at most.")
@setting(TrainConfig, "seed", "Of weights, order and, without splits, the 90/5/5 split.")
@setting(SearchConfig, "beam_size", "Beam of the validation after each epoch.")
@setting(SearchConfig, "length_penalty", "Of that validation, as for `caption`.")
@device_option
@overwrite_option
@click.option("--restart", is_flag=True, help="Begin anew where an unfinished training would be gone on with.")
@quiet_option
def train(
    features: Path,
    captions: Path,
    output: Path,
    train_list: Path | None,
    val_list: Path | None,
    restval: str,
    beam_size: int,
    length_penalty: float,
    overwrite: bool,
    restart: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a decoder on the feature store FEATURES and reference captions.

    Images without a row, and rows without captions, are listed before training starts and left out.

    Example: captionmill train features.h5 --captions captions.csv --output model
    """
    from captionmill.data.captions.splits import SplitLists
    from captionmill.stages.training.train import TrainListener, train

    search = SearchConfig(beam_size=beam_size, length_penalty=length_penalty, max_length=settings["max_length"])
    with ProgressBars(quiet=quiet) as progress:
        summary = train(
            features,
            captions,
            output,
            TrainConfig(**settings, search=search),
            data=SplitLists(train_list, val_list, restval),
            overwrite=overwrite,
            restart=restart,
            listener=TrainListener(show_splits, epoch_printer(quiet, progress)),
            progress=progress,
        )
    if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun started, one speaks
        click.echo(f"{output}: {summaries.train_line(summary)}")
