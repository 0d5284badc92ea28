"""A pipeline from one file: each task after those that it needs, what is up to date skipped, some side by side.

Imports no torch until something is to be done, so that a run with nothing to do is over at once.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.captions.table import is_caption_table
from captionmill.data.errors import CaptionmillError, InputError, PipelineError
from captionmill.data.model import model_exists
from captionmill.data.paths import AnyPath
from captionmill.pipeline.plan.command_line import command_line
from captionmill.pipeline.plan.fingerprints import Images, settle
from captionmill.pipeline.plan.graph import Graph, Task
from captionmill.pipeline.plan.jobs import with_chosen_models
from captionmill.pipeline.plan.read import read_plan
from captionmill.pipeline.plan.records import Workspace, claim_pipeline
from captionmill.pipeline.plan.report import report_path_for, write_plan_report
from captionmill.pipeline.plan.standing import Standing, find_standing, plain, setting_changes

if TYPE_CHECKING:
    from captionmill.data.captions.splits import Splits
    from captionmill.data.progress import Progress
    from captionmill.pipeline.plan.crew import Crew, JobCall, JobResult
    from captionmill.pipeline.plan.work import Summary
    from captionmill.stages.training.state import EpochResult

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskOutcome:
    """One task of a run: made, up to date, failed, or not run because of others."""

    task: Task
    text: str
    """What the stage did, in words, or why nothing was done."""
    summary: "Summary | None" = None
    """What the stage did; None if it did nothing."""
    error: str = ""
    """Why it failed, in one line."""
    missing: tuple[str, ...] = ()
    """The tasks that it needs and that failed or were not run, for which reason it was not run."""
    warnings: tuple[str, ...] = ()
    """Its warnings, if it ran aside."""

    @property
    def is_made(self) -> bool:
        """Whether the output is there as the plan wants it."""
        return not self.error and not self.missing


@dataclass(frozen=True)
class RunEvents:
    """What is called while a pipeline runs."""

    on_stage: Callable[[str, str], None] = lambda task, command: None
    """With the id of each task that runs, and the command that does the same by hand."""
    on_outcome: Callable[[TaskOutcome], None] = lambda outcome: None
    """With each task that has ended."""
    on_splits: "Callable[[Splits], None]" = lambda splits: None
    """With the images of each training that runs in this process."""
    on_epoch: "Callable[[EpochResult], None]" = lambda result: None
    """With each epoch of these."""
    on_report: Callable[[Path], None] = lambda path: None
    """With the path of the report of all outputs, written after each run that made something."""


def run_pipeline(
    plan_path: AnyPath,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    start: str | None = None,
    events: RunEvents = RunEvents(),
    progress: "Progress | None" = None,
) -> list[TaskOutcome]:
    """Run the tasks that the TOML file `plan_path` describes; those whose output is up to date are skipped.

    `jobs` processes, or those of a `cluster` (as for `open_spread`), do independent tasks side by side, and an
    extraction together. `start` names tasks as `Graph.find` takes them: these and what depends on them are run in any
    case.

    Raises PipelineError for a file that cannot be understood or that another process runs, and, when all that can be
    made is made, for tasks that failed; ClusterError if processes keep dying.
    """
    plan_path = Path(plan_path)
    graph = read_plan(plan_path)
    forced = graph.forced_by(start)
    with claim_pipeline(plan_path), ExitStack() as stack:

        def hire() -> "Crew":
            from captionmill.data.progress import no_progress
            from captionmill.pipeline.plan.crew import open_crew
            from captionmill.pipeline.plan.work import Listeners

            stop_path = plan_path.absolute().with_name(f".{plan_path.stem}.stop")
            listeners = Listeners(events.on_splits, events.on_epoch, progress or no_progress)
            return stack.enter_context(open_crew(0 if cluster else jobs, cluster, stop_path, listeners))

        outcomes = _Run(graph, Workspace(plan_path), forced, hire, events).to_the_end()
        if any(outcome.summary for outcome in outcomes) or not report_path_for(plan_path).exists():
            _write_report(plan_path, outcomes, events.on_report)
    require_made(plan_path, outcomes)
    return outcomes


def _write_report(plan_path: Path, outcomes: Sequence[TaskOutcome], on_report: Callable[[Path], None]) -> None:
    """Write the report of what is made; the run is none the worse if that fails."""
    if made := [outcome.task for outcome in outcomes if outcome.is_made]:
        try:
            path = write_plan_report(plan_path, made)
        except Exception as exc:  # whatever it is: the outputs are there and whole
            reason = str(exc) if isinstance(exc, CaptionmillError) else repr(exc)
            _logger.warning("no report of this run: %s", reason)
        else:
            on_report(path)


def require_made(plan_path: Path, outcomes: Sequence[TaskOutcome]) -> None:
    """Raise PipelineError naming the tasks that failed and those that were not run because of them."""
    if failed := [f"{outcome.task.id} failed ({outcome.error})" for outcome in outcomes if outcome.error]:
        missing = [outcome.task.id for outcome in outcomes if outcome.missing]
        not_run = f"; not run because of that: {', '.join(missing)}" if missing else ""
        raise PipelineError(f"{plan_path}: {'; '.join(failed)}{not_run}")


class _Run:
    """A graph on its way from nothing done to all done."""

    def __init__(
        self,
        graph: Graph,
        workspace: Workspace,
        forced: frozenset[str],
        hire: "Callable[[], Crew]",
        events: RunEvents,
    ) -> None:
        self._graph, self._workspace, self._forced = graph, workspace, forced
        self._hire, self._events = hire, events
        self._crew: Crew | None = None
        self._waiting = list(graph.tasks)
        self._ready: dict[str, Standing] = {}
        self._begun: dict[str, Standing] = {}
        self._commands: dict[str, str] = {}
        self._outcomes: dict[str, TaskOutcome] = {}

    def to_the_end(self) -> list[TaskOutcome]:
        try:
            while self._waiting or self._ready or self._begun:
                self._look_for_ready()
                if self._ready or self._begun:
                    self._crew = self._crew or self._hire()
                    self._advance(self._crew)
        except BaseException:  # Ctrl-C too: what runs aside is to stop where nothing is lost, and counts if it is done
            for result in self._crew.stop() if self._crew else ():
                if result.summary:
                    self._end(result)
            raise
        return [self._outcomes[task.id] for task in self._graph.tasks]

    def _look_for_ready(self) -> None:
        """Settle what needs no run, in order, and put into `_ready` what does and can be run now."""
        for task in list(self._waiting):
            needs = self._graph.needs(task)
            if any(need.id not in self._outcomes for need in needs):
                continue
            self._waiting.remove(task)
            if missing := tuple(need.id for need in needs if not self._outcomes[need.id].is_made):
                self._settle(
                    TaskOutcome(task, f"not run, as {', '.join(missing)} failed or was not run", missing=missing)
                )
                continue
            try:
                standing = find_standing(task, self._workspace, forced=task.id in self._forced)
                _require_ours(standing)
                command = command_line(with_chosen_models(task.job)) if standing.runs else ""
            except CaptionmillError as exc:
                self._settle(TaskOutcome(task, f"failed: {exc}", error=str(exc)))
                continue
            if standing.runs:
                self._ready[task.id] = standing
                self._commands[task.id] = command
            elif standing.made:
                self._workspace.refresh(task.output, standing.ingredients.inputs, standing.made)
                self._settle(TaskOutcome(task, "up to date"))

    def _advance(self, crew: "Crew") -> None:
        """Start what can run aside, do one task here if there is one left, and take note of what has ended."""
        if aside := crew.choose_aside([standing.task for standing in self._ready.values()]):
            crew.start([self._begin(task) for task in aside])
        elif self._ready:
            task = next(iter(self._ready.values())).task
            self._end(crew.do_here(self._begin(task)))
        for result in crew.ended(wait=not self._ready and bool(self._begun)):
            self._end(result)

    def _begin(self, task: Task) -> "JobCall":
        """Note and tell that a task is about to run."""
        from captionmill.pipeline.plan.crew import JobCall

        standing = self._ready.pop(task.id)
        replaces = _replaces(standing, forced=task.id in self._forced)
        self._events.on_stage(task.id, self._commands[task.id])
        self._workspace.begin(task.id, task.output, standing.ingredients, replaces=replaces)
        self._begun[task.id] = standing
        return JobCall(task, replaces)

    def _end(self, result: "JobResult") -> None:
        """Note how a task ended: its output is of its inputs as they were when it began."""
        task = result.task
        inputs = dict(self._begun.pop(task.id).ingredients.inputs)
        if result.error:
            outcome = TaskOutcome(task, f"failed: {result.error}", error=result.error, warnings=result.warnings)
        else:
            for name, source in task.job.inputs().items():
                if isinstance(source, Images):
                    inputs[name] = settle(source, inputs[name])
            self._workspace.end(task.output, inputs, result.duration_s)
            outcome = TaskOutcome(task, result.text, result.summary, warnings=result.warnings)
        self._settle(outcome)

    def _settle(self, outcome: TaskOutcome) -> None:
        self._outcomes[outcome.task.id] = outcome
        self._events.on_outcome(outcome)


def _require_ours(standing: Standing) -> None:
    task = standing.task
    if task.kind == "train" and standing.record is None and model_exists(task.output):
        raise InputError(f"{task.output}: holds a model already that this pipeline did not make; move it away")
    was_ours = standing.record is not None and standing.record.made is not None
    if task.kind == "caption" and not was_ours and task.output.exists() and not is_caption_table(task.output):
        raise InputError(f"{task.output}: no table of captions; move it away, or name another output")


def _replaces(standing: Standing, *, forced: bool) -> bool:
    """Whether the output is this pipeline's own, made from something else. More images are added, not made anew."""
    record, task = standing.record, standing.task
    if task.kind == "train":  # a model that is there is ours; one that was made by a process that died then, too
        return True
    if record is None:
        return False
    if task.kind != "extract" or record.replaces or forced:
        return True
    before, now = record.ingredients.inputs.get("weights"), standing.ingredients.inputs.get("weights")
    if (before and before.content) != (now and now.content):
        return True
    defaults = plain(task.job.default_settings())
    return bool(setting_changes(record.ingredients.settings, standing.ingredients.settings, defaults))
