"""What commands show on the terminal while stages run."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import click

from captionmill.pipeline import summaries, words
from captionmill.pipeline.terminal.json_lines import JsonLines
from captionmill.pipeline.terminal.names import as_typed
from captionmill.pipeline.terminal.progress import ProgressBars

if TYPE_CHECKING:
    from captionmill.data.captions.splits import Splits
    from captionmill.pipeline.plan.graph import Graph, TaskOutcome
    from captionmill.pipeline.plan.standing import Standing
    from captionmill.pipeline.result_fields import Fields
    from captionmill.stages.training.state import EpochResult


def show_result(text: str, fields: "Fields", *, on_stderr: bool = False) -> None:
    """Show a result: as text, or in JSON as one object with `fields` too. Without its text, JSON has an empty message.

    `on_stderr` leaves stdout to a table.
    """
    stream = sys.stderr if on_stderr else sys.stdout
    if isinstance(stream, JsonLines):
        command = click.get_current_context().command_path.partition(" ")[2]
        stream.log("info", "result", text.strip("\n"), command=command, **fields)
    elif text:
        click.echo(text, err=on_stderr)


def show_left_out(why: str, keys: Sequence[str], advice: str = "") -> None:
    """Show on stderr how many `keys` were left out and why, what to do about it, and the first of them, if any were."""
    if keys:
        click.echo(f"{why}: {len(keys):,}{advice and f'; {advice}'}", err=True)
        click.echo(words.show_list(keys), err=True)


def show_damaged(what: str, keys: Sequence[str]) -> None:
    """As `show_left_out`, for keys whose features are damaged; `what` was done with the others: "compared"."""
    show_left_out(f"Not {what}, as their features are damaged", keys, "run extract again")


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
        fields = {"task": outcome.task.id, "output": outcome.task.output, "ran": outcome.summary is not None}
        show_result(f"{outcome.task.output}: {outcome.text}", fields)


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
        show_result(f"{standing.task.id:{width}}  {as_typed(standing.text)}", _standing_fields(standing))


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
        lines = [task.id + (f" <- {needs}" if needs else ""), f"    {show_path(task.output)}{made}"]
        show_result("\n".join([*lines, f"    {standing.text}"]), _standing_fields(standing))


def epoch_printer(quiet: bool, progress: ProgressBars) -> Callable[["EpochResult"], None]:
    """The callback after each epoch of a training: its line replaces the bar."""
    return lambda result: _replace_bar(summaries.epoch_line(result), quiet, progress)


def first_score_printer(quiet: bool, progress: ProgressBars) -> Callable[[float], None] | None:
    """The callback after a third of a training's first epoch."""
    return None if quiet else lambda val_cider: _replace_bar(summaries.first_score_line(val_cider), quiet, progress)


def _replace_bar(line: str, quiet: bool, progress: ProgressBars) -> None:
    progress.clear()
    if not quiet:
        click.echo(line, err=True)


def _standing_fields(standing: "Standing") -> "Fields":
    """One task of a pipeline, compared with what made its output."""
    return {
        "task": standing.task.id,
        "output": standing.task.output,
        "up_to_date": not (standing.reasons or standing.error),
        "reasons": [*standing.reasons, *([standing.error] if standing.error else [])],
    }
