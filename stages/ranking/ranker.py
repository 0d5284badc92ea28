"""Choosing among the candidates of a search by the captions of training images, and by what words fit the image.

A candidate's score is its consensus with the captions of the training images, plus its match with the image, plus a
little of the decoder's own log probability, less what it repeats and a little for each word. The weights were chosen on
Flickr8k's dev images (docs/benchmarks.md).
"""

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from captionmill.stages.ranking.consensus import CaptionIndex
from captionmill.stages.ranking.matcher import Matcher
from captionmill.stages.ranking.ngrams import FlatCaptions, Integers, Reals, starts_of
from captionmill.stages.ranking.regression import ImageRegression
from captionmill.stages.ranking.words import WordWeights

Words = Sequence[int]


@dataclass(frozen=True)
class RankerConfig:
    """How the parts of a score are made and weighed; stored in the model."""

    likelihood_weight: float = 0.3
    """Of the mean natural logarithm of a candidate's word probabilities."""
    match_weight: float = 0.75
    """Of the cosine of image and caption, beside the consensus."""
    match_weight_alone: float = 1.2
    """The same, without the consensus."""
    repetition_weight: float = 0.1
    """Of the words that a candidate repeats, which is taken off."""
    length_weight: float = 0.01
    """Of the number of a candidate's words, which is taken off: all else gains by words that are likely anywhere."""
    guidance: float = 1.0
    """Of the words that the training images predict, in the search for candidates."""
    usual_cosine: float = 0.0
    """Cosine to the nearest training image that 95 % of them reach; below it, consensus counts for less."""


@dataclass(frozen=True)
class Neighbour:
    """A training image that takes part in a consensus."""

    image: int
    """Its number among the training images of the ranker."""
    cosine: float
    weight: float
    """What its captions count; the weights of all training images add up to about 1, and some are negative."""
    captions: tuple[tuple[int, ...], ...]
    """Its captions, as word indices."""


@dataclass(frozen=True)
class CandidateScore:
    """What speaks for a candidate."""

    log_probability: float
    """Mean natural logarithm of its words' probabilities, by the decoder."""
    consensus: float
    """0 to 10."""
    match: float
    """Cosine with the image, -1 to 1."""
    repetition: float
    """Sum of the inverse document frequencies of words that follow the same word again: "man" in "a man and a man"."""
    length: float
    """Number of its words."""
    total: float
    """The weighted sum of these that are used."""


@dataclass(frozen=True)
class Ranker:
    """Scores candidates by one model's training images and its matcher."""

    config: RankerConfig
    regression: ImageRegression
    captions: FlatCaptions
    """Those of the images of `regression`, in its order."""
    counts: Integers
    """Number of captions per image, [N]."""
    index: CaptionIndex
    """The n-grams of the captions."""
    vocab_size: int
    matcher: Matcher | None

    @functools.cached_property
    def words(self) -> WordWeights:
        """Which words the captions have."""
        return WordWeights.of(self.captions, self.counts, self.vocab_size)

    def score(
        self,
        features: Reals,
        weights: Reals,
        candidates: Sequence[Sequence[Words]],
        likelihoods: Sequence[Sequence[float]],
        by: str,
    ) -> list[list[CandidateScore]]:
        """The scores of the candidates of each image, from features [B, D] and the weights that `weigh` gives, [B, N].

        `likelihoods` are the mean log probabilities of their words. `by` is consensus, matcher or both; the matcher
        needs no weights.
        """
        zeros = [np.zeros(len(own), np.float32) for own in candidates]
        consensus = self.consensus(weights, candidates) if by != "matcher" else zeros
        match = self.match(features, candidates) if by != "consensus" else zeros
        return [
            [
                self._add(by, *parts)
                for parts in zip(own, likelihood, own_consensus.tolist(), own_match.tolist(), strict=True)
            ]
            for own, likelihood, own_consensus, own_match in zip(candidates, likelihoods, consensus, match, strict=True)
        ]

    def _add(self, by: str, words: Words, log_probability: float, consensus: float, match: float) -> CandidateScore:
        config, repetition, length = self.config, self.repetition(words), len(words)
        total = consensus + config.likelihood_weight * log_probability
        total += match * (config.match_weight_alone if by == "matcher" else config.match_weight)
        total -= config.repetition_weight * repetition + config.length_weight * length
        return CandidateScore(log_probability, consensus, match, repetition, length, total)

    def consensus(self, weights: Reals, candidates: Sequence[Sequence[Words]]) -> list[Reals]:
        """The consensus of the candidates of each image with the captions of the training images, `weights` [B, N]."""
        counts = np.array([len(own) for own in candidates])
        captions = FlatCaptions.of([caption for own in candidates for caption in own])
        scores = self.index.score(captions, np.repeat(np.arange(len(counts)), counts), weights)
        return np.split(scores, np.cumsum(counts)[:-1])

    def guide(self, weights: Reals) -> Reals:
        """What is added to the log probability of each word in the search for candidates, [B, V].

        From the weights of the training images, [B, N]: the predicted share of an image's captions that have the word,
        times its inverse document frequency.
        """
        return self.config.guidance * self.words.predict(weights)

    def weigh(self, features: Reals) -> tuple[Reals, Reals]:
        """How much each training image counts for an image, and its cosine, both [B, N], from features [B, D]."""
        weights, cosines = self.regression.weights(features)
        return weights * self.trust(cosines), cosines

    def trust(self, cosines: Reals) -> Reals:
        """How much the consensus counts, 0 to 1, [B, 1]: less for an image that is far from all training images.

        From the cosines to these, [B, N].
        """
        if self.config.usual_cosine <= 0:
            return np.ones((len(cosines), 1), np.float32)
        return np.asarray(np.clip(cosines.max(axis=1, keepdims=True) / self.config.usual_cosine, 0.0, 1.0))

    def match(self, features: Reals, candidates: Sequence[Sequence[Words]]) -> list[Reals]:
        """The cosine of each image, features [B, D], with each of its candidates; 0 without a matcher."""
        if self.matcher is None:
            return [np.zeros(len(own), np.float32) for own in candidates]
        images = self.matcher.embed_images(features)  # [B, M]
        counts = [len(own) for own in candidates]
        captions = self.matcher.embed_captions([caption for own in candidates for caption in own])  # [C, M]
        cosines: Reals = (np.repeat(images, counts, axis=0) * captions).sum(axis=1)  # [C]
        return np.split(cosines, np.cumsum(counts)[:-1])

    def repetition(self, candidate: Words) -> float:
        """As `CandidateScore.repetition`: a pair of words that comes three times counts twice."""
        pairs = Counter(itertools.pairwise(candidate))
        return sum((count - 1) * float(self.words.idf[word]) for (_, word), count in pairs.items() if count > 1)

    def strongest(self, features: Reals, count: int) -> list[Neighbour]:
        """The training images with the largest weights for one image, features [D], positive or negative."""
        (weights,), (cosines,) = self.weigh(features[np.newaxis])  # both [N]
        starts = starts_of(self.counts)
        neighbours = []
        for image in np.argsort(-np.abs(weights), kind="stable")[:count].tolist():
            captions = self.captions.take(np.arange(starts[image], starts[image + 1])).split()
            words = tuple(tuple(caption.tolist()) for caption in captions)
            neighbours.append(Neighbour(image, float(cosines[image]), float(weights[image]), words))
        return neighbours


def mean_scores(scores: Sequence[list[list[CandidateScore]]]) -> list[list[CandidateScore]]:
    """The mean scores by several rankers of the same candidates of the same images."""
    if len(scores) == 1:
        return scores[0]
    count = len(scores)
    return [
        [
            CandidateScore(*(sum(values) / count for values in zip(*map(astuple, each), strict=True)))
            for each in zip(*of_image, strict=True)
        ]
        for of_image in zip(*scores, strict=True)
    ]
