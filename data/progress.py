"""How a stage reports its progress: a function that it is given."""

from typing import Protocol


class Progress(Protocol):
    """Called by a stage as it goes on: `done` of `total` steps of the work that `label` names."""

    def __call__(self, label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
        """Take note; `done == total` is the last call for a label.

        `note` is what else there is to see now, such as the loss so far. `left_s` is the time until the whole work is
        done, in seconds, where the stage knows better than the pace of this label tells.
        """


def no_progress(label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
    """Tell nobody."""
