"""Flags for suspicious captions, so that people can check the doubtful ones first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from captionmill.data.models.bundle import LOW_CONFIDENCE, RERANKED_LOW_CONFIDENCE, Model
from captionmill.stages.scoring.statistics import is_repetitive
from captionmill.stages.settings import SearchConfig

if TYPE_CHECKING:
    from captionmill.stages.decoding.captioner import Caption


def find_flags(caption: "Caption", low_confidence: float | None) -> tuple[str, ...]:
    """`cut`: it reached the maximum length; `repeated`: a word follows itself, or three words in a row occur twice;
    `low-confidence`: its confidence is below `low_confidence`.
    """
    found = {
        "cut": caption.cut,
        "repeated": is_repetitive(caption.text),
        "low-confidence": low_confidence is not None and caption.confidence < low_confidence,
    }
    return tuple(name for name, is_found in found.items() if is_found)


def usual_low_confidence(bundles: Sequence[Model], search: SearchConfig = SearchConfig(rerank="none")) -> float | None:
    """The confidence that a tenth of a model's validation captions are below; the mean of several models, None if one
    has none. Captions that are re-ranked, as by `search`, are less probable ones.

    One number does not suit all models: training with a reward raises the confidence of all captions.
    """
    name = LOW_CONFIDENCE if search.rerank in ("auto", "none") else RERANKED_LOW_CONFIDENCE
    found = [bundle.scores.get(name, bundle.scores.get(LOW_CONFIDENCE)) for bundle in bundles]
    known = [confidence for confidence in found if confidence is not None]
    return sum(known) / len(known) if len(known) == len(bundles) else None
