"""An ensemble takes the mean of its decoders' probabilities, and refuses decoders that do not fit each other."""

import csv
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_rows, make_spec, make_store
from torch import Tensor

from captionmill.data.captions.vocabulary import SPECIAL_WORDS, START, Vocabulary
from captionmill.data.errors import InputError, SpecMismatchError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import Model, write_model
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.ensemble import Ensemble
from captionmill.stages.decoding.search import search_captions
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.scoring.settings import EvaluateConfig
from captionmill.stages.settings import SearchConfig

WORDS = [*SPECIAL_WORDS, *(f"word{index}" for index in range(4, 20))]
MAX_LENGTH = 6


def make_decoder(seed: int, *, hidden_dim: int = 16, vocab_size: int = len(WORDS), **kind: Any) -> Decoder:
    """Random, with weights large enough that captions differ and end at different lengths."""
    torch.manual_seed(seed)
    config = DecoderConfig(8, vocab_size, embed_dim=8, hidden_dim=hidden_dim, dropout=0.0, feature_dropout=0.0, **kind)
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4)
    return decoder


def make_model(
    folder: Path,
    seed: int,
    *,
    words: Sequence[str] = WORDS,
    spec: FeatureSpec | None = None,
    splits: dict[str, list[str]] | None = None,
) -> Path:
    decoder = make_decoder(seed, vocab_size=len(words))
    bundle = Model(
        decoder_config=asdict(decoder.config),
        vocabulary=Vocabulary(words),
        spec=spec or make_spec(),
        training={},
        splits={"train": [], "val": [], "test": []} | (splits or {}),
        scores={},
        versions={},
        tensors={name: tensor.numpy() for name, tensor in decoder.state_dict().items()},
    )
    write_model(folder, bundle)
    return folder


@pytest.fixture
def features() -> Tensor:
    return torch.from_numpy(make_rows(30, seed=1))


@pytest.mark.parametrize("beam_size", [1, 3])
@torch.inference_mode()
def test_a_words_probability_is_the_mean_of_the_decoders(features: Tensor, beam_size: int) -> None:
    decoders = [make_decoder(1, hidden_dim=16), make_decoder(2, hidden_dim=24), make_decoder(3, hidden_dim=8)]
    search = SearchConfig(beam_size=beam_size, max_length=MAX_LENGTH, repeat_words=True)
    decoded = search_captions(Ensemble(decoders), features, search)
    for row, caption in enumerate(decoded):
        fed = torch.tensor([[START, *caption.words]])
        mean = sum(decoder(features[row : row + 1], fed)[0].double().softmax(-1) for decoder in decoders) / 3
        expected = [math.log(mean[step, word]) for step, word in enumerate(caption.words)]
        assert caption.log_probabilities == pytest.approx(expected, abs=1e-4)
    alone = [search_captions(decoder, features, search) for decoder in decoders]
    assert all([c.words for c in captions] != [c.words for c in decoded] for captions in alone)
    assert len({len(caption.words) for caption in decoded}) > 2


@torch.inference_mode()
def test_batched_ensemble_equals_one_image_at_a_time(features: Tensor) -> None:
    ensemble = Ensemble([make_decoder(1), make_decoder(2, hidden_dim=24)])
    decoded = search_captions(ensemble, features, SearchConfig(beam_size=3, max_length=MAX_LENGTH))
    alone = [
        search_captions(ensemble, row[None], SearchConfig(beam_size=3, max_length=MAX_LENGTH))[0] for row in features
    ]
    assert [caption.words for caption in decoded] == [caption.words for caption in alone]


@torch.inference_mode()
def test_a_step_returns_logarithms_that_log_softmax_leaves_alone(features: Tensor) -> None:
    ensemble = Ensemble([make_decoder(1), make_decoder(2)])
    logits, state = ensemble.step(torch.full((30,), START), ensemble.start(features))
    assert torch.allclose(logits, logits.log_softmax(-1), atol=1e-5)
    assert [tuple(part.shape) for part in state] == [(1, 30, 16)] * 4


@torch.inference_mode()
def test_each_decoder_gets_the_parts_of_its_own_state(features: Tensor) -> None:
    kinds: list[dict[str, Any]] = [{"image_input": "every", "layers": 2}, {}, {"image_input": "every"}]
    decoders = [make_decoder(seed, **kind) for seed, kind in enumerate(kinds)]
    ensemble = Ensemble(decoders)
    words = torch.full((30,), START)
    logits, state = ensemble.step(words, ensemble.start(features))
    alone = [decoder.step(words, decoder.start(features)) for decoder in decoders]
    expected = [part for _, own_state in alone for part in own_state]
    assert [len(own_state) for _, own_state in alone] == [3, 2, 3]
    assert all(torch.equal(part, other) for part, other in zip(state, expected, strict=True))
    mean = sum(own_logits.softmax(-1) for own_logits, _ in alone) / 3
    torch.testing.assert_close(logits.exp(), mean)


def test_one_model_is_its_decoder_and_with_a_copy_of_itself_says_the_same(tmp_path: Path) -> None:
    model = make_model(tmp_path / "a", 1)
    store = FeatureStore.open(make_store(tmp_path / "f.h5", [f"{n:02}" for n in range(30)], make_rows(30)))
    one = Captioner.load([model], device="cpu")
    assert type(one.decoder) is Decoder
    captions = dict(one.captions(store, store.keys))
    assert captions == dict(Captioner.load(model, device="cpu").captions(store, store.keys))
    copy = shutil.copytree(model, tmp_path / "copy")
    twice = dict(Captioner.load([model, copy], device="cpu").captions(store, store.keys))
    assert {key: caption.text for key, caption in twice.items()} == {key: c.text for key, c in captions.items()}
    assert [c.confidence for c in twice.values()] == pytest.approx([c.confidence for c in captions.values()], abs=1e-5)


def test_models_of_other_features_are_refused_by_name(tmp_path: Path) -> None:
    models = [make_model(tmp_path / "a", 1), make_model(tmp_path / "b", 2, spec=make_spec(image_size=256))]
    with pytest.raises(SpecMismatchError) as caught:
        Captioner.load(models, device="cpu")
    assert str(caught.value) == f"{models[0]} and {models[1]} do not fit: {models[0]} has image_size: 224, not 256"


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        ([*WORDS[:6], WORDS[7], WORDS[6], *WORDS[8:]], "index 6 is word6 in {0}, word7 in {1}"),
        (WORDS[:-1], "index 19 is word19 in {0}, no word in {1}"),
        ([*WORDS, "more"], "index 20 is no word in {0}, more in {1}"),
    ],
)
def test_models_with_other_words_are_refused_with_the_first_difference(
    tmp_path: Path, words: list[str], difference: str
) -> None:
    models = [make_model(tmp_path / "a", 1), make_model(tmp_path / "b", 2, words=words)]
    with pytest.raises(InputError) as caught:
        Captioner.load(models, device="cpu")
    assert str(caught.value) == (
        f"{models[0]} and {models[1]} have different vocabularies: {difference.format(*models)}; "
        "train both on the same captions, splits and `min_count`"
    )


def test_no_model_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="no model is given"):
        Captioner.load([])


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((key, "word4 word5 word6") for key in "abcdefg")])
    return path


def test_what_any_model_was_trained_on_or_chosen_by_is_no_test_image(tmp_path: Path, captions: Path) -> None:
    store = make_store(tmp_path / "f.h5", list("abcdefg"), make_rows(7))
    models = [
        make_model(tmp_path / "m", 1, splits={"train": ["a"], "val": ["b"], "test": ["c", "d", "e"]}),
        make_model(tmp_path / "n", 2, splits={"train": ["c"], "val": ["d"], "test": ["b", "e", "f"]}),
    ]
    evaluation = evaluate(store, models, captions, EvaluateConfig(device="cpu"), output=tmp_path / "scores.json")
    assert (list(evaluation.captions), evaluation.chosen_by) == (["e", "f"], "the model's own test split")
    assert json.loads((tmp_path / "scores.json").read_text())["model"] == ["m", "n"]
    models[1] = make_model(tmp_path / "n", 2, splits={"train": ["c", "e"], "val": ["d"], "test": ["a"]})
    evaluation = evaluate(store, models, captions, EvaluateConfig(device="cpu"))
    assert (list(evaluation.captions), evaluation.chosen_by) == (["f", "g"], "images that the model has not seen")


def test_scoring_what_the_second_model_was_trained_on_is_told(
    tmp_path: Path, captions: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(tmp_path / "f.h5", list("abcdefg"), make_rows(7))
    (tmp_path / "list.txt").write_text("a\nb\nc\n")
    models = [make_model(tmp_path / "m", 1, splits={"train": ["a"]}), make_model(tmp_path / "n", 2)]
    config = EvaluateConfig(device="cpu", search=SearchConfig(beam_size=1))
    evaluate(store, models, captions, config, image_list=tmp_path / "list.txt")
    make_model(tmp_path / "n", 2, splits={"train": ["c"]})
    evaluate(store, models, captions, config, image_list=tmp_path / "list.txt")
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if "images scored are" in message] == [
        "1 of the 3 images scored are ones that the model was trained on",
        "2 of the 3 images scored are ones that the model was trained on",
    ]


def test_decoders_weights_stay_those_of_their_folders(tmp_path: Path) -> None:
    models = [make_model(tmp_path / "a", 1), make_model(tmp_path / "b", 2)]
    captioner = Captioner.load(models, device="cpu")
    assert isinstance(captioner.decoder, Ensemble)
    for decoder, bundle in zip(captioner.decoder.decoders, captioner.bundles, strict=True):
        assert isinstance(decoder, Decoder)
        state = decoder.state_dict()
        for name, tensor in bundle.tensors.items():
            assert np.array_equal(state[name].numpy(), tensor)
