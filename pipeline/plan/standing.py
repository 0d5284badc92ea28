"""The standing of each task of a pipeline: up to date, or the reasons to run it."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionmill.data.errors import CaptionmillError, InputError
from captionmill.data.foreign import parse_json
from captionmill.data.models.bundle import model_exists
from captionmill.data.paths import AnyPath, as_path
from captionmill.data.regular import read_text
from captionmill.data.tables.formats import is_caption_table, read_captions
from captionmill.pipeline.captioning.sidecars import count_missing
from captionmill.pipeline.plan.fingerprints import (
    Fingerprint,
    Images,
    Input,
    glance_at,
    output_exists,
    take_fingerprint,
)
from captionmill.pipeline.plan.graph import Graph, Task
from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, Job
from captionmill.pipeline.plan.read import read_plan
from captionmill.pipeline.plan.records import Ingredients, Record, Workspace
from captionmill.stages.scoring.statistics import repeats_word


@dataclass(frozen=True)
class Standing:
    """One task, compared with what made its output."""

    task: Task
    reasons: tuple[str, ...]
    """The reasons to run it; empty if it is up to date."""
    ingredients: Ingredients
    """The current settings and inputs, without inputs that do not exist yet."""
    made: Fingerprint | None
    """The current output."""
    record: Record | None
    """The record of how the output was made."""
    error: str = ""
    """Why it cannot be run, in one line."""

    @property
    def runs(self) -> bool:
        """Whether it must run."""
        return bool(self.reasons)

    @property
    def text(self) -> str:
        """ "up to date", "would run: hidden_dim was 512, is 1024"."""
        if self.error:
            return f"cannot run: {self.error}"
        return f"would run: {'; '.join(self.reasons)}" if self.reasons else "up to date"


def survey(plan_path: AnyPath, start: str | None = None) -> tuple[Graph, list[Standing]]:
    """The graph of the pipeline file `plan_path`, and the standing of each of its tasks; runs and changes nothing.

    `start` names tasks that run in any case, as for `run_pipeline`. Raises PipelineError for a file that is not valid.
    """
    plan_path = Path(plan_path)
    graph, workspace = read_plan(plan_path), Workspace(plan_path)
    forced = graph.forced_by(start)
    standings: dict[str, Standing] = {}
    for task in graph.tasks:
        before = [need for need in graph.needs(task) if standings[need.id].runs or standings[need.id].error]
        try:
            standings[task.id] = find_standing(task, workspace, before=before, forced=task.id in forced)
        except CaptionmillError as exc:
            standings[task.id] = Standing(task, (), Ingredients({}, {}), None, None, str(exc))
    return graph, list(standings.values())


def find_standing(task: Task, workspace: Workspace, *, before: Sequence[Task] = (), forced: bool = False) -> Standing:
    """The standing of `task`; the tasks `before` it have yet to run, so their outputs are not examined.

    Raises PipelineError or InputError for an input that is not there, or an output that may not be replaced.
    """
    record = workspace.record(task.output)
    _require_ours(task, record)
    not_made_yet = [need.output for need in before]
    made = take_fingerprint(task.output, record.made if record else None) if output_exists(task.output) else None
    known = record.ingredients.inputs if record and record.made and made else {}
    inputs = {
        name: _fingerprint(source, known.get(name))
        for name, source in task.job.inputs().items()
        if source not in not_made_yet
    }
    settings = plain(task.job.settings())
    reasons = ["forced by `from`"] if forced else []
    if record is None:
        reasons.append("never made by this pipeline" if made else "never run")
    elif record.made is None:
        reasons.append("interrupted")
    elif made is None:
        reasons.append(f"{task.output.name} is not there")
    else:
        reasons += setting_changes(record.ingredients.settings, settings, plain(task.job.default_settings()))
        reasons += _input_changes(known, inputs, set(task.job.inputs()))
        if made.content == record.made.content:
            reasons += _word_changes(task.job, record.ingredients.settings, settings)
        else:
            reasons.append(f"{task.output.name} was changed since")
        reasons += [] if reasons or before else _missing_companions(task.job)
    if before:
        reasons.append(f"{', '.join(need.id for need in before)} {'runs' if len(before) == 1 else 'run'} first")
    return Standing(task, tuple(reasons), Ingredients(settings, inputs), made, record)


def _require_ours(task: Task, record: Record | None) -> None:
    if task.kind == "train" and record is None and model_exists(task.output):
        raise InputError(f"{task.output}: holds a model already that this pipeline did not make; move it away")
    is_ours = record is not None and record.made is not None
    if task.kind == "caption" and not is_ours and task.output.exists() and not is_caption_table(task.output):
        raise InputError(f"{task.output}: not a table of captions; move it away, or name another output")


def _fingerprint(source: Input, known: Fingerprint | None) -> Fingerprint:
    """The fingerprint of an input; only the quick half of images that there is nothing to compare with."""
    return glance_at(source) if isinstance(source, Images) and known is None else take_fingerprint(source, known)


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` as read back from JSON."""
    values: dict[str, Any] = parse_json(json.dumps(settings, default=str))
    return values


def setting_changes(was: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """A text for each setting that differs; a setting that an older version did not have counts as its default."""
    changes = []
    for name, value in now.items():
        old = was.get(name, defaults.get(name))
        if isinstance(value, dict):
            changes += setting_changes(old or {}, value, defaults.get(name) or {})
        elif old != value:
            changes.append(f"{name} was {_show(old)}, is {_show(value)}")
    return changes


def _word_changes(job: Job, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A text if captions would be others than those of a version in which any word could follow itself."""
    if "repeat_words" in was or now.get("repeat_words") is not False:
        return []
    captions: Iterable[str] = ()
    if isinstance(job, CaptionJob):
        captions = (row.caption for row in read_captions(job.output))
    elif isinstance(job, EvaluateJob):
        captions = (one["caption"] for one in parse_json(read_text(job.output))["captions"].values())
    return ["repeat_words was true, is false"] if any(map(repeats_word, captions)) else []


def _show(value: object) -> str:
    return "not set" if value is None else json.dumps(value)


def _input_changes(was: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint], names: Collection[str]) -> list[str]:
    differing = [name for name in now if name in was and was[name].content != now[name].content]
    changes = [f"{name} changed{_counts(was[name], now[name])}" for name in differing]
    changes += [f"{name} is new" for name in now if name not in was]
    return changes + [f"{name} is left out" for name in was if name not in names]


def _missing_companions(job: Job) -> list[str]:
    """The missing files of those that a job writes beside its output, which is up to date."""
    if not isinstance(job, CaptionJob):
        return []
    wanted = (as_path(path) for path in (job.table.gallery, job.table.metadata_jsonl, job.table.tars))
    missing = [f"{path.name} is not there" for path in wanted if path and not path.exists()]
    if job.table.sidecar and (count := count_missing(job.images, job.table.sidecar, job.output)):
        missing.append(f"{count} sidecar{'s are' if count > 1 else ' is'} not there")
    return missing


def _counts(was: Fingerprint, now: Fingerprint) -> str:
    """The number of images before and now, if it differs."""
    before, after = was.content.partition(" images")[0], now.content.partition(" images")[0]
    return f" ({before} before, {after} now)" if before.isdecimal() and after.isdecimal() and before != after else ""
