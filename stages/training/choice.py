"""Which epoch is kept: that of the best validation CIDEr-D, or, where CIDEr-D decides nothing, of the lowest loss.

The CIDEr-D of the validation captions is 0 or constant throughout if all of their references are equal, or far longer
than the captions, or if no caption has a word in common with its references yet. It can neither choose an epoch nor
stop a training then: the cross entropy of the validation captions does both. It also chooses among epochs with exactly
the same CIDEr-D, as at a slow start, where an undertrained decoder writes the same captions for many epochs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

LEAST_DIFFERENCE = 0.001
"""Validation CIDEr-Ds that differ by less are equal: the third decimal is the last that is shown."""
LEAST_CIDER = 0.01
"""Validation CIDEr-Ds below this are noise: a single word in common with some reference."""

History = Sequence[Mapping[str, Any]]


def cider_says_nothing(ciders: Sequence[float]) -> bool:
    """Whether the validation CIDEr-Ds of all epochs so far are equal, or next to 0; of one epoch, next to 0."""
    if not ciders or max(ciders) < LEAST_CIDER:
        return True
    return len(ciders) > 1 and max(ciders) - min(ciders) < LEAST_DIFFERENCE


def is_best(history: History, val_cider: float, val_loss: float) -> bool:
    """Whether an epoch after those of `history` is the best so far.

    Rows of versions that did not measure the validation loss have none: where CIDEr-D decides nothing, any loss is
    lower; of epochs with the same CIDEr-D, the first is the best, as it was then.
    """
    ciders = [row["val_cider"] for row in history]
    if not ciders:
        return True
    if cider_says_nothing([*ciders, val_cider]):
        return val_loss < min(_loss(row) for row in history)
    if val_cider == max(ciders) and math.inf not in map(_loss, history):  # the same captions, or ones that are as good
        return val_loss < min(_loss(row) for row in history if row["val_cider"] == val_cider)
    return bool(val_cider > max(ciders))


def best_epoch(history: History) -> int:
    """The epoch that is kept: the last that was the best so far; 0 before the first."""
    return max((row["epoch"] for row in history if row["best"]), default=0)


def last_progress(history: History) -> int:
    """The epoch from which patience counts: the best one, or a later one of lower loss while CIDEr-D decides nothing.

    After a first epoch with a word in common with some references, a slow start may have none for many epochs.
    """
    best = best_epoch(history)
    later = [row["val_cider"] for row in history if row["epoch"] > best]
    if not later or not cider_says_nothing(later):
        return best
    lowest: int = min((row for row in history if row["epoch"] >= best), key=_loss)["epoch"]
    return lowest


def describe_choice(history: History) -> list[str]:
    """The one line that reports that CIDEr-D did not choose the epoch; nothing if it did."""
    ciders = [row["val_cider"] for row in history]
    if not cider_says_nothing(ciders):
        return []
    kept = next(row for row in history if row["epoch"] == best_epoch(history))
    most = "at most " if max(ciders) - min(ciders) >= LEAST_DIFFERENCE else ""
    chosen = f"the validation CIDEr-D was {most}{max(ciders):.3f} in all {len(ciders)} epochs and cannot choose one"
    if len(ciders) == 1:
        return [f"the validation CIDEr-D of the only epoch is {ciders[0]:.3f}: train longer, or check the captions"]
    if math.isinf(loss := _loss(kept)):
        return [f"{chosen}: epoch {kept['epoch']} was kept"]
    why = f"by the lowest cross entropy of the validation captions ({loss:.3f} nats per word)"
    return [f"{chosen}: epoch {kept['epoch']} was kept, {why}"]


def _loss(row: Mapping[str, Any]) -> float:
    loss = row.get("val_loss")
    return math.inf if loss is None or math.isnan(loss) else float(loss)
