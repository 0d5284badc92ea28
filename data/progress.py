"""How a stage reports its progress: a function that it is given."""

from typing import Protocol


class Progress(Protocol):
    """Called by a stage while it works: `done` of `total` steps of the work that `label` names."""

    def __call__(self, label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
        """Report progress; the last call for a label has `done == total`.

        `note` is further information, such as the loss so far. `left_s` is the time left for the whole work, in
        seconds, if the stage can estimate it better than from the pace of this label.
        """


def no_progress(label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
    """Report nothing."""
