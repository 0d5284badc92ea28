"""Runs a pipeline from one file: each task after those that it needs, some in parallel; up-to-date ones are skipped.

Imports no torch until a task runs, so that a run with nothing to do ends at once.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.errors import CaptionmillError, PipelineError
from captionmill.data.paths import AnyPath
from captionmill.pipeline.plan.command_line import command_line
from captionmill.pipeline.plan.fingerprints import Images, settle
from captionmill.pipeline.plan.graph import Graph, Task, TaskOutcome
from captionmill.pipeline.plan.jobs import with_chosen_models
from captionmill.pipeline.plan.read import read_plan
from captionmill.pipeline.plan.records import Workspace, claim_pipeline
from captionmill.pipeline.plan.report import report_path_for, write_plan_report
from captionmill.pipeline.plan.standing import Standing, find_standing, plain, setting_changes
from captionmill.pipeline.words import show_error
from captionmill.stages.fields import require_least

if TYPE_CHECKING:
    from captionmill.data.captions.splits import Splits
    from captionmill.data.progress import Progress
    from captionmill.pipeline.plan.crew import Crew, JobCall
    from captionmill.stages.training.state import EpochResult

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunEvents:
    """The functions that are called while a pipeline runs."""

    on_stage: Callable[[str, str], None] = lambda task, command: None
    """Called with the id of each task that runs and its command."""
    on_outcome: Callable[[TaskOutcome], None] = lambda outcome: None
    """Called with each task that has ended."""
    on_splits: "Callable[[Splits], None]" = lambda splits: None
    """Called with the images of each training that runs in this process."""
    on_first_score: Callable[[float], None] | None = None
    """Called with the validation CIDEr-D of these trainings after a third of a long first epoch."""
    on_epoch: "Callable[[EpochResult], None]" = lambda result: None
    """Called with each epoch of these trainings."""
    on_report: Callable[[Path], None] = lambda path: None
    """Called with the path of the report of all outputs, which is written after each run that made something."""


def run_pipeline(
    plan_path: AnyPath,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    wait_s: float = 0,
    start: str | None = None,
    events: RunEvents = RunEvents(),
    progress: "Progress | None" = None,
) -> list[TaskOutcome]:
    """Run the tasks that the TOML file `plan_path` describes; those whose output is up to date are skipped.

    `jobs` processes, or those of a `cluster` (with `wait_s`, as for `open_spread`), run independent tasks in parallel,
    and each extraction together. `start` names tasks as `Graph.find` takes them: these and the tasks that depend on
    them run in any case.

    Raises InputError for several `jobs` with a `cluster`; PipelineError for a file that is not valid or that another
    process runs, and, after all other tasks are done, for tasks that failed; ClusterError if processes keep dying.
    """
    require_least("jobs", jobs, 1)
    require_least("wait_s", wait_s, 0, whole=False)
    if cluster and jobs > 1:
        from captionmill.pipeline.cluster import refuse_both  # imports numpy, which a run with nothing to do need not

        refuse_both(jobs, cluster)
    plan_path = Path(plan_path)
    graph = read_plan(plan_path)
    forced = graph.forced_by(start)
    with claim_pipeline(plan_path), ExitStack() as stack:

        def start_crew() -> "Crew":
            from captionmill.data.progress import no_progress
            from captionmill.pipeline.plan.crew import open_crew
            from captionmill.pipeline.plan.work import Listeners

            stop_path = plan_path.absolute().with_name(f".{plan_path.stem}.stop")
            listeners = Listeners(events.on_splits, events.on_first_score, events.on_epoch, progress or no_progress)
            return stack.enter_context(open_crew(0 if cluster else jobs, cluster, stop_path, listeners, wait_s=wait_s))

        outcomes = _Run(graph, Workspace(plan_path), forced, start_crew, events).run_all()
        if any(outcome.summary for outcome in outcomes) or not report_path_for(plan_path).exists():
            _write_report(plan_path, outcomes, events.on_report)
    _require_made(plan_path, outcomes)
    return outcomes


def _write_report(plan_path: Path, outcomes: Sequence[TaskOutcome], on_report: Callable[[Path], None]) -> None:
    """Write the report of the outputs that are made; an error there is only a warning."""
    if made := [outcome.task for outcome in outcomes if outcome.is_made]:
        try:
            path = write_plan_report(plan_path, made)
        except (CaptionmillError, OSError) as exc:  # the outputs are complete
            _logger.warning("no report of this run: %s", show_error(exc))
        else:
            on_report(path)


def _require_made(plan_path: Path, outcomes: Sequence[TaskOutcome]) -> None:
    """Raise PipelineError naming the tasks that failed and those that were not run because of them."""
    if failed := [f"{outcome.task.id} failed ({outcome.error})" for outcome in outcomes if outcome.error]:
        missing = [outcome.task.id for outcome in outcomes if outcome.missing]
        not_run = f"; not run because of that: {', '.join(missing)}" if missing else ""
        raise PipelineError(f"{plan_path}: {'; '.join(failed)}{not_run}")


class _Run:
    """One run of a graph: which tasks wait, run or have ended."""

    def __init__(
        self,
        graph: Graph,
        workspace: Workspace,
        forced: frozenset[str],
        start_crew: "Callable[[], Crew]",
        events: RunEvents,
    ) -> None:
        self._graph, self._workspace, self._forced = graph, workspace, forced
        self._start_crew, self._events = start_crew, events
        self._crew: Crew | None = None
        self._waiting = list(graph.tasks)
        self._ready: dict[str, Standing] = {}
        self._begun: dict[str, Standing] = {}
        self._commands: dict[str, str] = {}
        self._outcomes: dict[str, TaskOutcome] = {}

    def run_all(self) -> list[TaskOutcome]:
        try:
            while self._waiting or self._ready or self._begun:
                self._find_ready()
                if self._ready or self._begun:
                    self._crew = self._crew or self._start_crew()
                    self._advance(self._crew)
        except BaseException:  # also Ctrl-C: worker processes stop where nothing is lost; finished jobs count
            for outcome in self._crew.stop() if self._crew else ():
                if outcome.summary:
                    self._end(outcome)
            raise
        return [self._outcomes[task.id] for task in self._graph.tasks]

    def _find_ready(self) -> None:
        """Settle the tasks that need no run, in order, and put those that can run now into `_ready`."""
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
                command = command_line(with_chosen_models(task.job)) if standing.runs else ""
            except CaptionmillError as exc:
                self._settle(TaskOutcome.failed(task, str(exc)))
                continue
            if standing.runs:
                self._ready[task.id] = standing
                self._commands[task.id] = command
            elif standing.made:
                self._workspace.refresh(task.output, standing.ingredients.inputs, standing.made)
                self._settle(TaskOutcome(task, "up to date"))

    def _advance(self, crew: "Crew") -> None:
        """Start the tasks for worker processes, else run one here, and settle the tasks that have ended."""
        if for_workers := crew.choose_for_workers([standing.task for standing in self._ready.values()]):
            crew.start([self._begin(task) for task in for_workers])
        elif self._ready:
            task = next(iter(self._ready.values())).task
            self._end(crew.do_here(self._begin(task)))
        for outcome in crew.ended(wait=not self._ready and bool(self._begun)):
            self._end(outcome)

    def _begin(self, task: Task) -> "JobCall":
        """Record and report that a task is about to run."""
        from captionmill.pipeline.plan.crew import JobCall

        standing = self._ready.pop(task.id)
        replaces = _replaces(standing, forced=task.id in self._forced)
        self._events.on_stage(task.id, self._commands[task.id])
        self._workspace.begin(task.id, task.output, standing.ingredients, replaces=replaces)
        self._begun[task.id] = standing
        return JobCall(task, replaces)

    def _end(self, outcome: TaskOutcome) -> None:
        """Record how a task ended: its output belongs to the inputs as they were at the start."""
        task = outcome.task
        inputs = dict(self._begun.pop(task.id).ingredients.inputs)
        if outcome.is_made:
            for name, source in task.job.inputs().items():
                if isinstance(source, Images):
                    inputs[name] = settle(source, inputs[name])
            self._workspace.end(task.output, inputs, outcome.duration_s)
        self._settle(outcome)

    def _settle(self, outcome: TaskOutcome) -> None:
        self._outcomes[outcome.task.id] = outcome
        self._events.on_outcome(outcome)


def _replaces(standing: Standing, *, forced: bool) -> bool:
    """Whether the pipeline made the output from something else. New images are only added to a store."""
    record, task = standing.record, standing.task
    if task.kind == "train":  # an existing model is ours, also after a process died
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
