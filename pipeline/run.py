"""The stages in order, from one file: extract, train, evaluate, caption. What is up to date is skipped."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from captionmill.data.bundle import bundle_exists
from captionmill.data.errors import InputError, UnfinishedRunError
from captionmill.data.splits import Splits
from captionmill.pipeline import summaries
from captionmill.pipeline.command_line import command_line
from captionmill.pipeline.folder import FolderSummary, caption_folder
from captionmill.pipeline.plan import Plan, read_plan
from captionmill.pipeline.workspace import Ingredients, Record, Workspace, describe
from captionmill.stages.decoding.evaluate import Evaluation, evaluate
from captionmill.stages.decoding.train import TrainSummary, train
from captionmill.stages.decoding.training_state import EpochResult
from captionmill.stages.encoding.extract import ExtractSummary, extract
from captionmill.stages.runtime import Progress, no_progress

StageName = Literal["extract", "train", "evaluate", "caption"]
StageSummary = ExtractSummary | TrainSummary | Evaluation | FolderSummary
_WHAT_MAKES_ROWS = ("backbone", "weights", "preprocess", "image_size", "views", "dtype")


@dataclass(frozen=True)
class StageOutcome:
    """One stage of a run."""

    stage: StageName
    output: Path
    summary: StageSummary | None
    """What the stage did; None if its output was up to date."""

    @property
    def text(self) -> str:
        """What the stage did, in words."""
        match self.summary:
            case ExtractSummary():
                return summaries.extract_line(self.summary)
            case TrainSummary():
                return summaries.train_line(self.summary)
            case Evaluation():
                return summaries.score_table(self.summary)
            case FolderSummary():
                return summaries.folder_line(self.summary)
            case None:
                return "up to date"


@dataclass(frozen=True)
class _Stage:
    name: StageName
    output: Path
    ingredients: Ingredients
    """Settings and inputs as they are now."""
    make: Callable[[bool], StageSummary]
    """Runs the stage; True replaces an output that this pipeline made from something else."""


def run_pipeline(
    plan_path: Path,
    *,
    on_stage: Callable[[StageName, str], None] = lambda stage, command: None,
    on_splits: Callable[[Splits], None] = lambda splits: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    progress: Progress = no_progress,
) -> list[StageOutcome]:
    """Run the stages that the TOML file `plan_path` describes; those whose output is up to date are skipped.

    `on_stage` hears the name of each stage that runs and the command that does the same by hand. Raises PipelineError
    for a file that cannot be understood, and whatever the stages raise.
    """
    plan = read_plan(plan_path)
    workspace = Workspace(plan_path)
    outcomes = []
    for stage in _stages(plan, on_splits, on_epoch, progress):
        if workspace.is_up_to_date(stage.name, stage.ingredients, stage.output):
            outcomes.append(StageOutcome(stage.name, stage.output, None))
            continue
        on_stage(stage.name, command_line(plan, stage.name))
        record = workspace.made(stage.name)
        if stage.name == "train" and record is None and bundle_exists(stage.output):
            raise InputError(f"{stage.output}: holds a model already that {plan_path} did not make; move it away")
        replaces = _replaces(stage, record)
        workspace.begin(stage.name, stage.ingredients, replaces=replaces)
        summary = stage.make(replaces)
        workspace.end(stage.name, stage.output)
        outcomes.append(StageOutcome(stage.name, stage.output, summary))
    return outcomes


def _replaces(stage: _Stage, record: Record | None) -> bool:
    """Whether the output is this pipeline's own, made from something else. More images are added, not made anew."""
    if record is None:
        return False
    if stage.name != "extract" or record.replaces:
        return True
    before, now = record.ingredients, stage.ingredients
    other_weights = before["inputs"].get("weights") != now["inputs"].get("weights")
    return other_weights or any(before["settings"].get(name) != now["settings"][name] for name in _WHAT_MAKES_ROWS)


def _train_or_restart(run: Callable[..., TrainSummary]) -> TrainSummary:
    """Go on with an unfinished run, or begin anew where the plan has changed since."""
    try:
        return run()
    except UnfinishedRunError:
        return run(restart=True)


def _weights_path(plan: Plan) -> Path | None:
    """The weights file, or None for weights by name."""
    path = Path(plan.extract.config.weights)
    return path if path.is_file() else None


def _stages(
    plan: Plan, on_splits: Callable[[Splits], None], on_epoch: Callable[[EpochResult], None], progress: Progress
) -> Iterator[_Stage]:
    """Each stage when its turn comes: only then do its inputs exist."""
    features, model, captions = plan.extract.output, plan.train.output, plan.train.captions
    yield _Stage(
        "extract",
        features,
        describe(asdict(plan.extract.config), {"images": plan.extract.images, "weights": _weights_path(plan)}),
        lambda replaced: extract(
            plan.extract.images, features, plan.extract.config, overwrite=replaced, progress=progress
        ),
    )
    yield _Stage(
        "train",
        model,
        describe(
            asdict(plan.train.config) | {"restval": plan.train.restval},
            {
                "features": features,
                "captions": captions,
                "train_list": plan.train.train_list,
                "val_list": plan.train.val_list,
            },
        ),
        lambda replaced: _train_or_restart(
            functools.partial(
                train,
                features,
                captions,
                model,
                plan.train.config,
                train_list=plan.train.train_list,
                val_list=plan.train.val_list,
                restval=plan.train.restval,
                overwrite=replaced,
                on_splits=on_splits,
                on_epoch=on_epoch,
                progress=progress,
            )
        ),
    )
    if scoring := plan.evaluate:
        yield _Stage(
            "evaluate",
            scoring.output,
            describe(
                asdict(scoring.search),
                {"features": features, "model": model, "captions": captions, "list": scoring.image_list},
            ),
            lambda replaced: evaluate(
                features,
                model,
                captions,
                image_list=scoring.image_list,
                output=scoring.output,
                search=scoring.search,
                progress=progress,
            ),
        )
    if folder := plan.caption:
        yield _Stage(
            "caption",
            folder.output,
            describe(asdict(folder.search), {"images": folder.images, "model": model}),
            lambda replaced: caption_folder(
                folder.images,
                model,
                folder.output,
                search=folder.search,
                machine=plan.extract.config,
                overwrite=replaced,
                progress=progress,
            ),
        )
