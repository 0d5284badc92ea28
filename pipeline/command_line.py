"""The command line that does by hand what a stage of a pipeline does."""

import os
import shlex
from dataclasses import fields
from pathlib import Path

from captionmill.pipeline.plan import Plan
from captionmill.stages.config import ExtractConfig, SearchConfig, TrainConfig


def command_line(plan: Plan, stage: str) -> str:
    """The command for one stage of `plan`, with paths as seen from the current folder, ready to paste."""
    features, model, captions = _show(plan.extract.output), _show(plan.train.output), _show(plan.train.captions)
    if stage == "extract":
        words = [_show(plan.extract.images), "--output", features, *_options(plan.extract.config)]
    elif stage == "train":
        lists = _path_option("--train-list", plan.train.train_list) + _path_option("--val-list", plan.train.val_list)
        restval = [] if plan.train.restval == "train" else ["--restval", plan.train.restval]
        words = [features, "--captions", captions, "--output", model, *lists, *restval, *_options(plan.train.config)]
    elif stage == "evaluate" and plan.evaluate:
        words = [features, "--model", model, "--captions", captions, *_path_option("--list", plan.evaluate.image_list)]
        words += ["--output", _show(plan.evaluate.output), *_options(plan.evaluate.search)]
    elif stage == "caption" and plan.caption:
        words = [_show(plan.caption.images), "--model", model, "--output", _show(plan.caption.output)]
        words += _options(plan.caption.search)
    else:
        raise ValueError(f"the plan has no stage {stage}")
    return shlex.join(["captionmill", stage, *words])


def _show(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _path_option(name: str, path: Path | None) -> list[str]:
    return [name, _show(path)] if path else []


def _options(config: ExtractConfig | TrainConfig | SearchConfig) -> list[str]:
    """The settings that differ from their defaults, as options."""
    words = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default and not isinstance(value, SearchConfig):
            name = field.name.replace("_", "-")
            words += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return words
