import math
import random
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pytest
from builders import plain_bleu

from captionmill.data.errors import InputError
from captionmill.stages.scoring.metrics import CiderD, measure_captions, rouge_l, score_captions

WORDS = ("a", "dog", "runs", "on", "the", "grass", "with", "red", "ball", "and", "two", "men", "ride", "in", "snow")
CAPTIONS = {"1.jpg": "A dog runs.", "2.jpg": "Two men ride bikes."}
REFERENCES = {"1.jpg": ["A dog runs!", "The dog is running."], "2.jpg": ["Two men ride bikes", "Men on bikes"]}


def test_bleu_of_a_reference_itself_is_one() -> None:
    tokens = _tokens("a dog runs on grass")
    assert corpus_bleu([tokens], [[["snow"], tokens]]) == pytest.approx((1, 1, 1, 1), abs=1e-9)


def test_bleu_clips_repeated_words() -> None:
    # "the" is in the reference twice, and the candidate has it seven times (Papineni et al., 2002, example 2).
    bleu = corpus_bleu([["the"] * 7], [[_tokens("the cat is on the mat"), _tokens("there is a cat on the mat")]])
    assert bleu[0] == pytest.approx(2 / 7, abs=1e-9)
    assert bleu[1] == pytest.approx(0.0, abs=1e-6)


def test_bleu_punishes_brevity_against_the_nearest_reference() -> None:
    bleu = corpus_bleu([["a", "dog"]], [[_tokens("a dog runs"), _tokens("a dog runs on the grass")]])
    assert bleu[:2] == pytest.approx((math.exp(1 - 3 / 2), math.exp(1 - 3 / 2)), abs=1e-6)


def test_bleu_takes_the_shorter_of_two_references_equally_near() -> None:
    assert corpus_bleu([["a", "dog"]], [[["a"], _tokens("a dog runs")]])[0] == pytest.approx(1.0, abs=1e-6)


def test_bleu_pools_counts_over_the_corpus() -> None:
    bleu = corpus_bleu([["a", "dog"], ["snow"]], [[["a", "dog"]], [["water"]]])
    assert bleu[0] == pytest.approx(2 / 3, abs=1e-9)


def test_rouge_l_is_the_f_measure_of_the_common_subsequence() -> None:
    # LCS "a dog runs": precision 3/4, recall 3/5.
    score = rouge_l(_tokens("a brown dog runs"), [_tokens("a dog runs on grass")])
    assert score == pytest.approx((1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75), abs=1e-12)


def test_rouge_l_takes_precision_and_recall_from_different_references() -> None:
    score = rouge_l(["a", "dog"], [["dog"], _tokens("a dog runs on")])
    assert score == pytest.approx(1.0)


def test_rouge_l_of_an_empty_caption_is_zero() -> None:
    assert rouge_l([], [["a", "dog"]]) == 0.0


def test_cider_d_of_the_only_reference_is_ten() -> None:
    cider = CiderD({"1": [["a", "b", "c", "d"]], "2": [["e", "f", "g", "h"]]})
    assert cider.score("1", ["a", "b", "c", "d"]) == pytest.approx(10.0, abs=1e-12)


def test_cider_d_by_hand() -> None:
    # "x" is in both images and weighs nothing. The others weigh ln 2 in the reference (x a b) and in the candidate
    # (x a), which has one bigram less: cosine 1/sqrt(2) for words and for bigrams, 0 beyond, penalty exp(-1/72).
    cider = CiderD({"1": [["x", "a", "b"]], "2": [["x", "c", "d"]]})
    expected = 10 / 4 * (2 / math.sqrt(2)) * math.exp(-1 / 72)
    assert cider.score("1", ["x", "a"]) == pytest.approx(expected, abs=1e-12)


def test_cider_d_clips_repetition() -> None:
    cider = CiderD({"1": [["a"]], "2": [["b"]]})
    # min(3, 1) * 1 / (3 * 1) for words; two bigrams more than the reference.
    assert cider.score("1", ["a", "a", "a"]) == pytest.approx(10 / 4 / 3 * math.exp(-4 / 72), abs=1e-12)


def test_cider_d_scores_keep_the_order_of_the_candidates() -> None:
    cider = CiderD({"1": [["a", "b"]], "2": [["c", "d"]]})
    candidates = {"2": ["c", "d"], "1": ["z"]}
    np.testing.assert_allclose(cider.scores(candidates), [5.0, 0.0], atol=1e-12)


def test_score_captions_tokenizes_and_scores() -> None:
    # Every n-gram of one image weighs ln 2. The first reference is the caption itself: 3 orders of n-grams, and 4.
    # The second shares one word of 3 and 4, and two of 4 and 3, with one bigram more or less.
    first = 10 / 8 * (3 + 1 / math.sqrt(12) * math.exp(-1 / 72))
    second = 10 / 8 * (4 + 2 / math.sqrt(12) * math.exp(-1 / 72))
    scores = score_captions(CAPTIONS, {**REFERENCES, "3.jpg": ["ignored"]})
    assert astuple(scores) == pytest.approx((1, 1, 1, 1, 1, (first + second) / 2), abs=1e-8)


def test_what_each_image_adds_sums_to_the_corpus_score() -> None:
    captions, references = _random_corpus(50, seed=7)
    metrics = {metric.name: metric for metric in measure_captions(captions, references)}
    candidates = [caption.split() for caption in captions.values()]
    bleu = plain_bleu(candidates, [[reference.split() for reference in references[key]] for key in captions])
    assert [metrics[f"bleu_{order}"].value for order in (1, 2, 3, 4)] == pytest.approx(bleu, abs=1e-12)
    assert metrics["rouge_l"].value == pytest.approx(np.mean(metrics["rouge_l"].each), abs=1e-12)
    assert metrics["cider_d"].value == pytest.approx(np.mean(metrics["cider_d"].each), abs=1e-12)
    for position, key in enumerate(captions):
        alone = plain_bleu([captions[key].split()], [[reference.split() for reference in references[key]]])
        assert metrics["bleu_4"].each[position] == pytest.approx(alone[3], abs=1e-12)


def test_a_caption_without_references_is_named() -> None:
    with pytest.raises(InputError, match=r"^9\.jpg has a caption but no references"):
        score_captions({"9.jpg": "a dog"}, REFERENCES)


def test_nothing_to_score_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no captions to score"):
        score_captions({}, REFERENCES)


def corpus_bleu(candidates: list[list[str]], references: list[list[list[str]]]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of a corpus, as `score_captions` gives them."""
    captions = {str(number): " ".join(tokens) for number, tokens in enumerate(candidates)}
    texts = {str(number): [" ".join(tokens) for tokens in lists] for number, lists in enumerate(references)}
    scores = score_captions(captions, texts)
    return scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4


def _tokens(sentence: str) -> list[str]:
    return sentence.split()


def _random_sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.choice([0, 1, 2, 4, 7, 9, 11, 14, 30])))


def _random_corpus(image_count: int, *, seed: int) -> tuple[dict[str, str], dict[str, Sequence[str]]]:
    generator = random.Random(seed)
    references: dict[str, Sequence[str]] = {}
    captions: dict[str, str] = {}
    for key in map(str, range(image_count)):
        references[key] = [_random_sentence(generator) for _ in range(generator.randint(1, 5))] + ["a dog runs"]
        words = generator.choice(references[key]).split() + _random_sentence(generator).split()[:3]
        captions[key] = " ".join(words[generator.randint(0, 2) :])
    return captions, references


@pytest.mark.parametrize("image_count", [1, 2, 200])
def test_scores_equal_those_of_pycocoevalcap(image_count: int) -> None:
    bleu_module = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge_module = pytest.importorskip("pycocoevalcap.rouge.rouge")
    cider_module = pytest.importorskip("pycocoevalcap.cider.cider")
    captions, references = _random_corpus(image_count, seed=image_count)
    candidates = {key: [caption] for key, caption in captions.items()}

    bleu, bleu_each = bleu_module.Bleu(4).compute_score(references, candidates, verbose=0)
    rouge, rouge_each = rouge_module.Rouge().compute_score(references, candidates)
    cider, cider_each = cider_module.Cider().compute_score(references, candidates)

    scores = score_captions(captions, references)
    assert astuple(scores) == pytest.approx((*bleu, rouge, cider), abs=1e-6)
    each = {metric.name: metric.each for metric in measure_captions(captions, references)}
    for order in (1, 2, 3, 4):
        np.testing.assert_allclose(each[f"bleu_{order}"], bleu_each[order - 1], atol=1e-9)
    tokens = {key: caption.split() for key, caption in captions.items()}
    reference_tokens = {key: [reference.split() for reference in references[key]] for key in references}
    np.testing.assert_allclose(CiderD(reference_tokens).scores(tokens), cider_each, atol=1e-6)
    np.testing.assert_allclose([rouge_l(tokens[key], reference_tokens[key]) for key in tokens], rouge_each, atol=1e-6)
