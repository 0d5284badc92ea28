"""What `train` reports of its captions, and what becomes of long ones, of other scripts and of signs."""

import dataclasses
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from builders import TESTS, TINY_TRAINING, make_rows, make_store

from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.vocabulary import SPECIAL_WORDS, Vocabulary
from captionmill.data.captions.words import FIRST_RULE
from captionmill.data.errors import AnnotationError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.settings import SearchConfig, TrainConfig
from captionmill.stages.training.corpus import describe_size, fit_length
from captionmill.stages.training.train import train

CASES = TESTS / "cases" / "captions"
GREEDY = SearchConfig(beam_size=1)
CONFIG = dataclasses.replace(TINY_TRAINING, min_count=5, max_epochs=1, max_length=None, batch_size=20, search=GREEDY)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the 60 images of a case."""
    keys = [f"{number:06d}.jpg" for number in range(60)]
    return make_store(tmp_path_factory.mktemp("features") / "features.h5", keys, make_rows(60))


@pytest.mark.parametrize(
    ("lengths", "length"),
    [
        ({10: 50, 12: 50}, 20),
        ({10: 98, 40: 2}, 20),
        ({10: 97, 40: 3}, 40),
        ({10: 50, 31: 48, 500: 2}, 31),
        ({300: 5}, 100),
        ({}, 20),
    ],
)
def test_the_default_length_cuts_few_captions_and_has_a_limit(lengths: dict[int, int], length: int) -> None:
    assert fit_length(Counter(lengths)) == length


def test_the_length_follows_the_captions_and_captioning_follows_the_model(features: Path, tmp_path: Path) -> None:
    train(features, CASES / "F3_longer_than_20.csv", tmp_path / "model", CONFIG)
    bundle = read_bundle(tmp_path / "model")
    assert (bundle.training["max_length"], bundle.training["search"]["max_length"]) == (32, 32)
    assert not [note for note in bundle.notes if "cut" in note]
    captioner = Captioner.load(tmp_path / "model", device="cpu")
    assert captioner.fit_search(SearchConfig()).max_length == 32
    assert captioner.fit_search(SearchConfig(max_length=5)).max_length == 5
    evaluate(features, tmp_path / "model", CASES / "F3_longer_than_20.csv", output=tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["search"]["max_length"] == 32


def test_captions_that_are_cut_are_counted(features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note = (
        "40 of 40 training captions (100.0%) are longer than 20 words and are cut, without an end to learn; pass "
        "`max_length` 32 to cut none"
    )
    config = dataclasses.replace(CONFIG, max_length=20, max_epochs=12, learning_rate=0.05)
    with caplog.at_level(logging.WARNING):
        train(features, CASES / "F3_longer_than_20.csv", tmp_path / "model", config)
    assert note in caplog.messages
    assert note in read_bundle(tmp_path / "model").notes
    store, captioner = FeatureStore.open(features), Captioner.load(tmp_path / "model", device="cpu")
    captions = dict(captioner.captions(store, store.keys[:10], SearchConfig(max_length=30))).values()
    assert {(len(caption.text.split()), caption.cut) for caption in captions} == {(30, True)}  # none ends at the cut


def test_a_script_without_spaces_is_learned_and_scored_by_character(
    features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = dataclasses.replace(CONFIG, max_epochs=24, learning_rate=0.05)
        train(features, CASES / "F4_no_spaces.csv", tmp_path / "model", config)
        evaluation = evaluate(features, tmp_path / "model", CASES / "F4_no_spaces.csv")
    bundle = read_bundle(tmp_path / "model")
    assert {"狗", "猫", "草"} <= set(bundle.vocabulary.words)
    assert bundle.vocabulary.word_rule == 2
    assert sum("each of its characters counts as a word" in line for line in caplog.messages) == 1
    assert not [caption for caption in evaluation.captions.values() if " " in caption.text]
    assert evaluation.scores.bleu_2 > 0.01  # of sentences that are one word, no two words in a row match
    assert evaluation.statistics.mean_length > 3


def test_a_flood_of_unknown_words_is_named(features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(features, CASES / "F7_unk.csv", tmp_path / "model", CONFIG)
        evaluate(features, tmp_path / "model", CASES / "F7_unk.csv")
    assert (
        "60.0% of the words in the training captions are not in the vocabulary and become <unk>: pass a `min_count` "
        "below 5, or give it more captions"
    ) in caplog.messages
    assert (
        "60.0% of the words in the references are not in the vocabulary and become <unk>: train on captions like "
        "these, or with a lower `min_count`"
    ) in caplog.messages


def test_validation_captions_of_other_words_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{number}.jpg,{'a dog runs,train' if number < 4 else 'ein Hund rennt,val'}" for number in range(6)]
    (tmp_path / "c.csv").write_text("\n".join(["image,caption,split", *lines]), encoding="utf-8")
    store = make_store(tmp_path / "f.h5", [f"{number}.jpg" for number in range(6)], make_rows(6))
    train(store, tmp_path / "c.csv", tmp_path / "model", dataclasses.replace(CONFIG, min_count=1))
    note = (
        "100.0% of the words in the validation captions are not in the vocabulary and become <unk>: train on captions "
        "like these"
    )
    assert caplog.messages.count(note) == 1
    assert note in read_bundle(tmp_path / "model").notes


def test_captions_without_words_are_left_out_with_their_share(caplog: pytest.LogCaptureFixture) -> None:
    path = CASES / "F9_wordless.csv"
    with caplog.at_level(logging.WARNING):
        annotations = read_annotations(path)
    assert caplog.messages == [f"{path}: left out 20 captions without words, such as emoji only (33.3%)"]
    assert len(annotations.captions) == len(annotations.splits) == 40
    assert len(read_annotations(path, word_rule=FIRST_RULE).captions) == 60


def test_a_file_of_signs_only_names_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,...\nb.jpg,?!\n", encoding="utf-8")
    with pytest.raises(AnnotationError, match="no captions in this file: left out 2 captions without words, such as"):
        read_annotations(tmp_path / "captions.csv")


def test_entities_are_no_words_and_numbers_stay_whole(features: Path, tmp_path: Path) -> None:
    train(features, CASES / "F10_entities.csv", tmp_path / "model", CONFIG)
    words = read_bundle(tmp_path / "model").vocabulary
    assert not {"quot", "amp", "39", "3", "5", "isn", "t"} & set(words.words)
    assert {"3.5", "isn't", "tom"} <= set(words.words)
    first = read_annotations(CASES / "F10_entities.csv").captions["000000.jpg"]
    assert first == ('Tom & Jerry "a dog runs on grass" isn\'t 3.5 m',)


def test_rejected_and_precanned_captions_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [{"is_rejected": True}, {"is_precanned": True}, {"is_rejected": False, "is_precanned": False}, {}]
    annotations = [{"image_id": number % 3, "caption": f"a can {number}", **flag} for number, flag in enumerate(flags)]
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(3)]
    path = tmp_path / "vizwiz.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        captions = read_annotations(path).captions
    assert captions == {"2.jpg": ("a can 2",), "0.jpg": ("a can 3",)}
    assert caplog.messages == [f"{path}: left out 2 captions that are marked as rejected or precanned (50.0%)"]


def test_sets_that_are_small_for_the_network_are_named_with_what_helps() -> None:
    def describe(images: int, words: int, **settings: Any) -> list[str]:
        vocabulary = Vocabulary([*SPECIAL_WORDS, *map(str, range(words))])
        return describe_size(images, vocabulary, TrainConfig(**settings))

    assert describe(1000, 200) == describe(300, 412, init="model") == describe(300, 412, hidden_dim=256) == []
    few = "are few for a network of 512: "
    others = "; a smaller network or smaller batches do not, nor do the rarer words of a lower `min_count`"
    helps = "starting from a model of similar captions with `init` helps"
    assert describe(300, 412) == [f"300 training images {few}{helps}{others}"]
    assert describe(100, 184) == [f"100 training images and 184 words {few}{helps}{others}"]
    assert describe(5000, 184) == [f"184 words {few}{helps}{others}"]
