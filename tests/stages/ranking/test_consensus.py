"""Consensus and neighbours against what their definitions say, written out."""

import math
from collections import Counter

import numpy as np
import pytest

from captionmill.stages.ranking.consensus import CaptionCorpus
from captionmill.stages.ranking.neighbours import Neighbours, Reduction
from captionmill.stages.ranking.ngrams import FlatCaptions, Rarities, find_ngrams

CAPTIONS = [[[4, 5, 6, 7], [4, 5, 4, 5]], [[6, 7, 8]], [[9], [4, 9, 5, 6, 7, 8]]]
CORPUS = CaptionCorpus.of(FlatCaptions.of([words for own in CAPTIONS for words in own]), np.array([2, 1, 2]))


def count_ngrams(words: list[int]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(words[start : start + size]) for size in range(1, 5) for start in range(len(words) - size + 1))


def similarity(candidate: list[int], reference: list[int]) -> float:
    """CIDEr-D's, without clipping, of one pair, from the definition."""
    images = [set().union(*(count_ngrams(words) for words in own)) for own in CAPTIONS]

    def vector(words: list[int], size: int) -> dict[tuple[int, ...], float]:
        rarity = {
            ngram: math.log(len(images)) - math.log(max(1, sum(ngram in image for image in images)))
            for ngram in count_ngrams(words)
        }
        return {ngram: count * rarity[ngram] for ngram, count in count_ngrams(words).items() if len(ngram) == size}

    total = 0.0
    for size in range(1, 5):
        mine, others = vector(candidate, size), vector(reference, size)
        norm = math.hypot(*mine.values()) * math.hypot(*others.values())
        total += sum(mine[ngram] * others.get(ngram, 0.0) for ngram in mine) / norm if norm else 0.0
    return 10 * total / 4 * math.exp(-((len(candidate) - len(reference)) ** 2) / 72)


def test_consensus_is_the_weighted_mean_of_similarities_to_the_neighbours_captions() -> None:
    candidates = [[4, 5, 6], [6, 7, 8], [4, 5, 4, 5, 6], [10, 11], [9]]
    weights = np.array([0.25, 0.75], np.float32)
    found = CORPUS.score(FlatCaptions.of(candidates), np.array([0, 2]), weights)
    expected = [
        sum(
            weight * sum(similarity(candidate, reference) for reference in CAPTIONS[image]) / len(CAPTIONS[image])
            for image, weight in zip((0, 2), weights.tolist(), strict=True)
        )
        for candidate in candidates
    ]
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected[3] == 0 < expected[0]


def test_ngrams_do_not_cross_from_one_caption_into_the_next() -> None:
    apart = find_ngrams(FlatCaptions.of([[4, 5], [6]]))
    together = find_ngrams(FlatCaptions.of([[4, 5, 6]]))
    assert (len(apart.keys), len(together.keys)) == (4, 6)
    assert set(apart.keys.tolist()) < set(together.keys.tolist())


def test_a_rarity_is_known_for_ngrams_of_several_images_only() -> None:
    captions = FlatCaptions.of([[4, 5], [4, 4], [4, 6]])
    rarities = Rarities.measure(captions, np.array([0, 0, 1]))
    assert rarities.weights.tolist() == [0.0]  # of word 4, in both images
    assert rarities.of(np.array([rarities.keys[0], 12345], np.uint64)) == pytest.approx([0.0, math.log(2)])


def test_neighbours_have_the_highest_cosines_whatever_the_batch() -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((60, 16)).astype(np.float32)
    reduction = Reduction.fit(features, features.mean(axis=0), features.std(axis=0))
    neighbours = Neighbours(reduction, reduction.reduce(features))
    queries = random.standard_normal((7, 16)).astype(np.float32)
    found = neighbours.find(queries, 5)
    scaled = [(rows - features.mean(axis=0)) / features.std(axis=0) for rows in (queries, features)]
    mine, others = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in scaled)
    for query, (images, cosines) in enumerate(found):
        exact = mine[query] @ others.T
        assert cosines == pytest.approx(exact[images], abs=0.02)  # 8 bits
        assert exact[images].min() > np.sort(exact)[-6] - 0.02
        ((alone, same),) = neighbours.find(queries[query : query + 1], 5)
        assert alone.tolist() == images.tolist()
        assert same.tolist() == cosines.tolist()


def test_images_at_the_same_distance_are_neighbours_together() -> None:
    rows = np.array([[3, 4], [6, 8], [4, 3], [-3, -4]], np.int8)
    reduction = Reduction(np.zeros(2, np.float32), np.ones(2, np.float32), np.eye(2, dtype=np.float32))
    ((images, cosines),) = Neighbours(reduction, rows).find(np.array([[3.0, 4.0]], np.float32), 1)
    assert images.tolist() == [0, 1]
    assert cosines == pytest.approx([1, 1], abs=1e-3)
