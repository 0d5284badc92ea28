"""What commands show on the terminal while stages run."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import click

from captionmill.pipeline import summaries, words
from captionmill.pipeline.terminal.names import as_typed
from captionmill.pipeline.terminal.progress import ProgressBars

if TYPE_CHECKING:
    from captionmill.data.captions.splits import Splits
    from captionmill.pipeline.plan.graph import Graph
    from captionmill.pipeline.plan.run import TaskOutcome
    from captionmill.pipeline.plan.standing import Standing
    from captionmill.stages.training.state import EpochResult


def stage_printer(quiet: bool) -> Callable[[str, str], None]:
    """The callback before each task of a pipeline: shows the name of the task, if it has one, and its command."""

    def show(task: str, command: str) -> None:
        if not quiet:
            click.echo((f"# {task}\n" if "." in task else "") + f"$ {command}", err=True)

    return show


def show_splits(splits: "Splits") -> None:
    """Show the number of images in each split, and those left out."""
    click.echo(summaries.splits_lines(splits), err=True)


def show_outcomes(outcomes: Iterable["TaskOutcome"]) -> None:
    """Show one line per output."""
    for outcome in outcomes:
        click.echo(f"{outcome.task.output}: {outcome.text}")


def show_outcome(outcome: "TaskOutcome", progress: ProgressBars) -> None:
    """Show the result of a task instead of the bar; warnings of a worker process follow with the task's name."""
    progress.clear()
    for line in outcome.warnings:
        click.echo(f"Warning: {outcome.task.id}: {line}", err=True)
    if outcome.is_made:
        show_outcomes([outcome])
    else:
        click.echo(f"{outcome.task.id}: {outcome.text}", err=True)


def show_standings(standings: Sequence["Standing"]) -> None:
    """Show one line per task: up to date, or why it would run."""
    width = max(len(standing.task.id) for standing in standings)
    for standing in standings:
        click.echo(f"{standing.task.id:{width}}  {as_typed(standing.text)}")


def show_graph(graph: "Graph", standings: Sequence["Standing"]) -> None:
    """Show for each task what it needs, its output and when that was made, and its standing."""
    from captionmill.pipeline.plan.command_line import show_path

    for standing in standings:
        task, record = standing.task, standing.record
        needs = ", ".join(need.id for need in graph.needs(task))
        made = ""
        if record and record.made and standing.made:
            duration = words.show_duration(record.duration_s)
            made = f", made {record.ended} in {duration} by captionmill {record.captionmill}"
        click.echo(task.id + (f" <- {needs}" if needs else ""))
        click.echo(f"    {show_path(task.output)}{made}")
        click.echo(f"    {standing.text}")


def epoch_printer(quiet: bool, progress: ProgressBars) -> Callable[["EpochResult"], None]:
    """The callback after each epoch of a training: its line replaces the bar."""

    def show(result: "EpochResult") -> None:
        progress.clear()
        if not quiet:
            click.echo(summaries.epoch_line(result), err=True)

    return show
