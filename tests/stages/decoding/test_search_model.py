"""Beam search against a plain enumeration of every caption of a tiny vocabulary."""

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as draw
from properties import plain
from torch import Tensor

from captionmill.data.captions.vocabulary import END, SPECIAL_WORDS, START
from captionmill.stages.decoding.search import State, search_captions
from captionmill.stages.settings import SearchConfig

WORDS = tuple(range(len(SPECIAL_WORDS), len(SPECIAL_WORDS) + 3))
LONGEST = 3
ALL = 1 + sum(len(WORDS) ** length for length in range(1, LONGEST + 1))
"""Captions that compete at most: with a beam this wide nothing is left out."""
STEPS = 97


class HistoryDecoder:
    """Logits by all words so far, and by the image."""

    def __init__(self, seed: int) -> None:
        size = len(SPECIAL_WORDS) + len(WORDS)
        self.logits = torch.randn(STEPS, size, generator=torch.Generator().manual_seed(seed)) * 2
        self.table = self.logits.log_softmax(1).tolist()

    def start(self, features: Tensor) -> State:
        return (features[:, 0].long().view(1, -1, 1),)

    def step(self, words: Tensor, state: State, parents: Tensor | None = None) -> tuple[Tensor, State]:
        before = state[0] if parents is None else state[0][:, parents]
        place = (before * 7 + words.view(1, -1, 1)) % STEPS
        return self.logits[place.view(-1)], (place,)

    def log_probabilities(self, image: int, words: tuple[int, ...]) -> list[float]:
        """Of each of `words` after those before it."""
        place, found = image, []
        for last, word in itertools.pairwise((START, *words)):
            place = (place * 7 + last) % STEPS
            found.append(self.table[place][word])
        return found


def is_allowed(words: tuple[int, ...], search: SearchConfig) -> bool:
    size = search.no_repeat_ngram
    ngrams = [words[start : start + size] for start in range(len(words) - size + 1)] if size else []
    doubles = any(left == right for left, right in itertools.pairwise(words))
    return len(words) >= search.min_length and len(ngrams) == len(set(ngrams)) and (search.repeat_words or not doubles)


def best_captions(decoder: HistoryDecoder, image: int, search: SearchConfig) -> list[tuple[float, tuple[int, ...]]]:
    """Score and words of every caption that may be, best first."""
    found = []
    for length in range(LONGEST + 1):
        for words in itertools.product(WORDS, repeat=length):
            if is_allowed(words, search):
                total = math.fsum(decoder.log_probabilities(image, (*words, END)))
                found.append((total / (length + 1) ** search.length_penalty, words))
    return sorted(found, reverse=True)


SEARCHES = draw.builds(
    SearchConfig,
    beam_size=draw.just(ALL),
    max_length=draw.just(LONGEST),
    min_length=draw.integers(1, 2),
    length_penalty=draw.sampled_from([0.0, 0.7, 1.0]),
    no_repeat_ngram=draw.integers(0, 2),
    repeat_words=draw.booleans(),
    alternatives=draw.integers(0, 4),
)


@plain
@given(draw.integers(0, 2**31), SEARCHES)
def test_a_beam_that_leaves_nothing_out_finds_the_best_of_all_captions(seed: int, search: SearchConfig) -> None:
    decoder = HistoryDecoder(seed)
    decoded = search_captions(decoder, torch.tensor([[3.0], [8.0]]), search)
    for image, caption in zip((3, 8), decoded, strict=True):
        every = best_captions(decoder, image, search)
        found = [caption.words, *(other.words for other in caption.alternatives)]
        assert found == [words for _, words in every[: 1 + search.alternatives]]


@plain
@given(draw.integers(0, 2**31), SEARCHES, draw.integers(1, 5))
def test_a_narrow_beam_finds_an_allowed_caption_that_is_no_better_than_the_best(
    seed: int, search: SearchConfig, beam_size: int
) -> None:
    decoder = HistoryDecoder(seed)
    narrow = SearchConfig(**vars(search) | {"beam_size": beam_size, "alternatives": 0})
    caption = search_captions(decoder, torch.tensor([[5.0]]), narrow)[0]
    every = {words: score for score, words in best_captions(decoder, 5, search)}
    assert caption.words in every
    assert every[caption.words] <= max(every.values())
    expected = decoder.log_probabilities(5, caption.words)
    torch.testing.assert_close(list(caption.log_probabilities), expected, rtol=1e-5, atol=1e-5)
