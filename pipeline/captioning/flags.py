"""What is suspicious about a caption, so that people can look at the doubtful ones first."""

from collections.abc import Sequence

from captionmill.data.model import LOW_CONFIDENCE, Model
from captionmill.stages.decoding.captioner import Caption
from captionmill.stages.scoring.statistics import is_repetitive


def find_flags(caption: Caption, low_confidence: float | None) -> tuple[str, ...]:
    """`cut`: it reached the maximum length; `repeated`: a word follows itself, or three words in a row occur twice;
    `low-confidence`: the decoder is less sure of it than `low_confidence`.
    """
    found = {
        "cut": caption.cut,
        "repeated": is_repetitive(caption.text),
        "low-confidence": low_confidence is not None and caption.confidence < low_confidence,
    }
    return tuple(name for name, is_found in found.items() if is_found)


def usual_low_confidence(bundles: Sequence[Model]) -> float | None:
    """What a tenth of a model's validation captions are below, of several models the mean; None if one does not say.

    One number for all models would not do: training with a reward makes a decoder much surer of all that it says.
    """
    known = [bundle.scores[LOW_CONFIDENCE] for bundle in bundles if LOW_CONFIDENCE in bundle.scores]
    return sum(known) / len(known) if len(known) == len(bundles) else None
