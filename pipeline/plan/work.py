"""Runs one job of a pipeline in this process, as the job's command would."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from captionmill.data.captions.splits import Splits
from captionmill.data.errors import UnfinishedRunError
from captionmill.data.progress import Progress, no_progress
from captionmill.pipeline import summaries
from captionmill.pipeline.captioning.folder import FolderSummary, caption_folder
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, ExtractJob, Job, TrainJob, with_chosen_models
from captionmill.stages.encoding.extract import ExtractSummary, extract
from captionmill.stages.encoding.spread import Spread
from captionmill.stages.scoring.evaluate import Evaluation, evaluate
from captionmill.stages.scoring.settings import EvaluateConfig
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.state import EpochResult
from captionmill.stages.training.train import TrainSummary, train

Summary = ExtractSummary | TrainSummary | Evaluation | FolderSummary


@dataclass(frozen=True)
class Listeners:
    """The functions that are called while a job runs."""

    on_splits: Callable[[Splits], None] = lambda splits: None
    on_first_score: Callable[[float], None] | None = None
    on_epoch: Callable[[EpochResult], None] = lambda result: None
    progress: Progress = no_progress


def do_job(
    job: Job, *, replaces: bool = False, spread: Spread | None = None, listeners: Listeners = Listeners()
) -> Summary:
    """Run `job`; with `replaces` it may replace an output made from something else.

    Only extraction uses `spread`. Raises the errors of the stage.
    """
    progress = listeners.progress
    job = with_chosen_models(job)
    match job:
        case ExtractJob():
            return extract(job.images, job.output, job.config, overwrite=replaces, spread=spread, progress=progress)
        case TrainJob():
            run = functools.partial(
                train,
                job.features,
                job.captions,
                job.output,
                job.config,
                data=job.lists,
                overwrite=replaces,
                listener=TrainListener(listeners.on_splits, listeners.on_first_score, listeners.on_epoch),
                progress=progress,
            )
            try:
                return run()
            except UnfinishedRunError:  # the plan has changed since
                return run(restart=True)
        case EvaluateJob():
            return evaluate(
                job.features,
                job.models,
                job.captions,
                EvaluateConfig(device=job.device, search=job.search),
                image_list=job.image_list,
                output=job.output,
                progress=progress,
            )
        case CaptionJob():
            return caption_folder(
                job.images,
                job.models,
                job.output,
                job.search,
                table=job.table,
                cache=CacheConfig(machine=job.machine),
                overwrite="made" if replaces else False,
                progress=progress,
            )


def describe(summary: Summary) -> str:
    """The summary of a job in words."""
    match summary:
        case ExtractSummary():
            return summaries.extract_line(summary)
        case TrainSummary():
            return summaries.train_line(summary)
        case Evaluation():
            return summaries.score_table(summary)
        case FolderSummary():
            return "\n".join([summaries.folder_line(summary), *summaries.written_lines(summary)])
