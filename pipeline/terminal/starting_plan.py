"""The file that `captionmill init` writes: a pipeline to fill in, with all settings, their defaults and meanings."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from captionmill.stages.fields import Configuration, Setting, settings_of
from captionmill.stages.settings import MACHINE_SETTINGS, VALIDATION_SEARCH, ExtractConfig, SearchConfig, TrainConfig
from captionmill.stages.split_settings import SplitLists
from captionmill.stages.table_settings import TableConfig

_TEXT = """\
# A captionmill pipeline: images to features to a trained decoder to captions.
#
#   captionmill run {name} --dry-run    show what would run, and why
#   captionmill run {name}              run it; run again, it does only what is new, changed or unfinished
#   captionmill status {name}           show the graph, and what is up to date
#
# Paths start at this file's folder. A line that begins with # is a comment: remove the # to set the
# value; if nothing is set, the value shown is used. Several data sets, trainings or folders: see the end.

[extract]  # stage one: a pretrained network turns each image into 2048 features
images = "images"  # a folder, a list of paths, a .tar or a URL
# output = "features.h5"
{extract}

[train]  # stage two: a decoder learns to caption from these features
captions = "references.csv"  # CSV with image and caption, Flickr token file, COCO or Karpathy JSON, ...; or a list
# if its columns have other names: image_column = "file" and caption_column = "text"
# output = "model"
{train}
# How validation captions are decoded. Here rerank = "auto" re-ranks only those of the finished model, and "none"
# makes a model that cannot re-rank:
{validation}

[evaluate]  # scores on the test images; leave this table out if there are none
# output = "scores.json"
# list = "test.txt"  # images to score, one per line; else the test split, else all that the model has not seen
{evaluate}

[caption]  # writes captions of a folder of new images to a table
images = "new-images"
# output = "captions.csv"
{caption}

# Several tables of a kind have names. The values in [train] (or another) itself are defaults for all of them:
#
#   [extract.flickr]                  [extract.mine]
#   images = "Flickr8k/images"        images = "my-images"
#
#   [train.small]                     one training
#   features = "flickr"               the extraction; default: the one of the same name, or the only one
#   captions = "Flickr8k/captions.csv"
#
#   [train.small.grid]                or one per combination: small-seed-0-hidden_dim-256, ...
#   seed = [0, 1, 2]
#   hidden_dim = [256, 512]
#
#   [evaluate.all]                    scores each training, into scores/
#   [evaluate.together]
#   model = "small-*-hidden_dim-512"  a training, a grid or a list of them; * matches anything
#   several = "ensemble"              all together; or "best", by validation CIDEr-D; or "each"
#
#   [caption.holidays]                [caption.archive]
#   images = "holidays"               images = "s3://bucket/archive"
#   model = "small"                   several = "ensemble"
"""

_TRAINING_DEVICE = "; if not set, that of the training"


def starting_plan(name: str) -> str:
    """The text of a new pipeline file called `name`."""
    return _TEXT.format(
        name=name,
        extract=setting_lines(ExtractConfig),
        train=setting_lines(SplitLists) + "\n" + setting_lines(TrainConfig),
        validation=setting_lines(SearchConfig, VALIDATION_SEARCH),
        evaluate=_line(settings_of(TrainConfig)["device"], _TRAINING_DEVICE) + "\n" + setting_lines(SearchConfig),
        caption="\n".join(
            [setting_lines(TableConfig), setting_lines(SearchConfig), setting_lines(ExtractConfig, MACHINE_SETTINGS)]
        ),
    )


def setting_lines(kind: type[Configuration], names: Iterable[str] = ()) -> str:
    """A commented line for each setting of `kind`, all or those called `names`: a value and its meaning."""
    known = settings_of(kind)
    return "\n".join(_line(known[name]) for name in names or known)


def _line(setting: Setting, unset: str = "") -> str:
    """A commented line with the default, or an example if that is None, and the help."""
    value = setting.example if setting.default is None else setting.shown_default
    choices = f" ({', '.join(setting.unnamed_choices)})" if setting.unnamed_choices else ""
    unset = unset or (f"; if not set, {setting.unset}" if setting.unset else "")
    return f"# {setting.name} = {_toml(value)}  # {setting.help.rstrip('.')}{choices}{unset}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)
