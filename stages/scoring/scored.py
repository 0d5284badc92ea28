"""What is scored: which images, of which splits of the models, and by which rule of words."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from captionmill.data.captions.references import Annotations, read_split_list
from captionmill.data.features.store import FeatureStore
from captionmill.stages.decoding.captioner import Captioner

SplitsOfModels = Sequence[Mapping[str, Sequence[str]]]
"""The splits of each model."""

_log = logging.getLogger(__name__)


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


def splits_of(captioner: Captioner, store: FeatureStore) -> SplitsOfModels:
    """The splits of each model of `captioner`, with the keys of `store`."""
    return [bundle.splits_in(store.keys) for bundle in captioner.bundles]


def keys_of(splits: SplitsOfModels, *names: str) -> dict[str, None]:
    """The images in one of the splits `names` of any of the models, each once, in order."""
    return dict.fromkeys(key for one in splits for name in names for key in one[name])


def warn_of_training_images(splits: SplitsOfModels, scored: Sequence[str], whose: str) -> None:
    """Warn if images are scored that the models were trained on; `whose` training it was."""
    if count := len({*scored} & keys_of(splits, "train").keys()):
        _log.warning("%d of the %d images scored are ones that %s was trained on", count, len(scored), whose)


def choose_word_rule(captioner: Captioner, other: Captioner | None) -> int:
    """The rule of words that captions are scored by: the model's, and the newest where the two differ."""
    rule = captioner.vocabulary.word_rule
    if other is None or other.vocabulary.word_rule == rule:
        return rule
    _log.warning("the two models find the words of captions by different rules; both are scored by the newest")
    return max(rule, other.vocabulary.word_rule)
