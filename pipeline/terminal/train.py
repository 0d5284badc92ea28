"""`captionmill train`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import training_fields
from captionmill.pipeline.terminal.options import (
    FILE_PATH,
    FOLDER_PATH,
    captions_options,
    overwrite_option,
    quiet_option,
    setting_options,
    take_captions,
    take_settings,
)
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import epoch_printer, first_score_printer, show_result, show_splits
from captionmill.stages.settings import VALIDATION_SEARCH, SearchConfig, TrainConfig
from captionmill.stages.split_settings import SplitLists

_OF_VALIDATION = "Used to decode validation captions."
_RERANK_NOTE = "Here auto re-ranks those of the finished model only, and none makes a model that cannot re-rank."


@click.command(short_help="Train a decoder on features and reference captions.")
@click.argument("features", type=FILE_PATH)
@captions_options()
@click.option("--output", type=FOLDER_PATH, required=True, help="Folder for the model.")
@setting_options(SplitLists)
@setting_options(TrainConfig)
@setting_options(SearchConfig, "beam_size", "length_penalty", note=_OF_VALIDATION)
@setting_options(SearchConfig, "rerank", note=f"{_OF_VALIDATION} {_RERANK_NOTE}")
@setting_options(SearchConfig, "candidates", note=_OF_VALIDATION)
@overwrite_option
@click.option("--restart", is_flag=True, help="Start from scratch instead of resuming an unfinished training.")
@quiet_option
def train(features: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Train a decoder on the feature store FEATURES and reference captions.

    Images without features, and images without captions, are left out; they are listed before training starts.

    Example: captionmill train features.h5 --captions captions.csv --output model
    """
    captions = take_captions(options)
    config = take_settings(TrainConfig, options)
    search = take_settings(SearchConfig, options, *VALIDATION_SEARCH)
    config = replace(config, search=replace(search, max_length=config.max_length))
    lists = take_settings(SplitLists, options)
    _refuse_training(features, output, config, lists, overwrite=options["overwrite"])
    from captionmill.stages.training.recorder import TrainListener
    from captionmill.stages.training.train import train

    with ProgressBars(quiet=quiet) as progress:
        summary = train(
            features,
            captions,
            output,
            config,
            data=lists,
            listener=TrainListener(show_splits, first_score_printer(quiet, progress), epoch_printer(quiet, progress)),
            progress=progress,
            **options,
        )
    if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun started, one prints
        show_result(f"{output}: {summaries.train_line(summary)}", training_fields(summary, output))


def _refuse_training(features: Path, output: Path, config: TrainConfig, lists: SplitLists, *, overwrite: bool) -> None:
    """Raise what `train` would raise for these, before torch is imported, which takes seconds.

    Unlike `train`, a setting of the architecture at its default counts as given if it was typed.
    """
    from captionmill.data.captions.references import read_split_list
    from captionmill.data.features.store import FeatureStore
    from captionmill.data.models.bundle import read_bundle
    from captionmill.data.models.source import find_model
    from captionmill.stages.decoding.config import ARCHITECTURE, architecture_of, require_architecture, sound_weights
    from captionmill.stages.machine import require_device_name
    from captionmill.stages.training.run_folder import require_place

    require_device_name(config.device)
    require_place(output, overwrite=overwrite)
    store = FeatureStore.open(features)
    for path in (lists.train_list, lists.val_list):
        if path is not None and not Path(path).exists():  # a pipe can be read only once
            read_split_list(path)
    for name in (*([] if config.init is None else [config.init]), *config.teacher):
        folder = find_model(name)
        model = read_bundle(folder)
        model.spec.require(store.spec, mine=str(name), others=str(features))
        decoder, _ = sound_weights(folder, model)
        if name == config.init:
            typed = click.get_current_context().get_parameter_source
            given = [setting for setting in ARCHITECTURE if typed(setting) is ParameterSource.COMMANDLINE]
            require_architecture(str(name), architecture_of(model, decoder), config, given)
