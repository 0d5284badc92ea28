"""A model bundle is whole or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders import make_spec

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.errors import ModelError
from captionmill.data.models.bundle import BUNDLE_NAME, Model, read_bundle, write_model


def make_bundle(*words: str, value: float = 1.0) -> Model:
    return Model(
        decoder_config={"feature_dim": 8, "embed_dim": 4, "hidden_dim": 4},
        vocabulary=Vocabulary(["<pad>", "<start>", "<end>", "<unk>", *words]),
        spec=make_spec(),
        training={"seed": 7},
        splits={"train": ["ü.jpg"], "val": [], "test": []},
        scores={"val_cider_d": 0.5},
        versions={"captionmill": "0"},
        tensors={"weight": np.full((2, 3), value, np.float32)},
    )


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path) -> None:
    bundle = make_bundle("tree", "Straße")
    write_model(tmp_path / "model", bundle)
    read = read_bundle(tmp_path / "model")
    assert read.vocabulary.words == bundle.vocabulary.words
    assert (read.spec, read.splits, read.training) == (bundle.spec, bundle.splits, bundle.training)
    np.testing.assert_array_equal(read.tensors["weight"], bundle.tensors["weight"])


def test_a_new_bundle_takes_the_place_of_the_old_one_and_its_weights(tmp_path: Path) -> None:
    write_model(tmp_path, make_bundle("a", value=1))
    write_model(tmp_path, make_bundle("b", value=2))
    assert read_bundle(tmp_path).vocabulary.words[4:] == ("b",)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_kill_between_weights_and_json_leaves_the_old_bundle(tmp_path: Path) -> None:
    write_model(tmp_path / "old", make_bundle("a", value=1))
    write_model(tmp_path / "new", make_bundle("b", value=2))
    for weights_path in (tmp_path / "new").glob("*.safetensors"):
        weights_path.rename(tmp_path / "old" / weights_path.name)
    bundle = read_bundle(tmp_path / "old")
    assert bundle.vocabulary.words[4:] == ("a",)
    assert bundle.tensors["weight"][0, 0] == 1
    (tmp_path / "old" / "decoder-mine.safetensors").touch()
    write_model(tmp_path / "old", make_bundle("c", value=3))  # the next one removes what was left
    assert {path.name[:8] for path in (tmp_path / "old").iterdir()} == {"bundle.j", "decoder-"}
    assert len(list((tmp_path / "old").glob("*.safetensors"))) == 2


def test_weights_of_another_training_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "a", make_bundle("a", value=1))
    write_model(tmp_path / "b", make_bundle("a", value=2))
    (own,), (foreign,) = ((tmp_path / name).glob("*.safetensors") for name in "ab")
    foreign.replace(own)
    with pytest.raises(ModelError, match=r"is not the file that bundle\.json was written with"):
        read_bundle(tmp_path / "a")
    later = read_bundle(tmp_path / "a", weights_later=True).tensors
    with pytest.raises(ModelError, match=r"is not the file that bundle\.json was written with"):
        dict(later)
    own.unlink()
    with pytest.raises(ModelError, match="is missing"):
        dict(read_bundle(tmp_path / "a", weights_later=True).tensors)


def test_weights_that_are_read_later_are_the_same(tmp_path: Path) -> None:
    write_model(tmp_path, make_bundle("a"))
    now, later = read_bundle(tmp_path).tensors, read_bundle(tmp_path, weights_later=True).tensors
    assert len(later) == 1
    np.testing.assert_array_equal(now["weight"], later["weight"])


def test_a_missing_model_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="captionmill train"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"},
        {"format_version": 99},
        {"vocabulary": ["a"]},
        {"vocabulary": ["<pad>", "<start>", "<end>", "<unk>", 1.5]},
        {"features": {}},
        {"scores": None},
        {"scores": {"val_confidence_p10": "x"}},
        {"splits": {"train": "a.jpg", "val": [], "test": []}},
        {"splits": {"train": [["a.jpg"]], "val": [], "test": []}},
        {"splits": {"train": [], "val": []}},
    ],
)
def test_a_json_that_is_no_bundle_is_a_one_line_error(tmp_path: Path, change: dict[str, object]) -> None:
    write_model(tmp_path, make_bundle("a"))
    path = tmp_path / BUNDLE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=r"bundle\.json") as error:
        read_bundle(tmp_path)
    assert "\n" not in str(error.value)
