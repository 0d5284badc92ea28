"""Consensus and the weights of images against what their definitions say, written out."""

import math
from collections import Counter

import numpy as np
import pytest

from captionmill.stages.ranking.consensus import CaptionIndex
from captionmill.stages.ranking.ngrams import FlatCaptions, NGramIdf, find_ngrams
from captionmill.stages.ranking.regression import RIDGE, ImageRegression, Reduction

CAPTIONS = [
    [[4, 5, 6, 7], [4, 5, 4, 5]],
    [[6, 7, 8]],
    [[9], [4, 9, 5, 6, 7, 8]],
    *[[[5, 12], [5]]] * 6,
]  # word 5 is frequent
OWNERS = np.repeat(np.arange(len(CAPTIONS)), [len(own) for own in CAPTIONS])
INDEX = CaptionIndex.of(FlatCaptions.of([words for own in CAPTIONS for words in own]), OWNERS)


def count_ngrams(words: list[int]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(words[start : start + size]) for size in range(1, 5) for start in range(len(words) - size + 1))


IMAGES = [set().union(*(count_ngrams(words) for words in own)) for own in CAPTIONS]


def similarity(candidate: list[int], reference: list[int]) -> float:
    """CIDEr-D's, without clipping, of one pair, by the n-grams that two images have."""

    def vector(words: list[int], size: int) -> dict[tuple[int, ...], float]:
        images = {ngram: sum(ngram in image for image in IMAGES) for ngram in count_ngrams(words)}
        weights = {
            ngram: count * math.log(len(CAPTIONS) / max(1, images[ngram]))
            for ngram, count in count_ngrams(words).items()
        }
        return {ngram: weight for ngram, weight in weights.items() if len(ngram) == size}

    def is_shared(ngram: tuple[int, ...]) -> bool:
        return sum(ngram in image for image in IMAGES) > 1

    total = 0.0
    for size in range(1, 5):
        mine, others = vector(candidate, size), vector(reference, size)
        norm = math.hypot(*mine.values()) * math.hypot(*others.values())
        product = sum(mine[ngram] * others.get(ngram, 0.0) for ngram in mine if is_shared(ngram))
        total += product / norm if norm else 0.0
    return 10 * total / 4 * math.exp(-((len(candidate) - len(reference)) ** 2) / 72)


def test_consensus_is_the_weighted_sum_of_the_mean_similarities_to_each_images_captions() -> None:
    candidates = [[4, 5, 6], [6, 7, 8], [4, 5, 4, 5, 6], [10, 11], [9]]
    owners = np.array([0, 0, 1, 1, 1])  # one more image has no candidates
    weights = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    found = INDEX.score(FlatCaptions.of(candidates), owners, weights)
    expected = [
        sum(
            weight * sum(similarity(candidate, reference) for reference in own) / len(own)
            for weight, own in zip(weights[owner].tolist(), CAPTIONS, strict=True)
        )
        for candidate, owner in zip(candidates, owners.tolist(), strict=True)
    ]
    assert found == pytest.approx(expected, abs=3e-3)  # float16
    assert expected[3] == 0 < expected[0]


@pytest.mark.parametrize("candidates", [[[4]], [[4, 5]], [[4], [5]], [[], [4, 5, 6]], [[]]])
def test_however_few_words_the_candidates_have_they_have_a_consensus(candidates: list[list[int]]) -> None:
    owners = np.zeros(len(candidates), np.int64)
    assert INDEX.score(FlatCaptions.of(candidates), owners, np.ones((1, 9), np.float32)).shape == owners.shape


def test_captions_of_more_words_than_an_index_counts_are_as_long_as_one_another() -> None:
    words = [4, 5, 6] * 200
    index = CaptionIndex.of(FlatCaptions.of([words, words, [7]]), np.array([0, 1, 2]))
    found = index.score(FlatCaptions.of([words]), np.array([0]), np.array([[1, 0, 0]], np.float32))
    assert found == pytest.approx([10], abs=0.1)


def test_ngrams_do_not_cross_from_one_caption_into_the_next() -> None:
    apart = find_ngrams(FlatCaptions.of([[4, 5], [6]]))
    together = find_ngrams(FlatCaptions.of([[4, 5, 6]]))
    assert (len(apart.keys), len(together.keys)) == (4, 6)
    assert set(apart.keys.tolist()) < set(together.keys.tolist())


def test_a_rarity_is_known_for_ngrams_of_several_images_only() -> None:
    captions = FlatCaptions.of([[4, 5], [4, 4], [4, 6]])
    idf = NGramIdf.fit(captions, np.array([0, 0, 1]))
    assert idf.weights.tolist() == [0.0]  # of word 4, in both images
    assert idf.of(np.array([idf.keys[0], 12345], np.uint64)) == pytest.approx([0.0, math.log(2)])


def make_features(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


@pytest.mark.parametrize("count", [60, 1300])  # more than the eigenvectors that are kept
def test_the_weights_are_those_of_kernel_ridge_regression_whatever_the_batch(count: int) -> None:
    features, queries = make_features(count), make_features(7, seed=1)
    reduction = Reduction.fit(features, features.mean(axis=0), features.std(axis=0))
    regression = ImageRegression.fit(reduction, reduction.reduce(features))
    weights, cosines = regression.weights(queries)
    scaled = [(rows - features.mean(axis=0)) / features.std(axis=0) for rows in (queries, features)]
    mine, others = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in scaled)
    assert cosines == pytest.approx(mine @ others.T, abs=0.02)  # 8 bits
    solved = np.linalg.inv(np.exp(others @ others.T - 1) + RIDGE * np.eye(count))
    assert weights == pytest.approx(np.exp(mine @ others.T - 1) @ solved, abs=0.02)
    alone, same = regression.weights(queries[:1])
    assert same.tolist() == cosines[:1].tolist()
    assert np.abs(alone - weights[:1]).sum() < 5e-5 * np.abs(alone).sum()
