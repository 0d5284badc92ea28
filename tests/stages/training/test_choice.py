"""Which epoch is kept where the validation CIDEr-D says nothing, and that this is said."""

import csv
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from builders import TESTS, TINY_TRAINING, make_rows, make_store

from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.pipeline.pages.run_report import ReportSources, write_run_report
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.settings import SearchConfig
from captionmill.stages.training.choice import best_epoch, cider_says_nothing, describe_choice, is_best, last_progress
from captionmill.stages.training.train import train


def history_of(*epochs: tuple[float, float]) -> list[dict[str, Any]]:
    """The rows of epochs with these validation CIDEr-Ds and losses."""
    rows: list[dict[str, Any]] = []
    for number, (cider, loss) in enumerate(epochs, start=1):
        rows.append({"epoch": number, "val_cider": cider, "val_loss": loss, "best": is_best(rows, cider, loss)})
    return rows


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [
        ([(0.1, 3.0), (0.3, 3.5), (0.2, 2.0)], 2),  # as ever: the best CIDEr-D
        ([(0.3, 3.0), (0.3, 2.0), (0.1, 1.0)], 2),
        ([(0.0, 3.0), (0.0, 2.0), (0.0, 2.5)], 2),
        ([(0.1, 3.0), (0.3, 2.9), (0.3, 2.8), (0.3, 2.7), (0.3, 2.75)], 4),  # the same captions in many epochs
        ([(0.1, 3.0), (0.3, 2.9), (0.2999, 2.8)], 2),
        ([(0.1, math.nan), (0.3, math.nan), (0.3, 2.8)], 2),
        ([(0.007, 3.0), (0.0, 2.9), (0.002, 2.8), (0.0, 2.9)], 3),  # one word in common by chance
        ([(0.007, 3.0), (0.0, 2.9), (0.012, 3.1), (0.008, 2.8)], 3),
        ([(0.7, 3.0), (0.7, 2.0), (0.7, 1.0)], 3),
        ([(0.0, 3.0), (0.0004, 2.0), (0.0, 1.0)], 3),  # noise below what is shown
        ([(0.0, 3.0), (0.0, 2.0), (0.0, 2.5), (0.2, 2.6), (0.1, 1.0)], 4),  # a slow start
        ([(0.0, math.nan), (0.0, 2.0), (0.0, 2.5)], 2),  # the first epochs are of a version without the loss
    ],
)
def test_the_epoch_kept_is_that_of_the_measure_that_says_something(
    epochs: list[tuple[float, float]], kept: int
) -> None:
    assert best_epoch(history_of(*epochs)) == kept


@pytest.mark.parametrize(
    ("epochs", "last"),
    [
        ([(0.1, 3.0), (0.3, 3.5), (0.2, 2.0)], 2),
        ([(0.3, 3.0), (0.0, 2.5), (0.0, 2.0), (0.0, 2.2)], 3),  # a word in common by chance, then a slow start
        ([(0.3, 3.0), (0.0, 3.5), (0.0, 3.2)], 1),
        ([(0.3, 3.0), (0.0, 2.5), (0.1, 2.0)], 1),
        ([(0.3, 3.0), (0.2, 2.5)], 1),
        ([(0.3, math.nan), (0.0, math.nan)], 1),
    ],
)
def test_patience_counts_from_the_last_epoch_that_was_better(epochs: list[tuple[float, float]], last: int) -> None:
    assert last_progress(history_of(*epochs)) == last


def test_one_line_reports_what_chose_the_epoch() -> None:
    assert describe_choice(history_of((0.1, 3.0), (0.2, 2.0))) == []
    assert describe_choice(history_of((0.4, 3.0))) == []
    (line,) = describe_choice(history_of((0.0, 3.0), (0.0, 2.0), (0.0, 2.5)))
    assert line == (
        "the validation CIDEr-D was 0.000 in all 3 epochs and cannot choose one: epoch 2 was kept, by the lowest cross "
        "entropy of the validation captions (2.000 nats per word)"
    )
    (line,) = describe_choice(history_of((0.007, 3.0), (0.0, 2.0)))
    assert line.startswith(
        "the validation CIDEr-D was at most 0.007 in all 2 epochs and cannot choose one: epoch 2 was"
    )
    assert cider_says_nothing([])


def write_captions(folder: Path, texts: list[str]) -> tuple[Path, Path]:
    """A store and captions, the last quarter of them for validation."""
    keys = [f"{number:02d}.jpg" for number in range(len(texts))]
    features = make_store(folder / "features.h5", keys, make_rows(len(keys)))
    first = len(keys) * 3 // 4
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = (
            (key, text, "train" if at < first else "val")
            for at, (key, text) in enumerate(zip(keys, texts, strict=True))
        )
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    return features, folder / "captions.csv"


@pytest.mark.parametrize("text", ["a dog runs", "一只狗在跑", "word " * 300], ids=["equal", "chinese", "long"])
def test_a_cider_of_nothing_neither_chooses_nor_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    task = write_captions(tmp_path, [text] * 8)
    config = dataclasses.replace(TINY_TRAINING, max_epochs=12, patience=2, learning_rate=0.02, max_length=None)
    with caplog.at_level(logging.WARNING):
        summary = train(*task, tmp_path / "model", config)
    losses = [result.val_loss for result in summary.history]
    assert {result.val_cider for result in summary.history} == {0.0}
    assert summary.best.val_loss == min(losses) < losses[0]
    assert len(losses) > 3
    bundle = read_bundle(tmp_path / "model")
    assert bundle.scores["epoch"] == summary.best.epoch
    assert bundle.scores["val_loss"] == summary.best.val_loss
    note = describe_choice([dataclasses.asdict(result) for result in summary.history])[0]
    assert f"epoch {summary.best.epoch} was kept" in note
    assert note in bundle.notes
    assert caplog.messages.count(note) == 1
    write_run_report(tmp_path / "report.html", ReportSources(models=[tmp_path / "model"]))
    assert note in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_six_images_with_one_caption_learn_it_although_their_cider_is_0(tmp_path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(6)]
    features = make_store(tmp_path / "f.h5", keys, make_rows(6))
    rows = [f"{key},a dog runs,{'train' if number < 4 else 'val'}" for number, key in enumerate(keys)]
    (tmp_path / "c.csv").write_text("\n".join(["image,caption,split", *rows]), encoding="utf-8")
    config = dataclasses.replace(
        TINY_TRAINING,
        embed_dim=16,
        hidden_dim=16,
        max_epochs=16,
        dropout=0.0,
        feature_dropout=0.0,
        batch_size=2,
        search=SearchConfig(),
    )
    summary = train(features, tmp_path / "c.csv", tmp_path / "m", config)
    assert summary.best.epoch > 5
    assert summary.best.val_cider == 0
    captions = dict(Captioner.load(tmp_path / "m", device="cpu").captions(FeatureStore.open(features), keys))
    assert {caption.text for caption in captions.values()} == {"a dog runs"}


def test_a_case_of_60_images_with_one_caption_learns_it(tmp_path: Path) -> None:
    keys = [f"{number:06d}.jpg" for number in range(60)]
    features = make_store(tmp_path / "f.h5", keys, make_rows(60))
    config = dataclasses.replace(TINY_TRAINING, max_epochs=10, max_length=None, search=SearchConfig(), batch_size=5)
    summary = train(features, TESTS / "cases" / "captions" / "F2a_same.csv", tmp_path / "m", config)
    assert summary.best.epoch > 5
    captions = dict(Captioner.load(tmp_path / "m", device="cpu").captions(FeatureStore.open(features), keys))
    assert {caption.text for caption in captions.values()} == {"a photo of a product on white"}
