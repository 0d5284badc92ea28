"""Flags for suspicious captions, so that people can check the doubtful ones first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from captionmill.data.models.bundle import LOW_CONFIDENCE, Model
from captionmill.stages.scoring.statistics import is_repetitive

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


def usual_low_confidence(bundles: Sequence[Model]) -> float | None:
    """The confidence that a tenth of a model's validation captions are below; the mean of several models, None if one
    has none.

    One number does not suit all models: training with a reward raises the confidence of all captions.
    """
    known = [bundle.scores[LOW_CONFIDENCE] for bundle in bundles if LOW_CONFIDENCE in bundle.scores]
    return sum(known) / len(known) if len(known) == len(bundles) else None
