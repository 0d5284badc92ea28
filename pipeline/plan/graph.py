"""A pipeline as a graph of named tasks, connected where the output of one is an input of another; their outcomes."""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.errors import PipelineError
from captionmill.data.paths import as_path
from captionmill.pipeline.plan.fingerprints import Input
from captionmill.pipeline.plan.jobs import CaptionJob, Job, Kind

if TYPE_CHECKING:
    from captionmill.pipeline.plan.work import Summary


@dataclass(frozen=True)
class Task:
    """One job of a pipeline."""

    name: str
    """Unique within its kind; "" if the pipeline has one unnamed job of the kind."""
    job: Job
    group: str = ""
    """The name of its table: for a task of a grid the grid's name, else its own."""

    @property
    def id(self) -> str:
        """The kind and the name: "extract", "train.base-seed-0"."""
        return f"{self.kind}.{self.name}" if self.name else self.kind

    @property
    def kind(self) -> Kind:
        """The stage that does the job."""
        return self.job.kind

    @property
    def output(self) -> Path:
        """The output of the job."""
        return self.job.output

    def is_called(self, pattern: str) -> bool:
        """Whether `pattern`, which may have wildcards (*), is its name or that of its table."""
        return fnmatch.fnmatchcase(self.name, pattern) or fnmatch.fnmatchcase(self.group, pattern)


@dataclass(frozen=True)
class TaskOutcome:
    """One task of a run: made, up to date, failed, or not run because of others."""

    task: Task
    text: str
    """A summary of the stage in words, or the reason why nothing was done."""
    summary: "Summary | None" = None
    """The summary of the stage; None if it did not run."""
    error: str = ""
    """Why it failed, in one line."""
    missing: tuple[str, ...] = ()
    """The tasks that it needs and that failed or were not run; if there are any, it was not run."""
    warnings: tuple[str, ...] = ()
    """Its warnings, if it ran in a worker process."""
    duration_s: float = 0.0
    """How long it ran."""

    @classmethod
    def failed(cls, task: Task, error: str) -> "TaskOutcome":
        """The outcome of a task that failed because of `error`."""
        return cls(task, f"failed: {error}", error=error)

    @property
    def is_made(self) -> bool:
        """Whether the output exists as the plan describes it."""
        return not self.error and not self.missing


@dataclass(frozen=True)
class Graph:
    """Tasks in an order in which they can be done: each after those that make its inputs."""

    tasks: tuple[Task, ...]

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> "Graph":
        """The graph of `tasks`, which may come in any order.

        Raises PipelineError if two have the same name or output, or if they depend on each other in a circle.
        """
        by_id: dict[str, Task] = {}
        by_output: dict[Path, Task] = {}
        for task in tasks:
            if task.id in by_id:
                raise PipelineError(f"two tasks are called {task.id}; rename one")
            if other := by_output.get(task.output):
                raise PipelineError(f"{other.id} and {task.id} both write {task.output}; give one another `output`")
            by_id[task.id] = by_output[task.output] = task
        _require_own_galleries(tasks, by_output)
        needs = {task.id: [need.id for need in _needs(task, by_output)] for task in tasks}
        try:
            order = list(TopologicalSorter(needs).static_order())
        except CycleError as exc:
            circle = " <- ".join(exc.args[1])
            raise PipelineError(f"{circle}: each reads what the next writes; give one another `output`") from exc
        depth: dict[str, int] = {}
        for task_id in order:
            depth[task_id] = 1 + max((depth[need] for need in needs[task_id]), default=0)
        return cls(tuple(sorted(tasks, key=lambda task: depth[task.id])))

    @cached_property
    def _by_output(self) -> dict[Path, Task]:
        return {task.output: task for task in self.tasks}

    def needs(self, task: Task) -> list[Task]:
        """The tasks that make inputs of `task`."""
        return _needs(task, self._by_output)

    def find(self, stage: str) -> list[Task]:
        """The tasks that `stage` means: a kind (train), a task (train.base) or a name (base), with wildcards (*).

        PipelineError if it means none.
        """
        found = [
            task
            for task in self.tasks
            if stage == task.kind or fnmatch.fnmatchcase(task.id, stage) or (task.name and task.is_called(stage))
        ]
        if not found:
            names = [name for task in self.tasks for name in (task.id, task.kind, task.name, task.group) if name]
            nearest = difflib.get_close_matches(stage, names, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(sorted({*names}))}"
            raise PipelineError(f"there is no task {stage}; {hint}")
        return found

    def forced_by(self, stage: str | None) -> frozenset[str]:
        """The ids of the tasks that `--from STAGE` forces: those that `find` finds, and all that depend on them."""
        forced = {task.id for task in self.find(stage)} if stage else set()
        for task in self.tasks:  # in order: the tasks that a task needs come before it
            if any(need.id in forced for need in self.needs(task)):
                forced.add(task.id)
        return frozenset(forced)


def _require_own_galleries(tasks: Sequence[Task], by_output: Mapping[Path, Task]) -> None:
    writers = dict(by_output)
    for task in tasks:
        if isinstance(task.job, CaptionJob) and (gallery := as_path(task.job.table.gallery)):
            if other := writers.get(gallery):
                raise PipelineError(f"{other.id} and {task.id} both write {gallery}; give one another `gallery`")
            writers[gallery] = task


def _needs(task: Task, by_output: dict[Path, Task]) -> list[Task]:
    sources: list[Input] = list(task.job.inputs().values())
    return [by_output[source] for source in sources if isinstance(source, Path) and source in by_output]
