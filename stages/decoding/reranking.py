"""The captions of a search in the order of what re-ranks them, instead of that of the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from captionmill.data.features.file import Features
from captionmill.stages.decoding.search import DecodedCaption
from captionmill.stages.decoding.trained import TrainedModels
from captionmill.stages.ranking.ngrams import Reals
from captionmill.stages.ranking.packed import unpack_ranker
from captionmill.stages.ranking.ranker import CandidateScore, Neighbour, Ranker, RankerConfig, mean_scores
from captionmill.stages.settings import SearchConfig

MARGIN = 3.0
"""That of the search for candidates: on Flickr8k's dev images it spares a seventh of the time, and CIDEr-D stays."""
_NEIGHBOURS = 5  # of an explanation


@dataclass(frozen=True)
class Candidate:
    """A caption that re-ranking may choose."""

    caption: DecodedCaption
    place: int
    """In the order of the search, from 0."""
    score: CandidateScore


@dataclass(frozen=True)
class Choice:
    """Why re-ranking chose a caption."""

    candidates: tuple[Candidate, ...]
    """All of them, the highest total first. Of an ensemble, their scores are the means of its models'."""
    config: RankerConfig
    """The weights of the scores. This and what follows down to `word_matches` is the first model's."""
    images: int
    """How many training images take part in the consensus."""
    trust: float
    """What the weights of these were multiplied by, 0 to 1: below 1 for an image that is far from all of them."""
    neighbours: tuple[Neighbour, ...]
    """The training images whose captions count most, for or against; none where the consensus does not count."""
    word_matches: tuple[float, ...]
    """The cosine of the image with each single word of the chosen caption, -1 to 1, the mean of the models'; none where
    the matcher does not count."""


def load_rankers(models: TrainedModels) -> tuple[Ranker, ...]:
    """The rankers of `models`; none if one of them has none. ModelError if one is not sound."""
    rankers = [
        unpack_ranker(bundle.ranker, str(folder), len(models.vocabulary))
        for folder, bundle in models.pairs
        if bundle.ranker is not None
    ]
    return tuple(rankers) if len(rankers) == len(models.bundles) else ()


def candidate_search(search: SearchConfig) -> SearchConfig:
    """The search that finds all candidates of `search`: its beam is as wide as these are many, or wider."""
    wanted = max(search.beam_size, search.candidates)
    beam_size = -(-wanted // search.diversity_groups) * search.diversity_groups
    return replace(search, beam_size=beam_size, alternatives=beam_size - 1)


def weigh_images(features: Features, rankers: Sequence[Ranker], search: SearchConfig) -> list[Reals]:
    """How much each ranker's training images count for the images with `features` [B, D]: for each ranker, [B, N].

    [B, 0] where their consensus does not count.
    """
    if search.rerank == "matcher":
        return [np.empty((len(features), 0), np.float32)] * len(rankers)
    return [ranker.weigh(features)[0] for ranker in rankers]


def guide_words(weights: Sequence[Reals], rankers: Sequence[Ranker], search: SearchConfig) -> Reals | None:
    """What makes the search for candidates prefer words of the training images' captions, [B, V], from `weigh_images`.

    None where their consensus does not count.
    """
    if search.rerank == "matcher":
        return None
    guides = [ranker.guide(own) for ranker, own in zip(rankers, weights, strict=True)]
    return np.asarray(np.mean(guides, axis=0))


def pool_candidates(found: Sequence[DecodedCaption]) -> DecodedCaption:
    """All captions of one image that several decoders found, each by itself, the likeliest first.

    Of equal captions that of the decoder to which it is likelier is kept.
    """
    pool: dict[tuple[int, ...], DecodedCaption] = {}
    for place, best in enumerate(found):
        for caption in _with_alternatives(best):
            other = pool.get(caption.words)
            if other is None or _mean_or_zero(caption.log_probabilities) > _mean_or_zero(other.log_probabilities):
                pool[caption.words] = replace(caption, decoder=place)
    best, *others = sorted(pool.values(), key=lambda caption: -_mean_or_zero(caption.log_probabilities))
    return replace(best, alternatives=tuple(others))


def rerank_captions(
    found: Sequence[DecodedCaption],
    features: Features,
    weights: Sequence[Reals],
    rankers: Sequence[Ranker],
    search: SearchConfig,
) -> list[DecodedCaption]:
    """What a search of all candidates `found` for the images with `features` [B, D], the best by `rankers` first.

    `weights` are those of `weigh_images`. Of equal scores the one that the decoder ranks higher is kept.
    """
    reranked = []
    for ranked in _ranked(found, features, weights, rankers, search):
        best, *others = (candidate.caption for candidate in ranked[: 1 + search.alternatives])
        reranked.append(replace(best, alternatives=tuple(others)))
    return reranked


def explain_choice(
    found: DecodedCaption, features: Features, rankers: Sequence[Ranker], search: SearchConfig
) -> Choice:
    """What `rerank_captions` chooses for the one image with `features` [1, D], and why."""
    (ranked,) = _ranked([found], features, weigh_images(features, rankers, search), rankers, search)
    first, row = rankers[0], features[0]
    _, cosines = first.regression.weights(row[None])
    words = [[(word,) for word in ranked[0].caption.words]]
    matches = [ranker.match(features, words)[0].tolist() for ranker in rankers if search.rerank != "consensus"]
    return Choice(
        candidates=tuple(ranked),
        config=first.config,
        images=len(first.counts),
        trust=float(first.trust(cosines)[0, 0]),
        neighbours=tuple(first.strongest(row, _NEIGHBOURS)) if search.rerank != "matcher" else (),
        word_matches=tuple(_mean_or_zero(of_word) for of_word in zip(*matches, strict=True)),
    )


def _ranked(
    found: Sequence[DecodedCaption],
    features: Features,
    weights: Sequence[Reals],
    rankers: Sequence[Ranker],
    search: SearchConfig,
) -> list[list[Candidate]]:
    """The candidates of each image, the highest total first."""
    captions = list(map(_with_alternatives, found))  # in the decoder's order
    words = [[caption.words for caption in own] for own in captions]
    likelihoods = [[_mean_or_zero(caption.log_probabilities) for caption in own] for own in captions]
    scores = mean_scores(
        [
            ranker.score(features, own, words, likelihoods, search.rerank)
            for ranker, own in zip(rankers, weights, strict=True)
        ]
    )
    if search.rerank != "matcher":
        captions = [
            [replace(caption, consensus=score.consensus) for caption, score in zip(own, own_scores, strict=True)]
            for own, own_scores in zip(captions, scores, strict=True)
        ]
    return [
        sorted(map(Candidate, own, range(len(own)), own_scores), key=lambda candidate: -candidate.score.total)
        for own, own_scores in zip(captions, scores, strict=True)
    ]


def _with_alternatives(best: DecodedCaption) -> list[DecodedCaption]:
    return [replace(best, alternatives=()), *best.alternatives]


def _mean_or_zero(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
