"""The report of a pipeline: one page about the outputs of all its tasks, beside the pipeline file."""

import re
from collections.abc import Sequence
from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.models.bundle import model_exists
from captionmill.data.regular import read_bytes
from captionmill.pipeline.plan.graph import Task
from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, ExtractJob, TrainJob

_OURS = re.compile(rb'<meta name="generator" content="captionmill .*: report of a run</title>', re.DOTALL)
_HEAD_BYTES = 4000  # of a page, up to its title


def report_path_for(plan_path: Path) -> Path:
    """`report.html` beside pipeline.toml, `NAME.report.html` beside NAME.toml."""
    return plan_path.with_name("report.html" if plan_path.stem == "pipeline" else f"{plan_path.stem}.report.html")


def write_plan_report(plan_path: Path, tasks: Sequence[Task]) -> Path:
    """Write the report of `tasks`, whose outputs exist; returns its path.

    Raises InputError if there is a file of that name that is not a report, and the errors of `write_run_report`.
    """
    from captionmill.pipeline.pages.run_report import ReportSources, write_run_report

    path = report_path_for(plan_path)
    if path.exists() and not _OURS.search(read_bytes(path)[:_HEAD_BYTES]):
        raise InputError(f"{path}: exists already and is not a report of captionmill; move it away")
    jobs = [task.job for task in tasks]
    trainings = [job for job in jobs if isinstance(job, TrainJob)]
    used = [model for job in jobs if isinstance(job, EvaluateJob | CaptionJob) for model in job.models]
    models = dict.fromkeys([*(job.output for job in trainings), *used])
    sources = ReportSources(
        models=[model for model in models if model_exists(model)],
        features=[job.output for job in jobs if isinstance(job, ExtractJob)],
        scores=[job.output for job in jobs if isinstance(job, EvaluateJob)],
        tables=[job.output for job in jobs if isinstance(job, CaptionJob)],
        captions=[*dict.fromkeys(job.captions for job in trainings)],
        images=[*dict.fromkeys(job.images for job in jobs if isinstance(job, ExtractJob))],
    )
    write_run_report(path, sources, title=f"{plan_path.absolute().parent.name}: {plan_path.name}")
    return path
