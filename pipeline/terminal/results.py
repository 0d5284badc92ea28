"""What commands say on the terminal about stages that run."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.terminal.progress_bars import ProgressBars

if TYPE_CHECKING:
    from captionmill.data.splits import Splits
    from captionmill.pipeline.run import StageOutcome
    from captionmill.stages.decoding.training_state import EpochResult


def show_stage(_: str, command: str) -> None:
    """The command that does by hand what the next stage does."""
    click.echo(f"$ {command}", err=True)


def show_splits(splits: "Splits") -> None:
    """How many images train, choose and test, and which are left out."""
    click.echo(summaries.splits_lines(splits), err=True)


def show_outcomes(outcomes: Iterable["StageOutcome"]) -> None:
    """One line for each stage's output."""
    for outcome in outcomes:
        click.echo(f"{outcome.output}: {outcome.text}")


def epoch_printer(quiet: bool, progress: ProgressBars) -> Callable[["EpochResult"], None]:
    """What a training calls after each epoch: its line takes the place of the bar."""

    def show(result: "EpochResult") -> None:
        progress.clear()
        if not quiet:
            click.echo(summaries.epoch_line(result), err=True)

    return show
