"""Splits images into train, val and test, and lists those that are left out with the reason."""

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from captionmill.data.captions.near import describe_near
from captionmill.data.captions.references import Annotations
from captionmill.data.errors import AnnotationError

NO_FEATURES = "captions without features"
NO_CAPTIONS = "features without captions"
NOT_ANNOTATED = "in a split without captions"
IN_NO_SPLIT = "in no split"
DAMAGED_FEATURES = "damaged features, which extract makes again"
_HELD_OUT = 0.05  # of all images for val, and as many for test
_logger = logging.getLogger(__name__)


def split_by_image(keys: Iterable[str], *, seed: int) -> dict[str, str]:
    """The split of each key, 90/5/5, drawn by image so that no image has captions in two splits.

    Each split has at least one image, and at least two if there are ten or more: the CIDEr-D of one image is always 0.

    Keys are drawn in the order of SHA-256 over seed and key: the same keys and seed give the same splits, on every
    machine and for any order of the keys. Raises AnnotationError if there are too few images.
    """
    unique_keys = sorted(set(keys))
    if len(unique_keys) < 3:
        raise AnnotationError(f"cannot split {len(unique_keys)} images; 3 or more with captions are needed")
    count = max(2 if len(unique_keys) >= 10 else 1, round(len(unique_keys) * _HELD_OUT))
    drawn = sorted(unique_keys, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest())
    val, test = set(drawn[:count]), set(drawn[count : 2 * count])
    return {key: "val" if key in val else "test" if key in test else "train" for key in unique_keys}


@dataclass(frozen=True)
class Splits:
    """Image keys of each split, sorted; all have captions and features."""

    train: list[str]
    val: list[str]
    test: list[str]
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    """Keys that are left out, by reason; only reasons that occur."""

    def without(self, damaged: Collection[str]) -> "Splits":
        """These splits without the images of `damaged` rows; AnnotationError if train or val has no other."""
        lost = sorted({*self.train, *self.val, *self.test}.intersection(damaged))
        if not lost:
            return self
        train, val, test = ([key for key in keys if key not in damaged] for keys in (self.train, self.val, self.test))
        if not train or not val:
            raise AnnotationError(
                f"the features of all images of split {'val' if train else 'train'} are damaged; run extract again"
            )
        return Splits(train, val, test, self.unmatched | {DAMAGED_FEATURES: lost})


def choose_splits(
    annotations: Annotations,
    feature_keys: Collection[str],
    *,
    train_list: Sequence[str] | None = None,
    val_list: Sequence[str] | None = None,
    seed: int = 0,
) -> Splits:
    """Splits from the two lists, or else the annotations' own splits, or else 90/5/5 by image, drawn from `seed`.

    Raises AnnotationError if an image is in both lists, only one list is given, or no image is left to train on or to
    choose the best epoch with.
    """
    with_features = set(feature_keys)
    wanted = _wanted_splits(annotations, with_features, train_list, val_list, seed)
    usable = annotations.captions.keys() & with_features
    unmatched = {
        NO_FEATURES: sorted(annotations.captions.keys() - with_features),
        NO_CAPTIONS: sorted(with_features - annotations.captions.keys()),
        NOT_ANNOTATED: sorted(wanted.keys() - annotations.captions.keys()),
        IN_NO_SPLIT: sorted(usable - wanted.keys()),
    }
    keys: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for key in sorted(usable & wanted.keys()):
        keys[wanted[key]].append(key)
    if usable and (near := describe_near(unmatched[NO_FEATURES], unmatched[NO_CAPTIONS])):
        _logger.warning("%s: %s", NO_FEATURES, near)
    if not usable:
        raise AnnotationError(_no_match_message(sorted(annotations.captions), sorted(with_features)))
    for name, purpose in (("train", "to train on"), ("val", "to choose the best epoch with")):
        if not keys[name]:
            raise AnnotationError(
                f"no image {purpose}: none of the {len(usable)} with captions and features is in split {name}"
            )
    return Splits(
        keys["train"], keys["val"], keys["test"], {reason: lost for reason, lost in unmatched.items() if lost}
    )


def _wanted_splits(
    annotations: Annotations,
    with_features: Collection[str],
    train_list: Sequence[str] | None,
    val_list: Sequence[str] | None,
    seed: int,
) -> Mapping[str, str]:
    if train_list is not None and val_list is not None:
        if both := sorted(set(train_list) & set(val_list)):
            raise AnnotationError(f"{len(both)} images are in the training and in the validation list, {both[0]} first")
        return dict.fromkeys(train_list, "train") | dict.fromkeys(val_list, "val")
    if train_list is not None or val_list is not None:
        raise AnnotationError("a training list and a validation list go together: give both or neither")
    if annotations.splits:
        return annotations.splits
    usable = annotations.captions.keys() & set(with_features)
    return split_by_image(usable, seed=seed) if usable else {}


def _no_match_message(captioned: Sequence[str], with_features: Sequence[str]) -> str:
    if not with_features:
        return "the feature store is empty"
    by_file_name = {PurePosixPath(key).name: key for key in with_features}
    alike = (
        (name, by_file_name[PurePosixPath(name).name]) for name in captioned if PurePosixPath(name).name in by_file_name
    )
    named, stored = next(alike, (captioned[0], with_features[0]))
    none = f"none of the {len(captioned)} captioned images has features"
    if near := describe_near(captioned, with_features, across_folders=True):
        return f"{none}: {near}"
    return (
        f"{none}: the captions name {named}, the feature store {stored}; write paths relative to the extracted folder, "
        "or extract from the folder that they start at"
    )
