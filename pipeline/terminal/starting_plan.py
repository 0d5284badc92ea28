"""The file that `captionmill init` writes: a pipeline to fill in, with every setting, its default and its meaning.

Settings and help come from the options of the commands, so that each is written once.
"""

import re
from dataclasses import fields
from typing import Any

import click

from captionmill.pipeline.terminal.caption import caption
from captionmill.pipeline.terminal.evaluate import evaluate
from captionmill.pipeline.terminal.extract import extract
from captionmill.pipeline.terminal.train import train
from captionmill.stages.settings import MACHINE_SETTINGS, ExtractConfig, SearchConfig, TrainConfig

_TEXT = """\
# A captionmill pipeline: images to features to a trained decoder to captions.
#
#   captionmill run {name} --dry-run    what would be run, and why
#   captionmill run {name}              run it; again, after a change or a stop: only what is needed
#   captionmill status {name}           the graph, and what is up to date
#
# Paths start at this file's folder. A line that begins with # counts for nothing: take the # away to set
# what it says; where nothing is set, the value shown holds. Several data sets, trainings or folders: see the end.

[extract]  # stage one: a pretrained network turns each image into 2048 numbers
images = "images"  # a folder, a list of paths, a .tar or a URL
# output = "features.h5"
{extract}

[train]  # stage two: a decoder learns to caption from these numbers
captions = "references.csv"  # CSV with image and caption, Flickr token file, COCO or Karpathy JSON
# output = "model"
# train_list = "train.txt"  # images to train on, one a line; goes with val_list
# val_list = "val.txt"  # images that choose the best epoch, one a line
# restval = "train"  # what becomes of the restval images of Karpathy's JSON: train, drop
{train}

[evaluate]  # scores on the test images; leave this table out if there are none
# output = "scores.json"
# list = "test.txt"  # images to score, one a line; else the test split, else what the model has not seen
# device = "auto"  # auto, cpu, cuda, cuda:N or mps; that of the training if not set
{evaluate}

[caption]  # a folder of new pictures to a table
images = "new-images"
# output = "captions.csv"
# format = "csv"  # of the table (csv, jsonl, parquet); what the suffix of output says, else csv, if not set
# gallery = "captions.html"  # a page of all pictures and captions; none if not set
# sidecar = ".txt"  # a text file with its caption beside each image: a.jpg, a.txt; none if not set
# low_confidence = 0.5  # flag captions less sure than this; if not set, than a tenth of the model's validation captions
{caption}

# Several of a kind have names, and take what [train] (or another) itself says unless they say otherwise:
#
#   [extract.flickr]                  [extract.mine]
#   images = "Flickr8k/images"        images = "my-images"
#
#   [train.small]                     a training
#   features = "flickr"               of this extraction; without it the one of the same name, or the only one
#   captions = "Flickr8k/captions.csv"
#
#   [train.small.grid]                or one for each combination: small-seed-0-hidden_dim-256, ...
#   seed = [0, 1, 2]
#   hidden_dim = [256, 512]
#
#   [evaluate.all]                    scores each training, into scores/
#   [evaluate.together]
#   model = "small-*-hidden_dim-512"  a training, a grid, a list of such; * stands for anything
#   several = "ensemble"              all as one; or "best", by validation CIDEr-D; or "each"
#
#   [caption.holidays]                [caption.archive]
#   images = "holidays"               images = "s3://bucket/archive"
#   model = "small"                   several = "ensemble"
"""

_EXAMPLES = {"batch_size": 32, "max_epochs": 20, "patience": 10}  # of settings with no default of their own


def starting_plan(name: str) -> str:
    """The text of a new pipeline file called `name`."""
    search_names = _names(SearchConfig)
    return _TEXT.format(
        name=name,
        extract=_setting_lines(extract, _names(ExtractConfig)),
        train=_setting_lines(train, _names(TrainConfig)),
        evaluate=_setting_lines(evaluate, search_names),
        caption=_setting_lines(caption, [*search_names, *MACHINE_SETTINGS]),
    )


def _names(config: type[ExtractConfig] | type[TrainConfig] | type[SearchConfig]) -> list[str]:
    return [field.name for field in fields(config)]


def _setting_lines(command: click.Command, names: list[str]) -> str:
    """A line for each option of `command` that is one of the settings `names`: its default, and what it means."""
    return "\n".join(
        f"# {option.name} = {_toml(_example(option))}  # {_help(option)}"
        for option in command.params
        if isinstance(option, click.Option) and option.name in names
    )


def _example(option: click.Option) -> Any:
    return _EXAMPLES[option.name or ""] if option.default is None else option.default


def _help(option: click.Option) -> str:
    text = re.sub(r"\.  \[default: (.*)\]$", r"; if not set, \1", option.help or "").rstrip(".")
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    return text + (f" ({', '.join(choices)})" if not all(choice in text for choice in choices) else "")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
