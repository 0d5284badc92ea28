"""Validation captions that are re-ranked after each epoch: what is measured, reported and resumed."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from builders import TINY_TRAINING, make_task, require_same_weights
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import LOW_CONFIDENCE, RERANKED_CIDER, RERANKED_LOW_CONFIDENCE, read_bundle
from captionmill.pipeline.plan.command_line import command_line
from captionmill.pipeline.plan.jobs import TrainJob
from captionmill.pipeline.plan.read import read_plan
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.settings import Rerank, SearchConfig
from captionmill.stages.training.train import train

SEARCH = SearchConfig(beam_size=2, max_length=6, rerank="both", candidates=6)
CONFIG = replace(TINY_TRAINING, search=SEARCH, matcher_epochs=3)


class Killed(BaseException):
    """As sudden as a KeyboardInterrupt."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features.h5, captions.csv and a model with a ranker."""
    folder = tmp_path_factory.mktemp("task")
    features, captions = make_task(folder)
    train(features, captions, folder / "model", CONFIG)
    return folder


def test_validation_is_re_ranked_after_each_epoch_where_its_search_says_by_what(task: Path, tmp_path: Path) -> None:
    """Nothing else of the model depends on it."""
    models = {}
    names: dict[str, Rerank] = {"each": "both", "last": "auto"}
    for name, rerank in names.items():
        config = replace(CONFIG, search=replace(SEARCH, rerank=rerank), max_epochs=1)
        train(task / "features.h5", task / "captions.csv", tmp_path / name, config)
        models[name] = read_bundle(tmp_path / name)
    require_same_weights(tmp_path / "each", tmp_path / "last")
    each, last = models["each"], models["last"]
    assert each.ranker is not None
    assert last.ranker is not None
    assert each.ranker.settings == last.ranker.settings
    assert {name: tensor.tobytes() for name, tensor in each.ranker.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in last.ranker.tensors.items()
    }
    assert each.scores["val_cider_d"] == each.scores[RERANKED_CIDER] == last.scores[RERANKED_CIDER]
    for name in (LOW_CONFIDENCE, RERANKED_LOW_CONFIDENCE):
        assert each.scores[name] == last.scores[name]
    captioner, store = Captioner.load(tmp_path / "each", device="cpu"), FeatureStore.open(task / "features.h5")
    captions = dict(captioner.captions(store, each.splits["val"], SEARCH))
    with (tmp_path / "each" / "samples.csv").open(newline="") as file:
        assert {row["key"]: row["caption"] for row in csv.DictReader(file)} == {
            key: caption.text for key, caption in captions.items()
        }
    assert "CIDEr-D 0.000, which chose the epoch; captions were re-ranked" in re.sub(
        r"\d\.\d{3}", "0.000", (tmp_path / "each" / "README.md").read_text()
    )


def test_a_model_of_greedy_validation_has_the_score_of_the_captions_that_it_writes(task: Path, tmp_path: Path) -> None:
    search = SearchConfig(beam_size=1, max_length=6, candidates=6)
    train(task / "features.h5", task / "captions.csv", tmp_path / "model", replace(CONFIG, search=search, max_epochs=1))
    scores = read_bundle(tmp_path / "model").scores
    train(
        task / "features.h5",
        task / "captions.csv",
        tmp_path / "other",
        replace(CONFIG, search=replace(search, beam_size=5), max_epochs=1),
    )
    assert scores[RERANKED_CIDER] == read_bundle(tmp_path / "other").scores[RERANKED_CIDER]


def test_what_a_training_reports_of_its_captions_is_about_those_that_the_model_writes(tmp_path: Path) -> None:
    task = make_task(tmp_path, train=12, val=12)
    reported: dict[Rerank, str] = {}
    rerank: Rerank
    for rerank in ("none", "auto"):
        search = SearchConfig(beam_size=2, max_length=6, rerank=rerank)
        epochs = None if rerank == "none" else 1
        config = replace(TINY_TRAINING, learning_rate=0.005, max_epochs=1, matcher_epochs=epochs, search=search)
        train(*task, tmp_path / rerank, config)
        reported[rerank] = " ".join(read_bundle(tmp_path / rerank).notes)
    assert "all 12 validation images have the same caption" in reported["none"]
    assert "have the same caption" not in reported["auto"]


def test_a_training_that_is_killed_after_its_ranker_ends_with_the_same_bits(task: Path) -> None:
    def die_in_epoch_2(label: str, *_: object, **__: object) -> None:
        if label.startswith("epoch 2"):
            raise Killed

    labels: list[str] = []
    arguments = (task / "features.h5", task / "captions.csv", task / "stopped", CONFIG)
    with pytest.raises(Killed):
        train(*arguments, progress=die_in_epoch_2)
    train(*arguments, progress=lambda label, *_, **__: labels.append(label))
    assert "matcher" not in labels  # it was kept
    require_same_weights(task / "model", task / "stopped")
    model, stopped = read_bundle(task / "model"), read_bundle(task / "stopped")
    assert model.scores == stopped.scores
    assert model.ranker is not None
    assert stopped.ranker is not None
    assert {name: tensor.tobytes() for name, tensor in model.ranker.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in stopped.ranker.tensors.items()
    }


def test_train_and_a_pipeline_re_rank_validation(task: Path, tmp_path: Path) -> None:
    tiny = ["--min-count", "1", "--embed-dim", "8", "--hidden-dim", "12", "--max-epochs", "1", "--matcher-epochs", "0"]
    words = ["train", str(task / "features.h5"), "--captions", str(task / "captions.csv"), *tiny]
    result = CliRunner().invoke(
        main, [*words, "--output", str(tmp_path / "model"), "--rerank", "consensus", "--candidates", "3", "--quiet"]
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"validation CIDEr-D \d\.\d{3} \(re-ranked\); ", result.output)
    search = read_bundle(tmp_path / "model").training["search"]
    assert (search["rerank"], search["candidates"]) == ("consensus", 3)
    path = tmp_path / "pipeline.toml"
    path.write_text(
        f'[train]\nfeatures = "{task / "features.h5"}"\ncaptions = "{task / "captions.csv"}"\n'
        'rerank = "consensus"\ncandidates = 3\nbeam_size = 4\n'
    )
    (planned,) = read_plan(path).tasks
    assert isinstance(planned.job, TrainJob)
    assert planned.job.config.search == SearchConfig(rerank="consensus", candidates=3, beam_size=4)
    assert command_line(planned.job).endswith("--beam-size 4 --rerank consensus --candidates 3")


def test_the_card_and_the_summary_say_so_only_where_validation_was_re_ranked(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path, val=1)  # of one image, both scores are 0
    words = ["train", str(features), "--captions", str(captions), "--min-count", "1", "--hidden-dim", "8"]
    words += ["--embed-dim", "8", "--max-epochs", "1", "--matcher-epochs", "1", "--quiet"]
    for name, options, shown in (("auto", [], ", re-ranked 0.000;"), ("each", ["--rerank", "both"], " (re-ranked);")):
        result = CliRunner().invoke(main, [*words, *options, "--output", str(tmp_path / name)])
        assert f"validation CIDEr-D 0.000{shown}" in result.output
        card = (tmp_path / name / "README.md").read_text()
        assert ("captions were re-ranked" in card) == (name == "each")
