"""What makes a model worthless is named, and what is sound is not."""

from pathlib import Path

import numpy as np
from builders import make_rows, make_store

from captionmill.data.features.store import FeatureStore
from captionmill.stages.scoring.collapse import (
    describe_captions_alike,
    describe_equal_features,
    describe_unknown_words,
)


def captions_of(*texts: str) -> dict[str, str]:
    return {f"{number}.jpg": text for number, text in enumerate(texts)}


def test_one_caption_for_nearly_all_images_is_named() -> None:
    (line,) = describe_captions_alike(captions_of(*["a dog"] * 9, "a cat"), "scored images")
    assert line.startswith("9 of 10 scored images have the same caption (a dog): check that each caption belongs to ")
    assert describe_captions_alike(captions_of(*["a dog"] * 8, "a cat", "a man"), "scored images") == []
    assert describe_captions_alike(captions_of("a dog", "a dog"), "scored images") == []
    assert describe_captions_alike({}, "scored images") == []


def test_repeated_words_are_named_from_30_percent() -> None:
    sound = [f"a dog number {number}" for number in range(7)]
    line = (
        "the captions of 3 of 10 validation images say a word twice in a row, or three words twice: "
        "train longer or on more captions, or search with `no_repeat_ngram` 3 and without `repeat_words`"
    )
    for text in ("a white white dog", "a cat green cat green cat"):
        assert describe_captions_alike(captions_of(*sound, *[text] * 3), "validation images") == [line]
    assert describe_captions_alike(captions_of(*sound, *["a white white dog"] * 2), "validation images") == []


def test_a_doubled_character_is_no_repeated_word_and_three_in_a_row_are() -> None:
    assert describe_captions_alike(captions_of(*(f"慢慢走{number}" for number in range(5))), "images") == []
    assert len(describe_captions_alike(captions_of(*(f"白白白{number}" for number in range(5))), "images")) == 1


def test_identical_features_are_named(tmp_path: Path) -> None:
    rows = make_rows(10)
    rows[2:7] = rows[2]
    keys = [f"{number}.jpg" for number in range(10)]
    store = FeatureStore.open(make_store(tmp_path / "features.h5", keys, rows))
    (line,) = describe_equal_features(store, keys, "training images")
    assert line.startswith("5 of 10 training images have identical features and can have only one caption: check ")
    assert describe_equal_features(store, keys[:2] + keys[6:], "training images") == []
    assert describe_equal_features(store, [], "training images") == []
    many = FeatureStore.open(
        make_store(tmp_path / "many.h5", [f"{n:05d}" for n in range(20_001)], np.ones((20_001, 1), np.float32))
    )
    assert describe_equal_features(many, many.keys, "images")[0].startswith("all 6,667 images have identical features")


def test_a_vocabulary_may_lack_a_tenth_of_the_words() -> None:
    assert describe_unknown_words(0.1, "the references", "train") == []
    assert describe_unknown_words(0.101, "the references", "train") == [
        "10.1% of the words in the references are not in the vocabulary and become <unk>: train"
    ]
