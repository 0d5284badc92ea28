"""Batched search equals a simple search written for one image."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from builders import make_rows
from torch import Tensor

from captionmill.data.captions.vocabulary import END, SPECIAL_WORDS, START, Vocabulary
from captionmill.data.errors import InputError
from captionmill.stages.decoding.captioner import CaptionFinder
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.constraints import AnyArray, WordRule, likeliest_words, next_words
from captionmill.stages.decoding.decoder import Decoder, TorchSteps, choose_steps
from captionmill.stages.decoding.search import State, StepDecoder, search_captions
from captionmill.stages.settings import SearchConfig

MAX_LENGTH = 7
GREEDY = SearchConfig(beam_size=1, max_length=MAX_LENGTH, length_penalty=0.0)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Random, with weights large enough that captions differ and end at different lengths."""
    torch.manual_seed(3)
    decoder = Decoder(
        DecoderConfig(feature_dim=8, vocab_size=30, embed_dim=16, hidden_dim=32, dropout=0.5, feature_dropout=0.3)
    ).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4)
        decoder.to_logits.bias[END] += 1.5
    return decoder


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def followers(decoder: Decoder, features: Tensor) -> list["Followers"]:
    """Of the first five images."""
    with torch.inference_mode():
        return [Followers(decoder, row[None]) for row in features[:5]]


class TableDecoder:
    """Looks its logits up by a number made of the image and the words so far: exact, so that equal scores are equal."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits  # [M, V]

    def start(self, features: AnyArray) -> State:
        return (torch.asarray(features).long().view(1, -1, 1),)

    def step(self, words: Tensor, state: State, parents: Tensor | None = None) -> tuple[Tensor, State]:
        before = state[0] if parents is None else state[0][:, parents]
        place = (before * 5 + words.view(1, -1, 1)) % len(self.logits)
        return self.logits[place.view(-1)], (place,)


class Followers:
    """The words of one image [1, D] and what may follow them, computed once however many searches ask."""

    def __init__(self, decoder: StepDecoder, features: Tensor) -> None:
        self._decoder = decoder
        self._states: dict[tuple[int, ...], State] = {(): decoder.start(features)}  # after each sequence of words
        self._values: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}

    def values(self, words: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The logarithm of each word's probability after `words`."""
        if words not in self._values:
            logits, self._states[words] = self._decoder.step(torch.tensor(words[-1:]), self._states[words[:-1]])
            self._values[words] = logits[0].log_softmax(0).numpy()
        return self._values[words]


@dataclass(eq=False)
class Candidate:
    """A caption of the reference search."""

    total: np.float32
    words: tuple[int, ...]
    score: np.float32

    @property
    def has_ended(self) -> bool:
        return self.words[-1] == END


def allowed_words(values: np.ndarray, words: tuple[int, ...], search: SearchConfig) -> list[int]:
    """What may follow `words`, the likeliest first, of equal ones the lower index."""
    allowed = []
    for index in np.argsort(-values, kind="stable").tolist():
        size = search.no_repeat_ngram
        ngrams = {words[start : start + size] for start in range(len(words) - size + 1)} if size else set()
        if index == END:
            fits = len(words) >= search.min_length
        else:
            is_repeated = size > 0 and (*words, index)[-size:] in ngrams
            is_repeated |= not search.repeat_words and words[-1:] == (index,)
            fits = index > 3 and len(words) < search.longest and not is_repeated and values[index] > -math.inf
        if fits:
            allowed.append(index)
    return allowed or [END]


def search_one_image(followers: Followers, search: SearchConfig, margin: float = math.inf) -> list[tuple[int, ...]]:
    """The captions for one image, best first, with plain lists: ended ones stay in the beam with their score."""
    size = search.beam_size // search.diversity_groups
    groups = [[Candidate(np.float32(0), (START,), np.float32(0))] for _ in range(search.diversity_groups)]
    for length in range(1, search.longest + 2):
        taken: list[int] = []
        for number, group in enumerate(groups):
            candidates = []
            for beam in group:
                if beam.has_ended:
                    candidates.append(beam)
                    continue
                values = followers.values(beam.words)
                for index in allowed_words(values, beam.words[1:], search):
                    value = max(values[index], np.float32(-1e30)) if index == END else values[index]
                    total, words = beam.total + value, (*beam.words, index)
                    weight = np.float32((len(words) - 1) ** search.length_penalty)
                    penalty = np.float32(search.diversity_strength * taken.count(index) if index != END else 0)
                    candidates.append(Candidate(total, words, (total - penalty) / weight))
            groups[number] = sorted(candidates, key=lambda candidate: -candidate.score)[:size]
            taken += [beam.words[-1] for beam in groups[number] if beam not in group]
            totals = [beam.total for beam in groups[number] if not beam.has_ended]
            if totals and length < search.longest:
                limit = max(totals) - np.float32(margin)
                groups[number] = [beam for beam in groups[number] if beam.has_ended or beam.total >= limit]
            for beam in groups[number]:  # the next step sees scores without what diversity took
                beam.score = beam.total / np.float32((len(beam.words) - 1) ** search.length_penalty)
    ranked = sorted((beam for group in groups for beam in group), key=lambda beam: -beam.score)
    return list(dict.fromkeys(beam.words[1:-1] for beam in ranked))[: 1 + search.alternatives]


def assert_equals_one_image_search(
    decoder: StepDecoder,
    features: Tensor,
    search: SearchConfig,
    followers: Sequence[Followers] = (),
    margin: float = math.inf,
) -> None:
    """`followers` are those of the rows of `features`, if they are known."""
    followers = followers or [Followers(decoder, row[None]) for row in features]
    decoded = search_captions(decoder, features, search, margin=margin)
    found = [[caption.words, *(other.words for other in caption.alternatives)] for caption in decoded]
    assert found == [search_one_image(one, search, margin) for one in followers]
    (alone,) = search_captions(decoder, features[-1:], search, margin=margin)
    assert alone.words == decoded[-1].words


@torch.inference_mode()
def test_beam_of_one_equals_greedy(decoder: Decoder, features: Tensor) -> None:
    def greedy(features: Tensor) -> tuple[int, ...]:
        state, words = decoder.start(features), [START]
        while len(words) <= MAX_LENGTH:
            logits, state = decoder.step(torch.tensor(words[-1:]), state)
            words.append(allowed_words(logits[0].numpy(), tuple(words[1:]), GREEDY)[0])
            if words[-1] == END:
                return tuple(words[1:-1])
        return tuple(words[1:])

    decoded = search_captions(decoder, features, GREEDY)
    expected = [greedy(features[row : row + 1]) for row in range(len(features))]
    assert [caption.words for caption in decoded] == expected
    assert len(set(expected)) > 20
    assert len({len(words) for words in expected}) > 2


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("beam_size", range(1, 11))
@torch.inference_mode()
def test_batched_beam_equals_one_image_beam(
    decoder: Decoder, features: Tensor, followers: list[Followers], beam_size: int, length_penalty: float
) -> None:
    search = SearchConfig(
        beam_size=beam_size,
        max_length=MAX_LENGTH,
        length_penalty=length_penalty,
        alternatives=min(3, beam_size - 1),
    )
    assert_equals_one_image_search(decoder, features[:5], search, followers)


@pytest.mark.parametrize("beam_size", [4, 6])
@pytest.mark.parametrize(
    "constraints",
    [
        {"min_length": 4},
        {"min_length": MAX_LENGTH},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2, "min_length": 3},
        {"repeat_words": True},
        {"repeat_words": True, "no_repeat_ngram": 2},
        {"diversity_groups": 2},
        {"diversity_groups": 2, "diversity_strength": 3.0, "no_repeat_ngram": 2, "min_length": 2},
    ],
    ids=str,
)
@torch.inference_mode()
def test_constrained_beam_equals_one_image_beam(
    decoder: Decoder, features: Tensor, followers: list[Followers], beam_size: int, constraints: dict[str, Any]
) -> None:
    plain = SearchConfig(beam_size=beam_size, max_length=MAX_LENGTH, alternatives=2)
    constrained = replace(plain, **constraints)
    assert_equals_one_image_search(decoder, features[:5], constrained, followers)
    assert search_captions(decoder, features, constrained) != search_captions(decoder, features, plain)


@pytest.mark.parametrize("beam_size", range(1, 11))
@torch.inference_mode()
def test_equal_scores_dead_ends_and_tiny_vocabularies_equal_one_image_beam(beam_size: int) -> None:
    """Random tables of few different logits, from no word at all (only the four special ones) to sixteen."""
    chance = np.random.default_rng(beam_size)
    divisors = [groups for groups in range(1, beam_size + 1) if beam_size % groups == 0]
    for _ in range(20):
        max_length = int(chance.integers(1, 7))
        search = SearchConfig(
            beam_size=beam_size,
            length_penalty=float(chance.choice([0.0, 0.7, 1.0])),
            min_length=int(chance.integers(1, max_length + 1)),
            max_length=max_length,
            no_repeat_ngram=int(chance.integers(0, 4)),
            repeat_words=bool(chance.integers(0, 2)),
            alternatives=int(chance.integers(0, beam_size)),
            diversity_groups=int(chance.choice(divisors)),
            diversity_strength=float(chance.choice([0.0, 0.5, 1.0])),
        )
        vocab_size = int(chance.choice([4, 5, 6, 8, 20]))
        logits = torch.from_numpy(chance.integers(0, chance.choice([1, 2, 4]), (7, vocab_size))).float()
        logits[:, END] += float(chance.choice([-math.inf, -3.0, 0.0, 1.0]))
        logits[torch.from_numpy(chance.random((7, vocab_size)) < chance.choice([0.0, 0.2]))] = -math.inf
        logits[:, 0] = 1.0  # something has a probability
        margin = float(chance.choice([0.5, 2.0, math.inf]))
        assert_equals_one_image_search(TableDecoder(logits), torch.arange(3.0).unsqueeze(1), search, margin=margin)


def test_equal_words_come_in_the_order_of_their_indices() -> None:
    for count in range(1, 13):
        for seed in range(50):
            values = torch.randint(0, 4, (6, 12), generator=torch.Generator().manual_seed(seed)).float()
            values[0, 3:] = -math.inf
            expected = values.sort(dim=1, descending=True, stable=True)
            for array in (values.clone(), values.numpy().copy()):
                found, words = map(torch.asarray, likeliest_words(array, count))
                assert torch.equal(found, expected.values[:, :count])
                there = found > -math.inf
                assert torch.equal(words[there], expected.indices[:, :count][there])
                assert torch.equal(values.gather(1, words), found)  # of words at -inf, one that is


def test_no_word_is_left_out_that_belongs_to_the_best_of_its_image() -> None:
    """Words that others of the same image surely beat are not put in order, unless all words are asked for."""
    for seed in range(150):
        chance = np.random.default_rng(seed)
        count = int(chance.integers(1, 21))
        images = np.repeat(np.arange(3), chance.integers(1, count + 1, size=3))
        logits = chance.normal(size=(len(images), 4 * count + 300)).astype(np.float32)
        if seed % 3 == 0:
            np.round(2 * logits, out=logits)  # equal ones
        logits[chance.random(logits.shape) < (0.9 if seed % 5 == 0 else 0)] = -np.inf
        logits[:, 4] = 1  # something has a probability
        sums = (chance.choice([0, 1, 50]) * chance.normal(size=len(images))).astype(np.float32)
        history = np.full((len(images), 1), START)
        best = []
        for asked in (count, logits.shape[1]):
            values, words, _ = next_words(
                logits.copy(), history, WordRule(), asked, sums=sums, pools=images, images=images
            )
            totals = values + sums[:, np.newaxis]
            there = zip(*np.nonzero(values > -np.inf), strict=True)
            ranked = sorted((images[row], -totals[row, place], row, place, words[row, place]) for row, place in there)
            best.append([[one for one in ranked if one[0] == image][:count] for image in range(3)])
        assert best[0] == best[1]


@torch.inference_mode()
def test_log_probabilities_are_those_of_teacher_forcing(decoder: Decoder, features: Tensor) -> None:
    search = SearchConfig(beam_size=4, max_length=MAX_LENGTH, alternatives=3, no_repeat_ngram=2)
    found = search_captions(decoder, features, search)
    assert len(found) == len(features)
    for row, best in enumerate(found):
        scores = []
        for caption in (best, *best.alternatives):
            words = torch.tensor([[START, *caption.words]])
            expected = decoder(features[row : row + 1], words).log_softmax(-1)[0]
            values = [expected[step, word].item() for step, word in enumerate(caption.words)]
            assert caption.log_probabilities == pytest.approx(values, abs=1e-4)
            assert caption.confidence == pytest.approx(math.exp(sum(values) / len(values)), abs=1e-4)
            length = len(caption.words) + 1
            scores.append((sum(values) + expected[-1, END].item()) / length**search.length_penalty)
        assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
        assert len({caption.words for caption in (best, *best.alternatives)}) == 4


def test_the_decoder_steps_living_captions_of_unknown_images_only(decoder: Decoder, features: Tensor) -> None:
    counts = []

    class Counting:
        start = staticmethod(decoder.start)

        def step(self, words: Tensor, state: State, parents: Tensor | None = None) -> tuple[Tensor, State]:
            assert END not in words
            assert parents is not None
            assert len(parents) == len(words)
            assert all(part.shape[1] == len(parents.unique()) for part in state)  # what nothing continues is gone
            counts.append(len(words))
            return decoder.step(words, state, parents)

    search_captions(Counting(), features, SearchConfig(beam_size=3, max_length=MAX_LENGTH))
    assert counts[0] == 40  # one caption an image: all others would be the same
    assert counts[1] == 120
    assert counts[-1] < 60


def test_a_caption_that_never_ends_is_cut_and_marked(features: Tensor) -> None:
    torch.manual_seed(0)
    endless = Decoder(
        DecoderConfig(feature_dim=8, vocab_size=6, embed_dim=4, hidden_dim=4, dropout=0.0, feature_dropout=0.0)
    ).eval()
    for bias in (-100.0, -math.inf):
        with torch.no_grad():
            endless.to_logits.bias[END] = bias
        for beam_size in (1, 3):
            found = search_captions(endless, features[:3], SearchConfig(beam_size=beam_size, max_length=5))
            assert [(caption.cut, len(caption.words)) for caption in found] == [(True, 5)] * 3


def test_special_words_are_never_chosen_and_no_caption_is_empty(features: Tensor) -> None:
    torch.manual_seed(0)
    tempted = Decoder(
        DecoderConfig(feature_dim=8, vocab_size=6, embed_dim=4, hidden_dim=4, dropout=0.0, feature_dropout=0.0)
    ).eval()
    with torch.no_grad():
        tempted.to_logits.bias[:4] = 50
    for beam_size in (1, 2, 4, 9):
        decoded = search_captions(tempted, features[:4], SearchConfig(beam_size=beam_size, max_length=5))
        assert [len(caption.words) for caption in decoded] == [1] * 4
        assert {word for caption in decoded for word in caption.words} <= {4, 5}


@pytest.mark.parametrize("settings", [{"beam_size": 1}, {"alternatives": 3}, {"beam_size": 4, "diversity_groups": 2}])
def test_logits_that_are_no_numbers_harm_no_other_image(
    decoder: Decoder, features: Tensor, settings: dict[str, Any]
) -> None:
    search = SearchConfig(max_length=MAX_LENGTH, no_repeat_ngram=2, **settings)
    broken = features.clone()
    broken[7] = math.nan
    expected, found = (search_captions(decoder, rows, search) for rows in (features, broken))
    assert [caption.words for caption in found[:7]] == [caption.words for caption in expected[:7]]
    assert [caption.words for caption in found[8:]] == [caption.words for caption in expected[8:]]
    assert len(found[7].words) <= MAX_LENGTH


@pytest.mark.parametrize("settings", [{"beam_size": 1}, {"sample": True}], ids=str)
def test_no_word_follows_itself_but_a_character_that_is_a_word_once(settings: dict[str, Any]) -> None:
    insisting = torch.zeros(1, 6)
    insisting[0, END] = -100.0
    insisting[0, 4] = 100.0
    search = SearchConfig(max_length=5, **settings)

    def say(word: str, search: SearchConfig = search) -> str:
        vocabulary = Vocabulary([*SPECIAL_WORDS, word, "ok"])
        finder = CaptionFinder(TableDecoder(insisting), vocabulary, search)
        (found,) = finder.find(np.zeros((1, 1), np.float32), ["a.jpg"])
        return " ".join(vocabulary.words[index] for index in found.words)

    assert say("dog") == "dog ok dog ok dog"
    assert say("慢") == "慢 慢 ok 慢 慢"
    assert say("dog", replace(search, repeat_words=True)) == "dog dog dog dog dog"


def test_a_caption_that_nothing_may_follow_ends_before_its_least_length() -> None:
    one_word = TableDecoder(torch.zeros(3, 5))
    search = SearchConfig(beam_size=2, min_length=4, no_repeat_ngram=1)
    (caption,) = search_captions(one_word, torch.zeros(1, 1), search)
    assert caption.words == (4,)
    assert not caption.cut
    no_word = TableDecoder(torch.zeros(3, 4))
    (caption,) = search_captions(no_word, torch.zeros(1, 1), search)
    assert caption.words == ()
    assert caption.confidence == 0.0


@torch.inference_mode()
def test_a_length_penalty_makes_captions_longer(decoder: Decoder, features: Tensor) -> None:
    def mean_length(length_penalty: float) -> float:
        search = SearchConfig(beam_size=5, max_length=MAX_LENGTH, length_penalty=length_penalty)
        found = search_captions(decoder, features, search)
        return sum(len(caption.words) for caption in found) / len(found)

    assert mean_length(0.0) < mean_length(0.7) < mean_length(2.0)


@torch.inference_mode()
def test_diverse_beams_differ_more(decoder: Decoder, features: Tensor) -> None:
    def distinct_first_words(strength: float) -> int:
        search = SearchConfig(
            beam_size=4, alternatives=3, diversity_groups=4, diversity_strength=strength, max_length=MAX_LENGTH
        )
        decoded = search_captions(decoder, features, search)
        return sum(len({best.words[0], *(other.words[0] for other in best.alternatives)}) for best in decoded)

    assert distinct_first_words(0.0) == 40  # groups that do not avoid each other find the same caption
    assert distinct_first_words(100.0) == 160


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_length": 9, "max_length": 8}, "`min_length` 9 is more than `max_length` 8"),
        ({"beam_size": 3, "alternatives": 3, "rerank": "none"}, "`alternatives` 3 needs `beam_size` 4 or more, not 3"),
        ({"beam_size": 1, "alternatives": 1}, "`alternatives` 1 needs `beam_size` 2 or more, not 1"),
        ({"alternatives": 20}, "`alternatives` 20 needs `beam_size` or `candidates` 21 or more, not 20"),
        ({"beam_size": 5, "diversity_groups": 2}, "`beam_size` 5 is not a multiple of `diversity_groups` 2"),
        ({"top_k": 5}, "`top_k` does nothing without `sample`: set that too, or leave this out"),
        ({"temperature": 0.5}, "`temperature` does nothing without `sample`: set that too, or leave this out"),
        (
            {"sample": True, "diversity_groups": 5},
            "`diversity_groups` applies to beam search only: leave it or `sample` out",
        ),
        ({"sample": True, "candidates": 50}, "`candidates` applies to beam search only: leave it or `sample` out"),
        ({"sample": True, "top_p": 1.5}, "`top_p` must be at least 0.001 and at most 1, not 1.5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        SearchConfig(**settings)
    assert str(caught.value) == message


def test_numpy_and_torch_find_the_same_captions_where_there_are_fewer_than_asked_for() -> None:
    features = make_rows(3)
    for seed, vocab_size in itertools.product(range(5), (6, 12, 30)):
        torch.manual_seed(seed)
        decoder = Decoder(DecoderConfig(8, vocab_size, 16, 32, dropout=0.0, feature_dropout=0.0))
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(4)
        for search in (SearchConfig(beam_size=20, alternatives=19, max_length=4), SearchConfig(beam_size=70)):
            found, expected = (
                [[caption.words, *(other.words for other in caption.alternatives)] for caption in captions]
                for steps in (choose_steps(decoder), TorchSteps(decoder))
                for captions in (search_captions(steps, features, search),)
            )
            assert found == expected
