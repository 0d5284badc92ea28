"""The command line that does by hand what a job of a pipeline does."""

import os
import shlex
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, ExtractJob, Job, TrainJob
from captionmill.stages.settings import MACHINE_SETTINGS, ExtractConfig, SearchConfig, TableConfig, TrainConfig


def command_line(job: Job) -> str:
    """The command for `job`, with paths as seen from the current folder, ready to paste."""
    match job:
        case ExtractJob():
            words = [show_path(job.images), *_path_option("--output", job.output), *_options(job.config)]
        case TrainJob():
            words = [show_path(job.features), *_path_option("--captions", job.captions)]
            words += _path_option("--output", job.output)
            words += _path_option("--train-list", job.train_list) + _path_option("--val-list", job.val_list)
            words += [] if job.restval == "train" else ["--restval", job.restval]
            words += _options(job.config)
        case EvaluateJob():
            words = [show_path(job.features), *_models(job.models), *_path_option("--captions", job.captions)]
            words += _path_option("--list", job.image_list) + _path_option("--output", job.output)
            words += _options(job.search) + ([] if job.device == "auto" else ["--device", job.device])
        case CaptionJob():
            words = [show_path(job.images), *_models(job.models), *_path_option("--output", job.output)]
            words += _path_option("--gallery", job.gallery) + _options(job.table)
            words += _options(job.search) + _options(job.machine, MACHINE_SETTINGS)
    return shlex.join(["captionmill", job.kind, *words])


def show_path(path: Path | str) -> str:
    """`path` as seen from the current folder, if it is below it."""
    if isinstance(path, str):  # a URL
        return path
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _path_option(name: str, path: Path | None) -> list[str]:
    return [name, show_path(path)] if path else []


def _models(models: tuple[Path, ...]) -> list[str]:
    return [word for model in models for word in _path_option("--model", model)]


def _options(
    config: ExtractConfig | TrainConfig | SearchConfig | TableConfig, names: Collection[str] | None = None
) -> list[str]:
    """The settings, of all or of `names`, that differ from their defaults, as options."""
    words = []
    for field in fields(config):
        value = getattr(config, field.name)
        is_chosen = names is None or field.name in names
        if is_chosen and value != field.default and not isinstance(value, SearchConfig):
            option = field.name.replace("_", "-")
            words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    return words
