"""A training that starts from a model: what is kept, what is added, what does not fit, and an interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import TINY_TRAINING, make_rows, make_spec, make_store, make_task
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.errors import CaptionmillError, InputError, SettingError, SpecMismatchError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.archive import pack_model
from captionmill.data.models.bundle import model_digest, read_bundle
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.train import train

KEYS = [f"{number}.jpg" for number in range(6)]
CAPTIONS = "image,caption,split\n" + "".join(
    f"{key},a purple dog and a purple boat,{'val' if key > '3' else 'train'}\n" for key in KEYS
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model of red, blue, green and grey dogs, cats and boats."""
    features, captions = make_task(tmp_path)
    train(features, captions, tmp_path / "base", replace(TINY_TRAINING, tie_weights=False))
    return tmp_path / "base"


@pytest.fixture
def new(tmp_path: Path) -> tuple[Path, Path]:
    """Features and captions of other images, with a word that the model does not know."""
    (tmp_path / "new.csv").write_text(CAPTIONS)
    return make_store(tmp_path / "new.h5", KEYS, make_rows(6, seed=7) + 2), tmp_path / "new.csv"


def starting_from(model: Path | str, **changes: Any) -> TrainConfig:
    return replace(TINY_TRAINING, init=model, **changes)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_the_words_and_weights_of_the_model_stay_where_they_are(
    tmp_path: Path, new: tuple[Path, Path], tie_weights: bool
) -> None:
    features, captions = make_task(tmp_path)
    train(features, captions, tmp_path / "base", replace(TINY_TRAINING, tie_weights=tie_weights, layers=2))
    train(*new, tmp_path / "model", starting_from(tmp_path / "base", learning_rate=0.0, max_epochs=1))
    base, model = (read_bundle(tmp_path / name) for name in ("base", "model"))
    assert model.vocabulary.words == (*base.vocabulary.words, "purple", "and")
    assert (model.decoder_config["tie_weights"], model.decoder_config["layers"]) == (tie_weights, 2)
    assert model.training["layers"] == 2
    assert model.training["init"] == str(tmp_path / "base")
    assert model.training["init_sha256"] == model_digest(tmp_path / "base")
    card = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert f"- Started from the model `{tmp_path / 'base'}`, SHA-256 of its bundle.json `" in card
    assert model.tensors.keys() == base.tensors.keys()
    for name, tensor in base.tensors.items():
        np.testing.assert_array_equal(model.tensors[name][: len(tensor)], tensor, err_msg=name)
    added = model.tensors["embedding.weight"][len(base.vocabulary) :]
    assert added.shape == (2, 8)
    assert np.abs(added).max() > 0


def test_a_model_is_changed_at_three_tenths_of_the_learning_rate(
    tmp_path: Path, base: Path, new: tuple[Path, Path]
) -> None:
    config = starting_from(base, max_epochs=2, patience=2)
    scratch = train(*new, tmp_path / "scratch", replace(config, init=None))
    started = train(*new, tmp_path / "model", config)
    rates = [[result.learning_rate for result in run.history] for run in (scratch, started)]
    assert rates[0][0] > 0
    assert rates[1] == pytest.approx([0.3 * rate for rate in rates[0]])


def test_a_model_that_starts_from_another_learns_its_new_words(
    tmp_path: Path, base: Path, new: tuple[Path, Path]
) -> None:
    config = starting_from(base, max_epochs=20, patience=20, learning_rate=0.15, dropout=0.0, feature_dropout=0.0)
    train(*new, tmp_path / "model", config)
    captioner = Captioner.load(tmp_path / "model", device="cpu")
    assert captioner.bundles[0].splits["train"] == KEYS[:3]
    captions = dict(captioner.captions(FeatureStore.open(new[0]), KEYS))
    assert captions["5.jpg"].text.startswith("a purple dog and a purple dog and a purple")


def test_a_packed_model_is_started_from_like_its_folder(tmp_path: Path, base: Path, new: tuple[Path, Path]) -> None:
    pack_model(base, tmp_path / "base.tar")
    for name, model in (("folder", base), ("packed", tmp_path / "base.tar")):
        train(*new, tmp_path / name, starting_from(model, max_epochs=1))
    folder, packed = (read_bundle(tmp_path / name) for name in ("folder", "packed"))
    for name, tensor in folder.tensors.items():
        np.testing.assert_array_equal(packed.tensors[name], tensor)


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, base: Path, new: tuple[Path, Path]) -> None:
    features, captions = new
    other = make_store(tmp_path / "other.h5", KEYS, make_rows(6), make_spec(preprocess="squash"))
    refused: list[tuple[Path, Path, TrainConfig, type[CaptionmillError], str]] = [
        (
            features,
            tmp_path / "model",
            starting_from(base, hidden_dim=16, layers=2),
            SettingError,
            f"`init`: {base} has `hidden_dim` 12, not 16, `layers` 1, not 2; leave these settings out",
        ),
        (
            other,
            tmp_path / "model",
            starting_from(base),
            SpecMismatchError,
            "do not fit: .* preprocess: crop, not squash",
        ),
        (features, base, starting_from(base), InputError, "`init` and `output` are one folder; name another `output`"),
    ]
    for store, output, config, kind, message in refused:
        with pytest.raises(kind, match=message):
            train(store, captions, output, config, overwrite=True)
    assert not (tmp_path / "model.training").exists()


def test_an_option_that_is_typed_contradicts_the_model_even_at_its_default(
    tmp_path: Path, base: Path, new: tuple[Path, Path]
) -> None:
    arguments = ["train", *map(str, new[:1]), "--captions", str(new[1]), "--output", str(tmp_path / "model")]
    arguments += ["--init", str(base), "--min-count", "1", "--max-epochs", "1", "--device", "cpu"]
    refused = CliRunner().invoke(main, [*arguments, "--embed-dim", "512"])
    assert refused.exit_code == 1
    assert refused.stderr == f"Error: --init: {base} has --embed-dim 8, not 512; leave these settings out\n"
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    assert read_bundle(tmp_path / "model").decoder_config["embed_dim"] == 8
