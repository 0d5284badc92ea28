"""The command line of each job of a pipeline."""

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from captionmill.data.captions.files import CaptionFiles
from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, ExtractJob, Job, TrainJob
from captionmill.stages.fields import Configuration, settings_of
from captionmill.stages.settings import MACHINE_SETTINGS, VALIDATION_SEARCH


def command_line(job: Job) -> str:
    """The command for `job`, with paths relative to the current folder, ready to paste."""
    match job:
        case ExtractJob():
            words = [show_path(job.images), *_path_option("--output", job.output), *_settings_words(job.config)]
        case TrainJob():
            words = [show_path(job.features), *_captions_words(job.captions)]
            words += _path_option("--output", job.output)
            words += _settings_words(job.lists) + _settings_words(job.config)
            words += _settings_words(job.config.search, VALIDATION_SEARCH)
        case EvaluateJob():
            words = [show_path(job.features), *_models_words(job.models), *_captions_words(job.captions)]
            words += _path_option("--list", job.image_list) + _path_option("--output", job.output)
            words += _settings_words(job.search) + ([] if job.device == "auto" else ["--device", job.device])
        case CaptionJob():
            words = [show_path(job.images), *_models_words(job.models), *_path_option("--output", job.output)]
            words += _settings_words(job.table)
            words += _settings_words(job.search) + _settings_words(job.machine, MACHINE_SETTINGS)
    return shlex.join(["captionmill", job.kind, *words])


def show_path(path: Path | str) -> str:
    """`path` relative to the current folder, if it is below it."""
    if isinstance(path, str):  # a URL
        return path
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _path_option(name: str, path: Path | None) -> list[str]:
    return [name, show_path(path)] if path else []


def _captions_words(captions: CaptionFiles) -> list[str]:
    words = [word for path in captions.paths for word in _path_option("--captions", path)]
    for name, column in captions.settings.items():
        words += [f"--{name.replace('_', '-')}", column]
    return words


def _models_words(models: tuple[Path, ...]) -> list[str]:
    return [word for model in models for word in _path_option("--model", model)]


def _settings_words(config: Configuration, names: Collection[str] = ()) -> list[str]:
    """The settings, all or those called `names`, that differ from their defaults, as options."""
    words = []
    for name, setting in settings_of(type(config)).items():
        value = getattr(config, name)
        if value == setting.default or (names and name not in names):
            continue
        option = name.replace("_", "-")
        if setting.type.kind is bool:
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            values = value if setting.type.is_list else [value]
            words += [word for one in values for word in (f"--{option}", _word_of(one))]
    return words


def _word_of(value: object) -> str:
    return show_path(value) if isinstance(value, Path) else str(value)
