"""What is scored: which images, of which splits of the models, and by which rule of words."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from captionmill.data.captions.near import describe_near
from captionmill.data.captions.references import Annotations, read_split_list
from captionmill.data.errors import AnnotationError
from captionmill.data.features.store import FeatureStore
from captionmill.stages.decoding.trained import TrainedModels

SplitsOfModels = Sequence[Mapping[str, Sequence[str]]]
"""The splits of each model."""

_logger = logging.getLogger(__name__)


def choose_keys(
    annotations: Annotations, splits: SplitsOfModels, store: FeatureStore, image_list: Path | None
) -> tuple[list[str], str]:
    """The keys of the images to score, and how they were chosen; they may have no features or no references."""
    if image_list:
        return read_split_list(image_list, known_keys=store.keys), f"listed in {image_list.name}"
    if keys := annotations.keys_of("test"):
        return keys, "test split of the captions file"
    seen = keys_of(splits, "train", "val")
    if keys := [key for key in keys_of(splits, "test") if key not in seen]:
        return keys, "the model's own test split"
    return sorted(annotations.captions.keys() - seen), "images that the model has not seen"


def choose_complete(
    keys: Sequence[str], chosen_by: str, annotations: Annotations, store: FeatureStore
) -> tuple[list[str], list[str]]:
    """Those of `keys` that have references and features, and those of these whose features are damaged.

    Raises AnnotationError if none can be scored.
    """
    complete = [key for key in keys if key in store and key in annotations.captions]
    damaged = set(store.verify(complete))
    scored = [key for key in complete if key not in damaged]
    if not scored:
        near = describe_near(sorted({*keys, *annotations.captions} - {*store.keys}), store.keys, across_folders=True)
        sound = " that are not damaged" if damaged else ""
        nothing = f"nothing to score: none of {len(keys)} images ({chosen_by}) has features and references{sound}"
        raise AnnotationError("; ".join(filter(None, (nothing, near))))
    without_features = sorted(key for key in keys if key not in store)
    if without_features and (near := describe_near(without_features, sorted({*store.keys} - {*keys}))):
        _logger.warning("not all images are scored: %s", near)
    return scored, sorted(damaged)


def splits_of(models: TrainedModels, store: FeatureStore) -> SplitsOfModels:
    """The splits of each of `models`, with the keys of `store`."""
    return [bundle.splits_in(store.keys) for bundle in models.bundles]


def keys_of(splits: SplitsOfModels, *names: str) -> dict[str, None]:
    """The images in one of the splits `names` of any of the models, each once, in order."""
    return dict.fromkeys(key for one in splits for name in names for key in one[name])


def warn_of_training_images(splits: SplitsOfModels, scored: Sequence[str], whose: str) -> None:
    """Warn if images are scored that the models were trained on; `whose` training it was."""
    if count := len({*scored} & keys_of(splits, "train").keys()):
        _logger.warning("%d of the %d images scored are ones that %s was trained on", count, len(scored), whose)


def choose_word_rule(models: TrainedModels, other: TrainedModels | None) -> int:
    """The rule of words that captions are scored by: the model's, and the newest where the two differ."""
    rule = models.vocabulary.word_rule
    if other is None or other.vocabulary.word_rule == rule:
        return rule
    _logger.warning("the two models find the words of captions by different rules; both are scored by the newest")
    return max(rule, other.vocabulary.word_rule)
