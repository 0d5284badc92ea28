"""Training keeps the best epoch, tells what it leaves out, and never puts half a model in place of a whole one."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders import TINY_TRAINING, make_rows, make_spec, make_store, make_task

from captionmill.data.captions.splits import Splits
from captionmill.data.errors import AnnotationError, InputError, SpecMismatchError, TrainingError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.scoring.settings import EvaluateConfig
from captionmill.stages.settings import SearchConfig, TrainConfig
from captionmill.stages.split_settings import SplitLists
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.state import EpochResult
from captionmill.stages.training.train import train

CONFIG = TrainConfig(
    min_count=1,
    embed_dim=16,
    hidden_dim=32,
    dropout=0.0,
    feature_dropout=0.0,
    batch_size=6,
    learning_rate=0.02,
    max_epochs=40,
    patience=40,
)
CAPTIONS = {
    "a.jpg": ("a red ball on grass", "train"),
    "b.jpg": ("two blue boats at sea", "train"),
    "c.jpg": ("snow", "train"),
    "d.jpg": ("a red ball on grass", "val"),
    "e.jpg": ("two blue boats at sea", "val"),
    "f.jpg": ("snow", "test"),
}


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Rows of which d, e and f are near a, b and c."""
    rows = make_rows(3)
    return make_store(tmp_path / "features.h5", list(CAPTIONS), np.concatenate([rows, rows + 0.01]))


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    lines = [f"{key},{caption},{split}" for key, (caption, split) in CAPTIONS.items()]
    path.write_text("\n".join(["image,caption,split", *lines]) + "\n")
    return path


def test_a_model_learns_its_captions_and_is_scored_on_images_it_has_not_seen(
    features: Path, captions: Path, tmp_path: Path
) -> None:
    epochs: list[EpochResult] = []
    summary = train(features, captions, tmp_path / "model", CONFIG, listener=TrainListener(on_epoch=epochs.append))
    assert summary.best.val_cider == max(result.val_cider for result in epochs)
    store = FeatureStore.open(features)
    captioner = Captioner.load(tmp_path / "model", device="cpu")
    decoded = dict(captioner.captions(store, store.keys))
    assert {key: caption.text for key, caption in decoded.items()} == {key: text for key, (text, _) in CAPTIONS.items()}
    evaluation = evaluate(features, tmp_path / "model", captions, output=tmp_path / "scores.json")
    assert list(evaluation.captions) == ["f.jpg"]
    assert evaluation.scores.bleu_1 == pytest.approx(1.0)
    assert evaluation.scores.rouge_l == 1.0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["captions"]["f.jpg"] == {
        "caption": "snow",
        "confidence": round(evaluation.captions["f.jpg"].confidence, 6),
        "cider_d": round(evaluation.scores.cider_d, 6),
        "references": ["snow"],
    }
    assert scores["images_chosen_by"] == "test split of the captions file"
    assert not (tmp_path / "model.training").exists()


def test_the_bundle_names_what_it_was_made_from(features: Path, captions: Path, tmp_path: Path) -> None:
    train(features, captions, tmp_path / "model", CONFIG)
    bundle = read_bundle(tmp_path / "model")
    assert bundle.spec == make_spec(feature_dim=8)
    assert bundle.splits == {"train": ["a.jpg", "b.jpg", "c.jpg"], "val": ["d.jpg", "e.jpg"], "test": ["f.jpg"]}
    assert bundle.training["learning_rate"] == 0.02
    assert "tree" not in bundle.vocabulary
    assert set(bundle.versions) >= {"captionmill", "torch"}
    history = (tmp_path / "model" / "history.csv").read_text().splitlines()
    assert history[0] == "epoch,phase,loss,val_cider,captions_per_s,duration_s,learning_rate,best,val_loss"
    assert len(history) > 5


def test_the_same_seed_trains_the_same_model(features: Path, captions: Path, tmp_path: Path) -> None:
    config = TrainConfig(**{**vars(CONFIG), "dropout": 0.3, "max_epochs": 3})
    losses = [[epoch.loss for epoch in train(features, captions, tmp_path / name, config).history] for name in "ab"]
    assert losses[0] == losses[1]


def test_missing_and_foreign_keys_are_listed_before_training(features: Path, captions: Path, tmp_path: Path) -> None:
    with captions.open("a") as file:
        file.write("nowhere.jpg,a ghost,train\n")
    rows = make_rows(1, seed=3)
    store = FeatureStore.open(features)
    make_store(tmp_path / "more.h5", [*store.keys, "uncaptioned.jpg"], np.concatenate([store.read(range(6)), rows]))
    heard: list[Splits] = []
    config = TrainConfig(**{**vars(CONFIG), "max_epochs": 1})
    train(tmp_path / "more.h5", captions, tmp_path / "model", config, listener=TrainListener(on_splits=heard.append))
    assert heard[0].unmatched == {
        "captions without features": ["nowhere.jpg"],
        "features without captions": ["uncaptioned.jpg"],
    }
    assert (tmp_path / "model" / "unmatched.csv").read_text() == (
        "key,reason\nnowhere.jpg,captions without features\nuncaptioned.jpg,features without captions\n"
    )


def test_an_existing_model_is_replaced_only_when_asked(features: Path, captions: Path, tmp_path: Path) -> None:
    config = TrainConfig(**{**vars(CONFIG), "max_epochs": 1})
    train(features, captions, tmp_path / "model", config)
    before = (tmp_path / "model" / "bundle.json").read_bytes()
    with pytest.raises(InputError, match="holds a model already; pass `overwrite`"):
        train(features, captions, tmp_path / "model", config)
    assert (tmp_path / "model" / "bundle.json").read_bytes() == before
    train(features, captions, tmp_path / "model", TrainConfig(**{**vars(config), "seed": 5}), overwrite=True)
    assert read_bundle(tmp_path / "model").training["seed"] == 5


def test_a_loss_that_is_not_finite_ends_the_training_with_advice(
    features: Path, captions: Path, tmp_path: Path
) -> None:
    config = TrainConfig(**{**vars(CONFIG), "learning_rate": 1e37, "hidden_dim": 512})
    with pytest.raises(TrainingError, match="pass a lower `learning_rate`"):
        train(features, captions, tmp_path / "model", config)
    assert not (tmp_path / "model").exists()


def test_a_vocabulary_without_words_is_an_error(features: Path, captions: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="no word occurs 50 times in the training captions; pass a lower `min_count`"
    ):
        train(features, captions, tmp_path / "model", TrainConfig(min_count=50))


def test_captions_of_other_paths_are_an_error_that_shows_both(features: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\nphotos/a.jpg,a dog\nphotos/b.jpg,a cat\nphotos/c.jpg,a cow\n")
    with pytest.raises(AnnotationError, match=r"the captions name photos/a\.jpg, the feature store a\.jpg"):
        train(features, path, tmp_path / "model", CONFIG)


def test_features_of_another_network_are_refused(features: Path, captions: Path, tmp_path: Path) -> None:
    train(features, captions, tmp_path / "model", TrainConfig(**{**vars(CONFIG), "max_epochs": 1}))
    foreign = make_store(
        tmp_path / "g.h5", list(CAPTIONS), make_rows(6), make_spec(feature_dim=8, backbone="resnet152")
    )
    with pytest.raises(SpecMismatchError, match="backbone: resnet50, not resnet152"):
        evaluate(foreign, tmp_path / "model", captions)


def test_evaluate_scores_the_list_it_is_given_and_names_what_it_cannot(
    features: Path, captions: Path, tmp_path: Path
) -> None:
    train(features, captions, tmp_path / "model", TrainConfig(**{**vars(CONFIG), "max_epochs": 1}))
    (tmp_path / "list.txt").write_text("a.jpg\nnowhere.jpg\n")
    evaluation = evaluate(
        features,
        tmp_path / "model",
        captions,
        EvaluateConfig(search=SearchConfig(beam_size=1)),
        image_list=tmp_path / "list.txt",
    )
    assert (list(evaluation.captions), evaluation.missing) == (["a.jpg"], ("nowhere.jpg",))
    (tmp_path / "list.txt").write_text("nowhere.jpg\n")
    with pytest.raises(AnnotationError, match="nothing to score: none of 1 images"):
        evaluate(features, tmp_path / "model", captions, image_list=tmp_path / "list.txt")


def test_paths_may_be_strings(features: Path, captions: Path, tmp_path: Path) -> None:
    for name, keys in (("train", "abc"), ("val", "de")):
        (tmp_path / name).write_text("".join(f"{key}.jpg\n" for key in keys))
    config = TrainConfig(**{**vars(CONFIG), "max_epochs": 1})
    summaries = [
        train(
            of(features),
            of(captions),
            of(tmp_path / name),
            config,
            data=SplitLists(of(tmp_path / "train"), of(tmp_path / "val")),
        )
        for of, name in ((str, "text"), (Path, "path"))
    ]
    assert summaries[0].splits == summaries[1].splits
    assert (summaries[0].splits.train, summaries[0].splits.val) == (["a.jpg", "b.jpg", "c.jpg"], ["d.jpg", "e.jpg"])
    bundles = [(tmp_path / name / "bundle.json").read_bytes() for name in ("text", "path")]
    assert bundles[0] == bundles[1]
    data = json.loads((tmp_path / "text" / "config.json").read_text())["data"]
    assert data == json.loads((tmp_path / "path" / "config.json").read_text())["data"]
    assert (data["features"], data["val_list"]) == (str(features), str(tmp_path / "val"))


def test_a_training_that_memory_does_not_hold_is_one_line(tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 32768000000 bytes")

    features, captions = make_task(tmp_path)
    with pytest.raises(TrainingError, match=r"pass a smaller `batch_size` or `hidden_dim`, and `restart`$") as error:
        train(features, captions, tmp_path / "model", TINY_TRAINING, progress=fail)
    assert "\n" not in str(error.value)
