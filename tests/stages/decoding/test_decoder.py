"""The decoder learns what it is shown, and its two ways of running agree."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import make_rows, make_store

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import Model, write_model
from captionmill.stages.decoding.captioner import Captioner, CaptionFinder, decode_rows
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder, choose_steps
from captionmill.stages.decoding.search import search_captions
from captionmill.stages.settings import FeatureScaling, SearchConfig
from captionmill.stages.training.features import measure_features

CAPTIONS = [
    "a dog runs on the beach",
    "a dog runs on the grass",
    "two men climb a rock",
    "a girl in a red dress",
    "snow",
    "the dog the dog the dog",
]


def build_decoder(vocab_size: int, *, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(1)
    return Decoder(
        DecoderConfig(
            feature_dim=16, vocab_size=vocab_size, embed_dim=32, hidden_dim=64, dropout=dropout, feature_dropout=0
        )
    )


def test_a_decoder_overfits_six_captions_exactly() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    decoder = build_decoder(len(vocabulary))
    features = torch.randn(6, 16)
    encoded = [[1, *vocabulary.encode(caption), 2] for caption in CAPTIONS]
    words = torch.tensor([row + [0] * (9 - len(row)) for row in encoded])
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(120):
        logits = decoder(features, words[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    for beam_size in (1, 3):
        decoded = search_captions(decoder, features, SearchConfig(beam_size=beam_size, max_length=10))
        assert [vocabulary.decode(caption.words) for caption in decoded] == CAPTIONS
        assert all(caption.confidence > 0.9 and not caption.cut for caption in decoded)


def test_stepping_gives_the_logits_of_teacher_forcing() -> None:
    decoder = build_decoder(11, dropout=0.5).eval()
    features, words = torch.randn(3, 16), torch.randint(4, 11, (3, 5))
    expected = decoder(features, words)
    state = decoder.start(features)
    for step in range(5):
        logits, state = decoder.step(words[:, step], state)
        torch.testing.assert_close(logits, expected[:, step])


VARIANTS: list[dict[str, Any]] = [
    {"image_input": image_input, "layers": layers, "tie_weights": tied, "feature_scaling": scaling}
    for (image_input, scaling), layers, tied in zip(
        itertools.product(("init", "first", "every"), ("standardize", "unit", "standardize-unit")),
        itertools.cycle((1, 2)),
        itertools.cycle((True, True, False, False)),
    )
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_every_kind_of_decoder_steps_as_it_is_trained_and_comes_back_from_its_bundle(
    variant: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    config = DecoderConfig(8, len(vocabulary), 6, 10, dropout=0.5, feature_dropout=0.4, **variant)
    decoder = Decoder(config).eval()
    rows = make_rows(4) * 3 + 1
    decoder.fit_features(torch.from_numpy(rows.mean(0)), torch.from_numpy(rows.std(0)))
    for parameter in decoder.parameters():  # far from the near-zero start: words would hardly matter
        torch.nn.init.normal_(parameter, std=0.7)
    features, words = torch.from_numpy(rows), torch.randint(4, len(vocabulary), (4, 5))
    with torch.no_grad():
        outputs, last = decoder.unroll(decoder.start(features), words)
        expected = decoder.score(outputs)
        assert not torch.allclose(expected[0, 0], expected[1, 0], atol=1e-3)  # the image matters
        state = decoder.start(features)
        for step in range(5):
            logits, state = decoder.step(words[:, step], state)
            torch.testing.assert_close(logits, expected[:, step], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)
    folded = choose_steps(decoder)
    state = folded.start(rows)
    for step in range(5):
        numbers, state = folded.step(words[:, step].numpy(), state)
        np.testing.assert_allclose(numbers, expected[:, step], atol=1e-4, rtol=1e-4)
    for part, expected_part in zip(state, last, strict=True):
        np.testing.assert_allclose(part, expected_part, atol=1e-4, rtol=1e-4)
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    if config.tie_weights:
        del shapes["to_logits.weight"]
    assert shapes == config.shapes()
    store = FeatureStore.open(make_store(tmp_path / "features.h5", list("abcd"), rows))
    search = SearchConfig(beam_size=1, max_length=6)
    greedy = dict(decode_rows(CaptionFinder(folded, vocabulary, search), store, store.keys))
    tensors = {name: tensor.numpy() for name, tensor in decoder.state_dict().items()}
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    write_model(tmp_path / "model", Model(asdict(config), vocabulary, store.spec, {}, splits, {}, {}, tensors))
    loaded = Captioner.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded.decoder, Decoder)
    assert loaded.decoder.config == config
    assert (loaded.decoder.to_logits.weight is loaded.decoder.embedding.weight) == variant["tie_weights"]
    assert dict(loaded.captions(store, store.keys, search)) == greedy


@pytest.mark.parametrize("scaling", ["standardize", "unit", "standardize-unit"])
def test_features_are_scaled_as_asked(scaling: FeatureScaling) -> None:
    decoder = Decoder(DecoderConfig(8, 9, 6, 10, dropout=0, feature_dropout=0, feature_scaling=scaling)).eval()
    rows = torch.from_numpy(make_rows(50)) * 3 + 1
    decoder.fit_features(rows.mean(0), rows.std(0, correction=0))
    scaled = decoder.scale(rows)
    standard = (rows - rows.mean(0)) / rows.std(0, correction=0)
    if scaling == "standardize":
        torch.testing.assert_close(scaled, standard)
    else:
        torch.testing.assert_close(scaled.square().mean(1), torch.ones(50))
        same_direction = F.cosine_similarity(scaled, rows if scaling == "unit" else standard)
        torch.testing.assert_close(same_direction, torch.ones(50))


def test_features_are_standardised_before_they_make_the_initial_state() -> None:
    decoder = build_decoder(11).eval()
    features = torch.randn(2, 16)
    hidden, cell = decoder.start(features)
    assert hidden.shape == cell.shape == (1, 2, 64)
    assert not torch.equal(hidden[0, 0], hidden[0, 1])
    std = torch.rand(16) + 0.5
    decoder.fit_features(torch.full((16,), 3.0), std)
    torch.testing.assert_close(decoder.start(features * std + 3)[0], hidden)


def test_a_number_that_never_varied_in_training_is_divided_by_a_tenth_of_the_average_deviation() -> None:
    decoder = build_decoder(11)
    decoder.fit_features(torch.zeros(16), torch.tensor([0.0] + 15 * [1.6]))
    assert decoder.feature_std.tolist() == torch.tensor([0.15] + 15 * [1.6]).tolist()
    decoder.fit_features(torch.zeros(16), torch.zeros(16))
    assert decoder.feature_std.tolist() == 16 * [1.0]


def test_features_are_measured_over_the_training_images_only(tmp_path: Path) -> None:
    rows = make_rows(9000, dim=3) * 2 + 5
    keys = [f"{number:05d}" for number in range(9000)]
    store = FeatureStore.open(make_store(tmp_path / "f.h5", keys, rows))
    mean, std = measure_features(store, keys[:8000])
    np.testing.assert_allclose(mean, rows[:8000].mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, rows[:8000].std(0), rtol=1e-5)
    constant = make_store(tmp_path / "g.h5", ["a", "b"], np.full((2, 3), 0.1, np.float32))
    assert measure_features(FeatureStore.open(constant), ["a", "b"])[1].tolist() == [0, 0, 0]


def test_forget_gates_keep_at_first_what_their_bias_says() -> None:
    torch.manual_seed(1)
    decoder = Decoder(DecoderConfig(16, 9, 6, 10, dropout=0, feature_dropout=0, layers=2))
    with torch.no_grad():
        for parameter in decoder.lstm.parameters():
            parameter.zero_()
        decoder.bias_forget_gates(2.0)
        before = decoder.start(torch.randn(3, 16))
        _, after = decoder.step(torch.tensor([1, 4, 5]), before)
    torch.testing.assert_close(after[1], torch.sigmoid(torch.tensor(2.0)) * before[1])  # the cell, of both layers
