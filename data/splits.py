"""Which images a decoder is trained on, which choose the best epoch, and which are kept unseen for the test."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from captionmill.data.annotations import Annotations, split_by_image
from captionmill.data.errors import AnnotationError

NO_FEATURES = "captions without features"
NO_CAPTIONS = "features without captions"
NOT_ANNOTATED = "in a split without captions"
IN_NO_SPLIT = "in no split"


@dataclass(frozen=True)
class Splits:
    """Image keys of each split, sorted; every one has captions and features."""

    train: list[str]
    val: list[str]
    test: list[str]
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    """Keys that are left out, by the reason; only reasons that occur."""


def choose_splits(
    annotations: Annotations,
    feature_keys: Collection[str],
    *,
    train_list: Sequence[str] | None = None,
    val_list: Sequence[str] | None = None,
    seed: int = 0,
) -> Splits:
    """Splits by the two lists, or else by the annotations' own, or else 90/5/5 by image, drawn from `seed`.

    Raises AnnotationError if an image is in both lists, only one list is given, or no image is left to train on or to
    choose the best epoch by.
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
    if not usable:
        raise AnnotationError(_say_nothing_fits(sorted(annotations.captions), sorted(with_features)))
    for name, purpose in (("train", "to train on"), ("val", "to choose the best epoch by")):
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


def _say_nothing_fits(captioned: Sequence[str], with_features: Sequence[str]) -> str:
    if not with_features:
        return "the feature store is empty"
    by_file_name = {PurePosixPath(key).name: key for key in with_features}
    alike = (
        (name, by_file_name[PurePosixPath(name).name]) for name in captioned if PurePosixPath(name).name in by_file_name
    )
    named, stored = next(alike, (captioned[0], with_features[0]))
    return (
        f"none of the {len(captioned)} captioned images has features: the captions name {named}, the feature store "
        f"{stored}; write paths below the folder that was extracted, or extract from the folder that they start at"
    )
