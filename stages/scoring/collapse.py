"""Signs that a model has learned nothing of use, each named in one line with what to do about it."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.captions.words import WORD_RULE
from captionmill.data.features.store import FeatureStore
from captionmill.stages.scoring.statistics import describe_vocabulary, find_traits

MOST_UNKNOWN = 0.1
"""Share of words without an index above which a vocabulary is too small."""
SAME_SHARE = 0.9
"""Share of the images that have one caption."""
IDENTICAL_SHARE = 0.5
"""Share of the images that have one row of features."""
REPEATED_SHARE = 0.3
"""Share of the captions in which a word follows itself, or three words in a row occur twice."""
LEAST_IMAGES = 5
"""Of fewer images, equal captions and rows mean nothing."""
_EXAMINED_ROWS = 10_000
_SHOWN_CHARACTERS = 60


def describe_collapse(
    store: FeatureStore, captions: Mapping[str, str], references: Mapping[str, Sequence[str]], vocabulary: Vocabulary
) -> list[str]:
    """A line for each sign in the captions of scored images, by key, in their features and in their references."""
    unknown = describe_vocabulary(vocabulary, itertools.chain.from_iterable(references.values())).unknown
    advice = "train on captions like these, or with a lower `min_count`"
    return [
        *describe_equal_features(store, list(captions), "scored images"),
        *describe_captions_alike(captions, "scored images", vocabulary.word_rule),
        *describe_unknown_words(unknown, "the references", advice),
    ]


def describe_unknown_words(unknown: float, where: str, advice: str) -> list[str]:
    """A line if the share `unknown` of the words in `where` has no index."""
    if unknown <= MOST_UNKNOWN:
        return []
    return [f"{unknown:.1%} of the words in {where} are not in the vocabulary and become <unk>: {advice}"]


def describe_captions_alike(captions: Mapping[str, str], kind: str, word_rule: int = WORD_RULE) -> list[str]:
    """A line if nearly all of the captions, by key, are one, and a line if many of them repeat a word or three words.

    `kind` is what their images are, such as "validation images".
    """
    if not captions:
        return []
    lines = []
    text, count = Counter(captions.values()).most_common(1)[0]
    if len(captions) >= LEAST_IMAGES and count >= SAME_SHARE * len(captions):
        shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
        lines.append(
            f"{_share(count, len(captions))} {kind} have the same caption ({shown}): check that each caption belongs "
            "to its image and that captions and features differ, then train longer"
        )
    traits = find_traits(captions, (), word_rule)
    repeated = sum(trait.repeated_word or trait.repeated_trigram for trait in traits.values())
    if repeated >= REPEATED_SHARE * len(captions):
        lines.append(
            f"the captions of {_share(repeated, len(captions))} {kind} say a word twice in a row, or three words "
            "twice: train longer or on more captions, or search with `no_repeat_ngram` 3 and without `repeat_words`"
        )
    return lines


def describe_equal_features(store: FeatureStore, keys: Sequence[str], kind: str) -> list[str]:
    """A line if half or more of the images `keys` have one and the same row; of very many, 10,000 are examined."""
    examined = keys[:: -(-len(keys) // _EXAMINED_ROWS)] if keys else keys
    rows = store.read(np.sort([store.position(key) for key in examined])) if examined else np.empty((0, 0))
    counts = Counter(row.tobytes() for row in rows)
    most = max(counts.values(), default=0)
    if len(examined) < LEAST_IMAGES or most < IDENTICAL_SHARE * len(examined):
        return []
    advice = "check that the images differ and can be read, and extract them again"
    return [f"{_share(most, len(examined))} {kind} have identical features and can have only one caption: {advice}"]


def _share(count: int, total: int) -> str:
    return f"all {total:,}" if count == total else f"{count:,} of {total:,}"
