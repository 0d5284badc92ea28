"""Captions drawn at random: with the probabilities asked for, and the same whatever else is in the batch."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.sampling import draw_captions
from captionmill.stages.decoding.search import State, search_captions
from captionmill.stages.settings import SearchConfig

PROBABILITIES = [0.03, 0.03, 0.0, 0.04, 0.4, 0.2, 0.2, 0.1]
"""Of each word; of the three that are never chosen the sum is 0.1, and nothing ends by itself."""
KEYS = [f"{number}.jpg" for number in range(4000)]


class OneWordDecoder:
    """The same probabilities for every word of every image."""

    def start(self, features: Tensor) -> State:
        return (torch.zeros(1, len(features), 1),)

    def step(self, words: Tensor, state: State, parents: Tensor | None = None) -> tuple[Tensor, State]:
        assert parents is None
        return torch.tensor(PROBABILITIES).log().expand(len(words), -1), state


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(3)
    decoder = Decoder(DecoderConfig(8, 30, 16, 32, dropout=0.5, feature_dropout=0.3)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)
    return decoder


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(30, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {4: 4 / 9, 5: 2 / 9, 6: 2 / 9, 7: 1 / 9}),
        ({"temperature": 0.5}, {4: 16 / 25, 5: 4 / 25, 6: 4 / 25, 7: 1 / 25}),
        ({"temperature": 0.01}, {4: 1.0}),
        ({"top_k": 2}, {4: 2 / 3, 5: 1 / 3}),  # of equal words the lower index
        ({"top_k": 3}, {4: 1 / 2, 5: 1 / 4, 6: 1 / 4}),
        ({"top_p": 0.44}, {4: 1.0}),
        ({"top_p": 0.45}, {4: 2 / 3, 5: 1 / 3}),  # the word that reaches it counts
        ({"top_p": 0.8}, {4: 1 / 2, 5: 1 / 4, 6: 1 / 4}),
        ({"top_k": 3, "top_p": 0.7}, {4: 2 / 3, 5: 1 / 3}),
        ({"top_k": 3, "top_p": 0.8}, {4: 1 / 2, 5: 1 / 4, 6: 1 / 4}),
    ],
    ids=str,
)
def test_words_are_drawn_as_often_as_their_probabilities_say(
    settings: dict[str, Any], expected: dict[int, float]
) -> None:
    search = SearchConfig(sample=True, max_length=1, **settings)
    drawn = draw_captions(OneWordDecoder(), torch.zeros(4000, 1), KEYS, search)
    counts = Counter(caption.words for caption in drawn)
    assert {words[0] for words in counts} == expected.keys()
    for word, probability in expected.items():
        deviation = math.sqrt(probability * (1 - probability) * 4000)
        assert abs(counts[(word,)] - 4000 * probability) <= 4 * deviation
    for caption in drawn:
        assert caption.log_probabilities == pytest.approx([math.log(PROBABILITIES[caption.words[0]])])


def test_what_is_drawn_depends_on_seed_and_key_not_on_companions(decoder: Decoder, features: Tensor) -> None:
    keys = KEYS[:30]
    search = SearchConfig(sample=True, alternatives=2, max_length=8)

    def draw(rows: list[int], search: SearchConfig) -> list[tuple[int, ...]]:
        decoded = draw_captions(decoder, features[rows], [keys[row] for row in rows], search)
        return [words for best in decoded for words in (best.words, *(other.words for other in best.alternatives))]

    together = draw(list(range(30)), search)
    assert draw(list(range(30)), search) == together
    assert [words for row in range(30) for words in draw([row], search)] == together
    order = np.random.default_rng(0).permutation(30).tolist()
    assert draw(order, search) == [together[3 * row + number] for row in order for number in range(3)]
    assert draw(list(range(30)), SearchConfig(sample=True, max_length=8)) == together[::3]
    other = draw(list(range(30)), SearchConfig(sample=True, alternatives=2, max_length=8, seed=1))
    assert sum(left == right for left, right in zip(together, other, strict=True)) < 10
    assert len({*together}) > 80


@torch.inference_mode()
def test_what_may_not_come_is_not_drawn(decoder: Decoder, features: Tensor) -> None:
    search = SearchConfig(sample=True, alternatives=9, min_length=3, max_length=6, no_repeat_ngram=2, temperature=2.0)
    drawn = draw_captions(decoder, features, KEYS[:30], search)
    captions = [caption for best in drawn for caption in (best, *best.alternatives)]
    assert len(captions) == 300
    for caption in captions:
        assert 3 <= len(caption.words) <= 6
        assert min(caption.words) > 3
        assert caption.cut == (len(caption.words) == 6)
        pairs = list(zip(caption.words, caption.words[1:], strict=False))
        assert len({*pairs}) == len(pairs)
        assert all(word != following for word, following in pairs)
    assert any(len(set(caption.words)) < len(caption.words) for caption in captions)
    assert any(not caption.cut for caption in captions)
    drawn = draw_captions(decoder, features, KEYS[:30], replace(search, repeat_words=True))
    assert any(word == following for caption in drawn for word, following in pairwise(caption.words))


def test_the_one_likeliest_word_is_greedy_search(decoder: Decoder, features: Tensor) -> None:
    drawn = draw_captions(decoder, features, KEYS[:30], SearchConfig(sample=True, top_k=1, max_length=8))
    assert drawn == search_captions(decoder, features, SearchConfig(beam_size=1, max_length=8))


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9, "no_repeat_ngram": 2}], ids=str)
def test_logits_that_are_no_numbers_harm_no_other_image(
    decoder: Decoder, features: Tensor, settings: dict[str, Any]
) -> None:
    search = SearchConfig(sample=True, max_length=8, **settings)
    broken = features.clone()
    broken[7] = math.nan
    expected, found = (draw_captions(decoder, rows, KEYS[:30], search) for rows in (features, broken))
    assert [caption.words for caption in found[:7]] == [caption.words for caption in expected[:7]]
    assert [caption.words for caption in found[8:]] == [caption.words for caption in expected[8:]]
    assert len(found[7].words) <= 8


def test_a_caption_that_nothing_may_follow_ends() -> None:
    search = SearchConfig(sample=True, min_length=5, max_length=9, no_repeat_ngram=1)
    drawn = draw_captions(OneWordDecoder(), torch.zeros(50, 1), KEYS[:50], search)
    assert len(drawn) == 50
    for caption in drawn:
        assert sorted(caption.words) == [4, 5, 6, 7]
        assert END not in caption.words
        assert not caption.cut
