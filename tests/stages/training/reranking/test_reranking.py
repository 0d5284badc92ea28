"""A ranker that `train` makes: what is in the model, the captions that it chooses, and a training that is killed."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from builders import TINY_TRAINING, make_task

from captionmill.data.captions.vocabulary import UNK
from captionmill.data.errors import InputError, SettingError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import RERANKED_CIDER, RERANKED_LOW_CONFIDENCE, read_bundle
from captionmill.stages.decoding.captioner import Captioner, decode_rows
from captionmill.stages.decoding.explain import explain_features
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.scoring.settings import EvaluateConfig
from captionmill.stages.settings import Rerank, SearchConfig, TrainConfig
from captionmill.stages.training.corpus import fit_epochs
from captionmill.stages.training.reranking.grow import thin_out
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


def test_a_training_makes_a_ranker_and_measures_it(task: Path) -> None:
    model = read_bundle(task / "model")
    assert model.ranker is not None
    assert model.ranker.tensors["captions_per_image"].tolist() == [2] * 8
    assert model.scores[RERANKED_CIDER] >= 0
    assert 0 < model.scores[RERANKED_LOW_CONFIDENCE] <= 1
    assert len(list((task / "model").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("block_rows", [1, 13, 768])
def test_captions_are_the_same_whatever_the_block(task: Path, block_rows: int) -> None:
    captioner, store = Captioner.load(task / "model", device="cpu"), FeatureStore.open(task / "features.h5")
    search = captioner.fit_search(replace(SEARCH, alternatives=1))
    assert search.rerank == "both"
    found = list(decode_rows(captioner.finder(search), store, store.keys, block_rows=block_rows))
    whole = list(captioner.captions(store, store.keys, search))
    assert [(key, caption.text, caption.alternatives[0].text) for key, caption in found] == [
        (key, caption.text, caption.alternatives[0].text) for key, caption in whole
    ]
    sure = [caption.confidence for _, caption in whole]
    assert [caption.confidence for _, caption in found] == pytest.approx(sure, abs=1e-6)
    plain = dict(captioner.captions(store, store.keys, replace(search, rerank="none", beam_size=6, alternatives=5)))
    unguided = dict(captioner.captions(store, store.keys, replace(search, rerank="matcher")))
    for key, caption in unguided.items():
        candidates = [plain[key].text, *(other.text for other in plain[key].alternatives)]
        assert {caption.text, caption.alternatives[0].text} < set(candidates)
    assert any(caption.text != plain[key].text for key, caption in found)


@pytest.mark.parametrize("rerank", ["both", "matcher"])
def test_a_caption_is_as_sure_as_its_consensus(task: Path, rerank: Rerank) -> None:
    captioner, store = Captioner.load(task / "model", device="cpu"), FeatureStore.open(task / "features.h5")
    search = replace(SEARCH, rerank=rerank)
    found = list(captioner.captions(store, store.keys[:4], search))
    assert len(found) == 4
    for key, caption in found:
        explanation = explain_features(
            captioner.steps, store[key], captioner.vocabulary, search, rankers=captioner.rankers
        )
        assert explanation.choice is not None
        score = explanation.choice.candidates[0].score
        sure = explanation.caption.confidence if rerank == "matcher" else 1 - math.exp(-max(0, score.consensus))
        assert caption.confidence == pytest.approx(explanation.confidence, rel=1e-4) == pytest.approx(sure, rel=1e-4)


def test_a_training_that_is_killed_in_its_matcher_ends_with_the_same_bits(task: Path) -> None:
    deaths: list[int] = []

    def die_once(label: str, done: int, total: int, **_: object) -> None:
        if label == "matcher" and done == 2 and not deaths:
            deaths.append(done)
            raise Killed

    arguments = (task / "features.h5", task / "captions.csv", task / "killed", CONFIG)
    with pytest.raises(Killed):
        train(*arguments, progress=die_once)
    train(*arguments, progress=die_once)
    mine, others = read_bundle(task / "killed").ranker, read_bundle(task / "model").ranker
    assert mine is not None
    assert others is not None
    assert mine.settings == others.settings
    assert {name: tensor.tobytes() for name, tensor in mine.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in others.tensors.items()
    }


def test_what_a_model_lacks_is_refused_and_greedy_search_stays_greedy(task: Path, tmp_path: Path) -> None:
    features, captions = task / "features.h5", task / "captions.csv"
    unranked = replace(CONFIG, matcher_epochs=None, search=replace(SEARCH, rerank="none"))
    train(features, captions, tmp_path / "plain", unranked)
    train(features, captions, tmp_path / "no-matcher", replace(CONFIG, matcher_epochs=0, search=SEARCH_BY_CONSENSUS))
    plain, consensus, both = (
        Captioner.load(folder, device="cpu") for folder in (tmp_path / "plain", tmp_path / "no-matcher", task / "model")
    )
    auto = SearchConfig(beam_size=2)
    assert [one.fit_search(auto).rerank for one in (plain, consensus, both)] == ["none", "consensus", "both"]
    assert both.fit_search(SearchConfig(beam_size=1)).rerank == "none"
    assert both.fit_search(SearchConfig(sample=True)).rerank == "none"
    with pytest.raises(InputError, match=r"`rerank` consensus: .*/plain has nothing to re-rank by"):
        plain.fit_search(SearchConfig(rerank="consensus"))
    with pytest.raises(InputError, match=r"`rerank` matcher: .*/no-matcher has no matcher"):
        consensus.fit_search(SearchConfig(rerank="matcher"))
    with pytest.raises(SettingError, match="`rerank` applies to beam search only"):
        SearchConfig(sample=True, rerank="both")
    (tmp_path / "list.txt").write_text("08.jpg\n09.jpg\n")
    config, steps = EvaluateConfig(device="cpu", search=SEARCH_BY_CONSENSUS), list[int]()
    with pytest.raises(InputError, match=r"`rerank` consensus: .*/plain has nothing to re-rank by"):
        evaluate(
            features,
            task / "model",
            captions,
            config,
            image_list=tmp_path / "list.txt",
            against=tmp_path / "plain",
            progress=lambda label, done, total, **_: steps.append(done),
        )
    assert steps == []  # nothing was captioned before
    many = SearchConfig(beam_size=2, alternatives=19)  # as many as there are candidates, if they are re-ranked
    assert both.fit_search(many).alternatives == 19
    with pytest.raises(SettingError, match="`alternatives` 19 needs `beam_size` 20 or more, not 2"):
        plain.fit_search(many)
    ensemble = Captioner.load([task / "model", tmp_path / "plain"], device="cpu")
    assert ensemble.rankers == ()
    with pytest.raises(InputError, match=r"`rerank` both: .*/plain has nothing"):  # the one of the two that lacks it
        ensemble.fit_search(SearchConfig(rerank="both"))


SEARCH_BY_CONSENSUS = replace(SEARCH, rerank="consensus")


def test_few_images_get_a_ranker_only_if_it_is_asked_for(task: Path, tmp_path: Path) -> None:
    search = SearchConfig(beam_size=1, max_length=6)
    for name, epochs in (("default", None), ("asked", 1)):
        config = replace(CONFIG, search=search, matcher_epochs=epochs, max_epochs=1)
        train(task / "features.h5", task / "captions.csv", tmp_path / name, config)
    found = [read_bundle(tmp_path / name).ranker is not None for name in ("default", "asked")]
    assert found == [False, True]


def test_a_matcher_is_not_asked_for_and_left_out_at_once() -> None:
    with pytest.raises(SettingError, match="`matcher_epochs` does nothing with `rerank` none: leave one out"):
        TrainConfig(matcher_epochs=3, search=SearchConfig(rerank="none"))
    with pytest.raises(SettingError, match="`rerank` both needs a matcher"):
        TrainConfig(matcher_epochs=0, search=SearchConfig(rerank="both"))


def test_few_captions_get_more_epochs() -> None:
    assert [fit_epochs(count, 10, 40) for count in (566_000, 30_000, 7_500, 100)] == [10, 10, 20, 40]


def test_a_training_from_a_model_keeps_its_ranker_which_grows_by_the_new_images(task: Path, tmp_path: Path) -> None:
    lines = ["image,caption,split", "03.jpg,a red zebra,train", "05.jpg,there is a zebra,train", "09.jpg,a dog,val"]
    (tmp_path / "corrected.csv").write_text("\n".join(lines) + "\n")
    config = replace(TINY_TRAINING, init=task / "model", max_epochs=1)
    train(task / "features.h5", tmp_path / "corrected.csv", tmp_path / "grown", config)
    old, new = read_bundle(task / "model"), read_bundle(tmp_path / "grown")
    assert old.ranker is not None
    assert new.ranker is not None
    assert new.ranker.tensors["captions_per_image"].tolist() == [2] * 8 + [1, 1]
    assert new.ranker.tensors["words"].max() == new.vocabulary.index("zebra") == len(old.vocabulary)
    embeddings = [model.ranker.tensors["matcher.embedding.weight"] for model in (old, new) if model.ranker]
    assert embeddings[1].tolist() == [*embeddings[0].tolist(), embeddings[0][UNK].tolist()]
    captioner, store = Captioner.load(tmp_path / "grown", device="cpu"), FeatureStore.open(task / "features.h5")
    search = captioner.fit_search(SearchConfig(beam_size=2, max_length=6))
    assert search.rerank == "both"
    assert len(list(captioner.captions(store, store.keys, search))) == 10
    validated = replace(config, search=SearchConfig(beam_size=2, rerank="both"))
    train(task / "features.h5", tmp_path / "corrected.csv", tmp_path / "validated", validated)
    grown = read_bundle(tmp_path / "validated").ranker
    assert grown is not None
    assert grown.tensors["captions_per_image"].tolist() == [2] * 8 + [1, 1]
    asked = replace(config, matcher_epochs=0)
    train(task / "features.h5", tmp_path / "corrected.csv", tmp_path / "without", asked)
    assert read_bundle(tmp_path / "without").ranker is None


def test_of_many_images_some_are_kept_evenly_spaced() -> None:
    assert thin_out(8, 20).tolist() == [*range(8)]
    assert thin_out(8, 4).tolist() == [0, 2, 4, 7]
    assert thin_out(8, 0).tolist() == [0]
