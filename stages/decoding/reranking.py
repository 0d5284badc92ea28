"""The captions of a search in the order of what re-ranks them, instead of that of the decoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from captionmill.data.models.bundle import Model
from captionmill.stages.decoding.search import DecodedCaption
from captionmill.stages.ranking.packed import unpack_ranker
from captionmill.stages.ranking.ranker import CandidateScore, Ranker, mean_scores
from captionmill.stages.settings import SearchConfig


def load_rankers(models: Sequence[Path], bundles: Sequence[Model], device: torch.device) -> tuple[Ranker, ...]:
    """The rankers of the `bundles`, which were read from the folders `models`; none if one of them has none.

    ModelError if one is not sound.
    """
    parts = [(model, bundle.ranker, len(bundle.vocabulary)) for model, bundle in zip(models, bundles, strict=True)]
    rankers = [
        unpack_ranker(ranker, str(model), size).to(device) for model, ranker, size in parts if ranker is not None
    ]
    return tuple(rankers) if len(rankers) == len(bundles) else ()


def candidate_search(search: SearchConfig) -> SearchConfig:
    """The search that finds all candidates of `search`: its beam is as wide as these are many, or wider."""
    wanted = max(search.beam_size, search.candidates)
    beam_size = -(-wanted // search.diversity_groups) * search.diversity_groups
    return replace(search, beam_size=beam_size, alternatives=beam_size - 1)


def guide_words(features: Tensor, rankers: Sequence[Ranker], search: SearchConfig) -> Tensor | None:
    """What makes the search for candidates prefer words of the training images' captions, [B, V], from features [B, D].

    None where their consensus does not count.
    """
    if search.rerank == "matcher":
        return None
    return torch.stack([ranker.guide(features) for ranker in rankers]).mean(dim=0)


def rerank_captions(
    found: Sequence[DecodedCaption], features: Tensor, rankers: Sequence[Ranker], search: SearchConfig
) -> list[DecodedCaption]:
    """What a search of all candidates `found` for the images with `features` [B, D], the best by `rankers` first.

    Of equal scores the one that the decoder ranks higher is kept.
    """
    candidates = [list_candidates(caption) for caption in found]
    reranked = []
    for own, scores in zip(candidates, score_candidates(candidates, features, rankers, search), strict=True):
        order = sorted(range(len(own)), key=lambda place, scores=scores: -scores[place].total)  # type: ignore[misc]
        best, *others = (own[place] for place in order[: 1 + search.alternatives])
        reranked.append(replace(best, alternatives=tuple(others)))
    return reranked


def list_candidates(caption: DecodedCaption) -> list[DecodedCaption]:
    """All that a search found for one image, in the decoder's order."""
    return [replace(caption, alternatives=()), *caption.alternatives]


def score_candidates(
    candidates: Sequence[Sequence[DecodedCaption]], features: Tensor, rankers: Sequence[Ranker], search: SearchConfig
) -> list[list[CandidateScore]]:
    """The scores of the candidates of each image, from its features [B, D]."""
    words = [[caption.words for caption in own] for own in candidates]
    likelihoods = [[_mean(caption.log_probabilities) for caption in own] for own in candidates]
    return mean_scores([ranker.score(features, words, likelihoods, search.rerank) for ranker in rankers])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
