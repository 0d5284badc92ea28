"""Files that choose which images are trained on, as settings."""

from dataclasses import dataclass
from typing import Literal

from captionmill.data.paths import AnyPath
from captionmill.stages.fields import Configuration, setting

Restval = Literal["train", "drop"]


@dataclass(frozen=True)
class SplitLists(Configuration):
    """Files that choose the images of a training, instead of the splits of its captions file."""

    train_list: AnyPath | None = setting(
        None,
        "Images to train on, one per line; goes with the list of validation images.",
        unset="the captions' split",
        example="train.txt",
    )
    val_list: AnyPath | None = setting(
        None, "Images that choose the best epoch, one per line.", unset="the captions' split", example="val.txt"
    )
    restval: Restval = setting("train", "What to do with the restval images of Karpathy's JSON.")
