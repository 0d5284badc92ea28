"""What a person decided about captions; no run of any model replaces it."""

from dataclasses import dataclass, replace
from typing import Literal, TypeGuard, get_args

from captionmill.data.tables.rows import CaptionRow

Decision = Literal["corrected", "accepted", "later", "undecided"]
DECISIONS = frozenset(get_args(Decision))
LATER = "later"
"""The flag of a row that somebody wants to look at again."""


def is_decision(status: str) -> TypeGuard[Literal["corrected", "accepted"]]:
    """Whether this is the status of a row that a person decided on."""
    return status in {"corrected", "accepted"}


@dataclass(frozen=True)
class Review:
    """A person's decision about the caption of one image."""

    path: str
    """The image's key."""
    decision: Decision
    """`corrected`: `caption` is the person's own; `accepted`: it is the model's and right.

    `later`: somebody wants to look at it again; `undecided`: what was decided before is taken back.
    """
    caption: str
    """The caption that was decided on."""

    def apply(self, row: CaptionRow) -> CaptionRow:
        """The row of the table for this image, whose row without a review is `row`."""
        if self.decision == "undecided":
            return row
        if self.decision == "later":
            status = "ok" if row.status == "accepted" else row.status
            return replace(row, status=status, flags=tuple(dict.fromkeys((*row.flags, LATER))))
        if self.decision == "accepted" and row.caption == self.caption:
            return replace(row, status="accepted", flags=())
        return CaptionRow(self.path, self.caption, None, status=self.decision)
