"""Whether confidence tells good captions from bad ones: scores of the surer and of the less sure captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

_PARTS = 4


@dataclass(frozen=True)
class Quarter:
    """A quarter of the captions: those of like confidence."""

    count: int
    low: float
    """The least confidence among them, 0 to 1."""
    high: float
    """The greatest."""
    confidence: float
    """The mean."""
    score: float
    """The mean of their scores, in the unit of the metric."""


def quarter_by_confidence(confidences: Sequence[float], scores: Sequence[float]) -> list[Quarter]:
    """Four parts of equal size, give or take one, the least confident first; fewer where there are not four captions.

    Captions of equal confidence stay in the order given.
    """
    order = np.argsort(confidences, kind="stable")
    sure, worth = np.asarray(confidences, np.float64)[order], np.asarray(scores, np.float64)[order]
    parts = [part for part in np.array_split(np.arange(len(order)), _PARTS) if len(part)]
    return [
        Quarter(
            count=len(part),
            low=float(sure[part[0]]),
            high=float(sure[part[-1]]),
            confidence=float(sure[part].mean()),
            score=float(worth[part].mean()),
        )
        for part in parts
    ]


def rank_correlation(confidences: Sequence[float], scores: Sequence[float]) -> float | None:
    """Spearman's correlation, -1 to 1, of equal values the mean rank; None where either is the same everywhere."""
    if len(set(confidences)) < 2 or len(set(scores)) < 2:
        return None
    sure, worth = (pd.Series(list(values), dtype=float).rank() for values in (confidences, scores))
    return float(sure.corr(worth))
