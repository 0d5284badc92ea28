"""A row that is not what was written is never used: it is left out with its reason, and `extract` makes it again."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from builders import TINY_TRAINING, damage, make_model, make_rows, make_spec, make_store, make_task
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.captions.splits import Splits
from captionmill.data.errors import (
    AnnotationError,
    CaptionmillError,
    InputError,
    MissingRowError,
    StoreDamageError,
    StoreError,
)
from captionmill.data.features.file import checksum_rows, write_store_file
from captionmill.data.features.store import FeatureStore
from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.captioning.folder import caption_folder
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.encoding.extract import extract
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.scoring.leaks import find_leaks
from captionmill.stages.scoring.settings import BootstrapConfig, EvaluateConfig, LeakConfig
from captionmill.stages.settings import ExtractConfig, SearchConfig
from captionmill.stages.training.features import measure_features
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.train import train

SEARCH = SearchConfig(beam_size=1, max_length=4)


def run(*arguments: object) -> str:
    """What a command says on the way, when it succeeds."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_python_gets_the_row_or_an_error_that_names_it(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a.jpg", "b.jpg", "c.jpg"], make_rows(3))
    damage(path, "b.jpg")
    store = FeatureStore.open(path)
    reason = "the row of b.jpg is damaged; run extract again, which makes damaged rows again"
    for read in (lambda: store["b.jpg"], lambda: store.read([0, 1]), lambda: list(store.blocks())):
        with pytest.raises(StoreDamageError) as error:
            read()
        assert str(error.value) == f"{path}: {reason}"
    np.testing.assert_array_equal(store.read([2, 0]), make_rows(3)[[2, 0]])
    assert store.verify() == ["b.jpg"]
    assert store.verify(["a.jpg", "c.jpg", "no.jpg"]) == []
    captioner = Captioner.load(make_model(tmp_path / "model", store.spec), device="cpu")
    with pytest.raises(StoreDamageError, match=r"the row of b\.jpg is damaged"):
        list(captioner.captions(store, store.keys, SEARCH))


def test_a_missing_row_is_a_key_error_and_one_line(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a.jpg"], make_rows(1))
    store = FeatureStore.open(path)
    for read in (lambda: store["no.jpg"], lambda: store.position("no.jpg"), lambda: store.source("no.jpg")):
        with pytest.raises(MissingRowError) as error:
            read()
        assert isinstance(error.value, KeyError)
        assert isinstance(error.value, CaptionmillError)
        assert str(error.value) == f"{path}: no row for no.jpg; `captionmill extract` makes one"


def test_extract_makes_it_again_and_no_other(
    photos: Path, thin_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = thin_config(thin_weights)
    extract(photos, tmp_path / "f.h5", config)
    whole = damage(tmp_path / "f.h5", "red_0.png", "more/green_1.png")
    with caplog.at_level(logging.WARNING):
        summary = extract(photos, tmp_path / "f.h5", config)
    assert (summary.cached, summary.extracted) == (6, 2)
    assert f"{tmp_path / 'f.h5'}: 2 of the rows there are damaged and will be made again (more/green_1.png, ...)" in [
        record.getMessage() for record in caplog.records
    ]
    assert (tmp_path / "f.h5").read_bytes() == whole


def thin_config(weights: Path) -> ExtractConfig:
    return ExtractConfig(
        backbone="scenes-resnet14",
        weights=str(weights),
        preprocess="squash",
        image_size=32,
        engine="torch",
        device="cpu",
    )


def test_caption_makes_it_again_from_its_image(
    photos: Path, thin_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = thin_config(thin_weights)
    extract(photos, tmp_path / "f.h5", config)
    model = make_model(tmp_path / "model", FeatureStore.open(tmp_path / "f.h5").spec)
    cache = CacheConfig(features=tmp_path / "f.h5", weights=thin_weights, machine=config)
    caption_folder(photos, model, tmp_path / "first.csv", SEARCH, cache=cache)
    damage(tmp_path / "f.h5", "red_0.png")
    summary = caption_folder(photos, model, tmp_path / "second.csv", SEARCH, cache=cache)
    assert (summary.cached, summary.captioned, len(summary.failures)) == (7, 8, 1)
    assert (tmp_path / "second.csv").read_bytes() == (tmp_path / "first.csv").read_bytes()
    assert sum("will be made again" in record.getMessage() for record in caplog.records) == 1


def test_caption_of_a_store_gives_it_a_reason_and_later_its_caption(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a.jpg", "b.jpg", "c.jpg"], make_rows(3))
    model, table = make_model(tmp_path / "model", make_spec()), tmp_path / "t.csv"
    caption_folder(path, model, tmp_path / "sound.csv", SEARCH)
    before = damage(path, "b.jpg")
    assert caption_folder(path, model, table, SEARCH).captioned == 2
    sound, rows = list(read_captions(tmp_path / "sound.csv")), list(read_captions(table))
    reason = "its row in f.h5 is damaged; run extract again, which makes it again"
    assert rows == [sound[0], CaptionRow("b.jpg", "", None, status="failed", error=reason), sound[2]]
    path.write_bytes(before)
    assert caption_folder(path, model, table, SEARCH).made == 1
    assert table.read_bytes() == (tmp_path / "sound.csv").read_bytes()
    damage(path, "a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(InputError, match=r"none of 3 images can be read; the reasons are in .*t\.csv"):
        caption_folder(path, model, table, SEARCH)


def test_train_leaves_it_out_and_lists_it(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path, train=8, val=2)
    damage(features, "03.jpg")
    heard: list[Splits] = []
    listener = TrainListener(on_splits=heard.append)
    train(features, captions, tmp_path / "model", TINY_TRAINING, listener=listener)
    assert heard[0].train == [f"{number:02d}.jpg" for number in (0, 1, 2, 4, 5, 6, 7)]
    assert heard[0].val == ["08.jpg", "09.jpg"]
    with (tmp_path / "model" / "unmatched.csv").open() as file:
        assert list(csv.reader(file)) == [["key", "reason"], ["03.jpg", "damaged features, which extract makes again"]]
    damage(features, "08.jpg", "09.jpg")
    with pytest.raises(AnnotationError, match="the features of all images of split val are damaged; run extract again"):
        train(features, captions, tmp_path / "other", TINY_TRAINING)


def test_a_number_that_is_not_finite_is_named_even_if_its_checksum_fits(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a.jpg", "b.jpg"], make_rows(2))
    store = FeatureStore.open(path)
    rows = make_rows(2)
    rows[1, 2] = np.inf
    sources = np.zeros((2, 3), np.uint64)
    block = (store.keys, rows, checksum_rows(store.keys, rows, sources), sources)
    write_store_file(path, store.spec, 2, [block], dtype="float32", made_by={})
    with pytest.raises(StoreError, match=r"the row of b\.jpg was written with numbers that are not finite"):
        measure_features(FeatureStore.open(path), ["a.jpg", "b.jpg"])


def test_evaluate_leaves_it_out_and_lists_it(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path, train=4, val=4)
    captions.write_text(captions.read_text().replace(",val", ",test"))
    model = make_model(tmp_path / "model", make_spec())
    config = EvaluateConfig(search=SEARCH, bootstrap=BootstrapConfig(resamples=10), device="cpu")
    sound = evaluate(features, model, captions, config)
    before = damage(features, "05.jpg")
    evaluation = evaluate(features, model, captions, config, output=tmp_path / "scores.json")
    assert (list(evaluation.captions), evaluation.damaged) == (["04.jpg", "06.jpg", "07.jpg"], ("05.jpg",))
    assert evaluation.missing == sound.missing == sound.damaged == ()
    assert '"damaged": [\n  "05.jpg"\n ]' in (tmp_path / "scores.json").read_text()
    said = run("evaluate", features, "--model", model, "--captions", captions, "--resamples", 10, "--quiet")
    assert "Not scored, as their features are damaged: 1; run extract again\n  05.jpg\n" in said
    features.write_bytes(before)
    damage(features, "04.jpg", "05.jpg", "06.jpg", "07.jpg")
    with pytest.raises(AnnotationError, match="has features and references that are not damaged"):
        evaluate(features, model, captions, config)


def test_leaks_leaves_it_out_and_lists_it(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path, train=4, val=2)  # 04 is nearly 00, 05 nearly 01
    damage(features, "00.jpg")
    report = find_leaks(features, captions, LeakConfig(), device="cpu")
    assert [(pair.key_a, pair.key_b) for pair in report.pairs] == [("01.jpg", "05.jpg")]
    assert (report.damaged, report.without_features, report.in_no_split) == (("00.jpg",), (), 0)
    said = run("leaks", features, "--captions", captions, "--quiet")
    assert "Not compared, as their features are damaged: 1; run extract again\n  00.jpg\n" in said


@pytest.mark.parametrize("command", ["explain", "export"])
def test_what_cannot_leave_it_out_ends_in_one_line(tmp_path: Path, command: str) -> None:
    path = make_store(tmp_path / "f.h5", ["a.jpg", "b.jpg"], make_rows(2))
    model = make_model(tmp_path / "model", make_spec())
    damage(path, "b.jpg")
    words: dict[str, list[object]] = {
        "explain": ["explain", "b.jpg", "--model", model, "--features", path, "--output", tmp_path / "out.html"],
        "export": ["features", "export", path, "--output", tmp_path / "out.npy"],
    }
    result = CliRunner().invoke(main, [str(word) for word in words[command]], catch_exceptions=False)
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {path}: the row of b.jpg is damaged; run extract again, which makes damaged rows again\n"
    )
    assert list(tmp_path.glob("out.*")) == []
