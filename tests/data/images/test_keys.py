"""File names from a Mac (NFD) and the names that people type (NFC) are the same images, wherever the two meet."""

import unicodedata
from pathlib import Path

import pytest
from builders import TINY_TRAINING, make_rows, make_store

from captionmill.data.captions.references import read_annotations, read_split_list
from captionmill.data.errors import AnnotationError
from captionmill.data.images.keys import match_forms
from captionmill.pipeline.explain import explain_image
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.scoring.leaks import find_leaks
from captionmill.stages.split_settings import SplitLists
from captionmill.stages.training.train import train

TYPED = [f"Gärten/Bär {number}.jpg" for number in range(6)]
ON_DISK = [unicodedata.normalize("NFD", name) for name in TYPED]
SPLITS = ["train", "train", "train", "val", "val", "test"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "features.h5", sorted(ON_DISK), make_rows(len(ON_DISK)))


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    rows = [f"{name},bear {number},{split}" for number, (name, split) in enumerate(zip(TYPED, SPLITS, strict=True))]
    path.write_text("\n".join(["image,caption,split", *rows]) + "\n", encoding="utf-8")
    return path


def test_a_name_is_matched_with_the_one_key_of_its_form_and_nothing_is_guessed() -> None:
    composed, apart = "\u1ed7.jpg", "o\u0302\u0303.jpg"  # one letter, two accents
    half = "\u00f4\u0303.jpg"
    assert match_forms([composed, "a.jpg"], {apart, "a.jpg"}) == {composed: apart}
    assert match_forms([apart], [composed]) == {apart: composed}
    assert match_forms([composed], [composed, apart]) == {}, "a key already"
    assert match_forms([composed], [apart, half]) == {}, "two keys"
    assert match_forms([composed, half], [apart]) == {}, "two names"
    assert match_forms([composed, half], [apart, half]) == {composed: apart}, "one of each is left"
    assert match_forms([composed], []) == {}


def test_captions_splits_and_lists_take_the_keys_of_the_store(tmp_path: Path, captions: Path) -> None:
    annotations = read_annotations(captions, known_keys=ON_DISK[:5])
    keys = [*ON_DISK[:5], TYPED[5]]
    assert annotations.captions == {key: (f"bear {number}",) for number, key in enumerate(keys)}
    assert annotations.splits == dict(zip(keys, SPLITS, strict=True))
    (tmp_path / "list.txt").write_text("\n".join([*TYPED[:2], "new.jpg"]), encoding="utf-8")
    assert read_split_list(tmp_path / "list.txt", known_keys=ON_DISK) == [*ON_DISK[:2], "new.jpg"]


def test_training_evaluation_and_leaks_pair_typed_names_with_files_of_a_mac(
    tmp_path: Path, store: Path, captions: Path
) -> None:
    splits = train(store, captions, tmp_path / "model", TINY_TRAINING).splits
    assert (splits.train, splits.val, splits.test, splits.unmatched) == (ON_DISK[:3], ON_DISK[3:5], ON_DISK[5:], {})

    evaluation = evaluate(store, tmp_path / "model", captions)
    assert (evaluation.references, evaluation.missing) == ({ON_DISK[5]: ("bear 5",)}, ())
    lists = {name: tmp_path / f"{name}.txt" for name in ("train", "val")}
    for name, part in (("train", TYPED[:3]), ("val", TYPED[3:])):
        lists[name].write_text("\n".join(part), encoding="utf-8")
    assert list(evaluate(store, tmp_path / "model", captions, image_list=lists["val"]).captions) == ON_DISK[3:]

    listed = train(store, captions, tmp_path / "listed", TINY_TRAINING, data=SplitLists(lists["train"], lists["val"]))
    assert (listed.splits.train, listed.splits.val) == (ON_DISK[:3], ON_DISK[3:])
    assert find_leaks(store, captions=captions).images == {"train": 3, "val": 2, "test": 1}
    assert find_leaks(store, lists=lists).images == {"train": 3, "val": 3}

    explained = explain_image(Path(TYPED[5]), tmp_path / "model", features=store, captions=captions)
    assert (explained.key, explained.explanation.references[0].text) == (ON_DISK[5], "bear 5")


def test_a_model_knows_its_images_in_the_store_of_another_machine(tmp_path: Path, store: Path, captions: Path) -> None:
    typed = make_store(tmp_path / "typed.h5", TYPED, make_rows(len(TYPED)))
    train(typed, captions, tmp_path / "model", TINY_TRAINING)
    assert find_leaks(store, model=tmp_path / "model").images == {"train": 3, "val": 2, "test": 1}
    (tmp_path / "plain.csv").write_text(
        "\n".join(["image,caption", *(f"{name},bear {number}" for number, name in enumerate(TYPED))]), encoding="utf-8"
    )
    evaluation = evaluate(store, tmp_path / "model", tmp_path / "plain.csv")
    assert (list(evaluation.captions), evaluation.chosen_by) == ([ON_DISK[5]], "the model's own test split")
    assert evaluation.statistics.copied is not None, "its training captions are found"


def test_two_files_that_look_alike_are_left_out_not_mixed_up(tmp_path: Path, captions: Path) -> None:
    half = unicodedata.normalize("NFC", "Gärten") + unicodedata.normalize("NFD", "/Bär 0.jpg")
    store = make_store(tmp_path / "features.h5", sorted([half, *ON_DISK]), make_rows(len(ON_DISK) + 1))
    splits = train(store, captions, tmp_path / "model", TINY_TRAINING).splits
    assert splits.unmatched == {
        "captions without features": [TYPED[0]],
        "features without captions": sorted([half, ON_DISK[0]]),
    }
    (tmp_path / "one.csv").write_text(f"image,caption\n{TYPED[0]},bear\n", encoding="utf-8")
    with pytest.raises(AnnotationError, match="none of the 1 captioned images has features"):
        train(store, tmp_path / "one.csv", tmp_path / "other", TINY_TRAINING)
