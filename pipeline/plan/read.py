"""Reads a pipeline file (TOML) into the graph of its tasks. docs/pipeline.md describes the file."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from captionmill.data.captions.files import CaptionFiles, Only
from captionmill.data.errors import AnnotationError, InputError, PipelineError
from captionmill.data.tables.formats import format_of
from captionmill.pipeline.captioning.sidecars import is_sidecar_suffix
from captionmill.pipeline.plan.file import PlanFile, Section, refuse_unknown_tables, unknown_name
from captionmill.pipeline.plan.graph import Graph, Task
from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, ExtractJob, Kind, Several, TrainJob
from captionmill.stages.fields import settings_of
from captionmill.stages.settings import MACHINE_SETTINGS, VALIDATION_SEARCH, ExtractConfig, SearchConfig, TrainConfig
from captionmill.stages.split_settings import SplitLists
from captionmill.stages.table_settings import TableConfig

Value = TypeVar("Value")


@dataclass(frozen=True)
class _NamedModel:
    """A model that a table names: one that the pipeline trains, or an existing folder."""

    path: Path
    name: str
    training: TrainJob | None = None


def read_plan(path: Path) -> Graph:
    """The tasks that the TOML file `path` describes; PipelineError with the line if it cannot be understood.

    Paths in the file start at its folder; in the tasks they are absolute.
    """
    file = PlanFile(path)
    refuse_unknown_tables(file, get_args(Kind))
    sections = file.sections("extract")
    extractions = [Task(section.name, _read_extract(section, several=len(sections) > 1)) for section in sections]
    trainings = [task for section in file.sections("train") for task in _read_train(section, extractions)]
    scorings = [
        task for section in file.sections("evaluate") for task in _read_evaluate(section, extractions, trainings)
    ]
    captionings = [_read_caption_job(section, extractions, trainings) for section in file.sections("caption")]
    tasks = [*extractions, *trainings, *scorings, *captionings]
    if not tasks:
        raise PipelineError(f"{path}: describes nothing to do; `captionmill init` writes a file to start from")
    try:
        return Graph.of(tasks)
    except PipelineError as exc:
        raise PipelineError(f"{path}: {exc}") from exc


def _read_extract(section: Section, *, several: bool) -> ExtractJob:
    images = section.images("images")
    output = section.path("output", f"features/{section.name}.h5" if section.name else "features.h5")
    config = section.settings(ExtractConfig())
    return ExtractJob(images, output, replace(config, own_failures=several or config.own_failures))


def _read_train(section: Section, extractions: Sequence[Task]) -> list[Task]:
    features = _read_features(section, extractions)
    if features is None:
        raise section.error(None, _features_needed(extractions))
    captions = _named_captions(section)
    if captions is None:
        raise section.error(None, "needs `captions`, a path")
    of_search = {name: one for name, one in settings_of(SearchConfig).items() if name in VALIDATION_SEARCH}
    grid = section.grid({**settings_of(TrainConfig), **of_search})
    output = section.path("output", _default_output("model", section.name, "", is_folder=bool(grid)))
    job = TrainJob(
        features, captions, output, TrainConfig(), section.settings(SplitLists(), tuple(settings_of(SplitLists)))
    )
    config = section.settings(TrainConfig(search=section.settings(SearchConfig(), VALIDATION_SEARCH)))
    tasks = []
    for values in itertools.product(*grid.values()):
        chosen: dict[str, Any] = dict(zip(grid, values, strict=True))
        name = "-".join(
            filter(None, [section.name, *(f"{key}-{_in_folder_name(value)}" for key, value in chosen.items())])
        )
        search = section.changed(config.search, {key: chosen.pop(key) for key in of_search if key in chosen})
        tried = section.changed(config, {**chosen, "search": search})
        tried = replace(tried, search=replace(search, max_length=tried.max_length))  # as the command does
        tasks.append(Task(name, replace(job, config=tried, output=output / name if grid else output), section.name))
    return tasks


def _read_evaluate(section: Section, extractions: Sequence[Task], trainings: Sequence[Task]) -> list[Task]:
    models = _named_models(section, trainings)
    several = cast(Several, section.choice("several", ("each", "best", "ensemble")))
    features, captions = _read_features(section, extractions), _named_captions(section)
    image_list, device = section.optional_path("list"), section.text("device")
    groups = [[model] for model in models] if several == "each" else [models]
    is_folder = len(groups) > 1
    output = section.path("output", _default_output("scores", section.name, ".json", is_folder=is_folder))
    search = section.settings(SearchConfig())
    tasks = []
    for group in groups:
        name = "-".join(filter(None, [section.name, group[0].name])) if is_folder else section.name
        jobs = [model.training for model in group if model.training]
        job = EvaluateJob(
            features or _agreed(section, "features", [job.features for job in jobs]),
            tuple(model.path for model in group),
            captions or _agreed(section, "captions", [job.captions for job in jobs]),
            output / f"{name}.json" if is_folder else output,
            search,
            several,
            image_list,
            device or (jobs[0].config.device if jobs else "auto"),
        )
        tasks.append(Task(name, job, section.name))
    return tasks


def _read_caption_job(section: Section, extractions: Sequence[Task], trainings: Sequence[Task]) -> Task:
    images, models = section.images("images"), _named_models(section, trainings)
    several = cast(Several, section.choice("several", ("best", "ensemble")))
    table = section.settings(TableConfig(), [*settings_of(TableConfig)])
    if table.sidecar is not None and not is_sidecar_suffix(table.sidecar):
        raise section.error(
            "sidecar", f"`sidecar` must be the suffix of a text file, such as .txt, not {table.sidecar!r}"
        )
    suffix = f".{table.format or 'csv'}"
    output = section.path("output", _default_output("captions", section.name, suffix, is_folder=False))
    try:
        format_of(output, table.format)
    except InputError as error:
        raise section.error("output", str(error)) from None
    features = [model.training.features for model in models if model.training]
    made_by = [task.job.config for task in extractions if isinstance(task.job, ExtractJob) and task.output in features]
    used = {name: getattr(made_by[0], name) for name in MACHINE_SETTINGS} if made_by else {}
    machine = section.settings(section.changed(ExtractConfig(), used), MACHINE_SETTINGS)
    paths = tuple(model.path for model in models)
    job = CaptionJob(images, paths, output, section.settings(SearchConfig()), several, machine, table)
    return Task(section.name, job)


def _named_captions(section: Section) -> CaptionFiles | None:
    """The captions that the table names, one path or a list; None if it names none."""
    paths = section.paths("captions")
    columns = [section.text(key) for key in ("image_column", "caption_column")]
    only = section.text("only")
    if not paths and any((*columns, only)):
        raise section.error(None, "describes how to read captions, but names no `captions`")
    if not paths:
        return None
    try:
        return CaptionFiles(tuple(paths), columns[0], columns[1], cast(Only | None, only))
    except AnnotationError as exc:
        raise section.error("only", str(exc)) from exc


def _read_features(section: Section, extractions: Sequence[Task]) -> Path | None:
    """The store that `features` names; else the one of the same name, or the only one; None if there is neither."""
    value = section.text("features")
    if value is not None:
        names = {task.name: task.output for task in extractions if task.name}
        if value in names or _is_path(section, value):
            return names.get(value) or section.resolve(value)
        raise section.error("features", unknown_name(value, "extraction", [*names]))
    same = [task.output for task in extractions if task.name == section.name]
    return same[0] if same else extractions[0].output if len(extractions) == 1 else None


def _features_needed(extractions: Sequence[Task]) -> str:
    if extractions:
        return f"needs `features`, the name of an extraction: {', '.join(task.name for task in extractions)}"
    return "needs `features`, a feature store, or an [extract] table that makes one"


def _named_models(section: Section, trainings: Sequence[Task]) -> list[_NamedModel]:
    """The models that `model` names; else the training or grid of the same name, else all trainings."""
    values = section.texts("model")
    same_name = any(task.is_called(section.name) for task in trainings)
    found: dict[Path, _NamedModel] = {}
    for value in values or [section.name if same_name else "*"]:
        named = [task for task in trainings if task.is_called(value)]
        for task in named:
            if isinstance(task.job, TrainJob):
                found[task.output] = _NamedModel(task.output, task.name, task.job)
        if not named and values:
            if not _is_path(section, value):
                known = dict.fromkeys(name for task in trainings for name in (task.group, task.name) if name)
                raise section.error("model", unknown_name(value, "training", [*known]))
            path = section.resolve(value)
            job = next((task.job for task in trainings if task.output == path), None)
            found[path] = _NamedModel(path, path.name, job if isinstance(job, TrainJob) else None)
    if not found:
        raise section.error(None, "needs `model`, a model's folder, or a [train] table that makes one")
    return list(found.values())


def _is_path(section: Section, value: str) -> bool:
    return "/" in value or "\\" in value or "." in value or section.resolve(value).exists()


def _agreed(section: Section, key: str, values: Sequence[Value]) -> Value:
    """The value that the trainings of the scored models have in common."""
    if len(set(values)) != 1:
        why = "the models were not trained on the same" if values else "this pipeline does not train the model"
        raise section.error(None, f"needs `{key}`: {why}")
    return values[0]


def _default_output(name: str, section_name: str, suffix: str, *, is_folder: bool) -> str:
    folder = {"model": "models"}.get(name, name)
    if is_folder:
        return folder
    return f"{folder}/{section_name}{suffix}" if section_name else f"{name}{suffix}"


def _in_folder_name(value: object) -> str:
    if isinstance(value, Path):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value)
