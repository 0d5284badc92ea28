"""The results of commands as fields for programs, of which `--log-format json` writes one object per result.

Each function takes what a stage returns. docs/formats.md lists the fields of every command.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the stages import torch, and `--help` must be instant
    from captionmill.data.tables.decisions import DecisionSummary
    from captionmill.pipeline.captioning.folder import FolderSummary
    from captionmill.pipeline.doctor import Facts
    from captionmill.pipeline.export import ExportSummary
    from captionmill.pipeline.forecast import Forecast
    from captionmill.pipeline.search import Retrieval, RetrievalFiles
    from captionmill.pipeline.throughput import Throughput
    from captionmill.stages.encoding.extract import ExtractSummary
    from captionmill.stages.ranking.audit import CaptionAudit
    from captionmill.stages.scoring.bootstrap import Estimate
    from captionmill.stages.scoring.comparison import TableComparison
    from captionmill.stages.scoring.evaluate import Evaluation
    from captionmill.stages.scoring.leaks import LeakReport
    from captionmill.stages.training.train import TrainSummary

Fields = dict[str, Any]
"""Numbers, strings, paths, null, and lists and objects of these."""


def extraction_fields(summary: "ExtractSummary") -> Fields:
    """The counts and the pace of an extraction."""
    return {
        "output": summary.output,
        "found": summary.found,
        "cached": summary.cached,
        "extracted": summary.extracted,
        "failed": len(summary.failures),
        "unlisted": summary.unlisted,
        "pruned": summary.pruned,
        **_pace(summary.extracted, summary.duration_s),
        "engine": summary.engine or None,
    }


def caption_fields(summary: "FolderSummary", output: object) -> Fields:
    """The counts and the pace of a captioning; null for a kind of file that is not written."""
    embedded, shards = summary.files.embedded, summary.files.shards
    return {
        "output": output,
        "features": summary.features_path,
        "found": summary.found,
        "cached": summary.cached,
        "captioned": summary.captioned,
        "made": summary.made,
        "failed": len(summary.failures),
        "corrections": summary.corrections,
        "reviewed": summary.reviewed,
        "renamed": summary.renamed,
        "absent": summary.absent,
        "changed": len(summary.changed),
        "sidecars": summary.sidecars,
        "embedded": embedded and embedded.embedded,
        "tars": shards and shards.written,
        **_pace(summary.captioned, summary.duration_s),
    }


def forecast_fields(forecast: "Forecast", output: object) -> Fields:
    """What a dry run of an extraction or a captioning found."""
    rows = forecast.rows
    return {
        "output": output,
        "dry_run": True,
        "found": forecast.found,
        "cached": forecast.found - forecast.to_read,
        "to_read": forecast.to_read,
        "read_again": forecast.read_again,
        "failed_before": forecast.failed_before,
        "unlisted": forecast.unlisted,
        "made": rows and rows.made,
        "corrections": rows and rows.corrections,
        "reviewed": rows and rows.reviewed,
        "elsewhere": rows and rows.elsewhere,
        "seconds": forecast.duration_s and round(forecast.duration_s, 3),
    }


def training_fields(summary: "TrainSummary", output: object) -> Fields:
    """The epoch that was kept."""
    splits = summary.splits
    return {
        "output": output,
        "train_images": len(splits.train),
        "val_images": len(splits.val),
        "test_images": len(splits.test),
        "words": summary.vocab_size,
        "epoch": summary.best.epoch,
        "epochs": len(summary.history),
        "val_cider_d": summary.best.val_cider,
        "val_cider_d_reranked": summary.reranked_cider,
        "seconds": round(summary.duration_s, 3),
    }


def evaluation_fields(evaluation: "Evaluation", output: object) -> Fields:
    """The scores with their intervals, and what they were measured on."""
    against = evaluation.against
    return {
        "output": output,
        "images": len(evaluation.captions),
        "missing": len(evaluation.missing),
        "damaged": len(evaluation.damaged),
        "scores": _estimates(evaluation.estimates),
        "differences": against and _estimates(against.differences),
    }


def leak_fields(report: "LeakReport", output: object) -> Fields:
    """The pairs that were found."""
    return {
        "output": output,
        "threshold": report.threshold,
        "images": report.images,
        "pairs": sum(count.near for count in report.counts.values()),
        "identical": sum(count.identical for count in report.counts.values()),
        "without_features": len(report.without_features),
        "damaged": len(report.damaged),
    }


def search_fields(search: "Retrieval", files: "RetrievalFiles") -> Fields:
    """The images that were found, and what was searched."""
    return {
        "output": files.output,
        "gallery": files.gallery,
        "searched": search.searched,
        "damaged": len(search.damaged),
        "unknown_words": search.unknown_words,
        "found": [asdict(image) for image in search.images],
    }


def audit_fields(audit: "CaptionAudit", output: object) -> Fields:
    """The captions that fit worst, and what they were found among."""
    return {
        "output": output,
        "captions": audit.captions,
        "images": audit.images,
        "without_features": len(audit.without_features),
        "damaged": len(audit.damaged),
        "unknown_share": audit.unknown_share,
        "worst": [asdict(caption) for caption in audit.worst],
    }


def decision_fields(summary: "DecisionSummary", output: object, *, dry_run: bool) -> Fields:
    """What a file of decisions did to a table."""
    return {
        "output": output,
        "dry_run": dry_run,
        "corrected": summary.corrected,
        "accepted": summary.accepted,
        "later": summary.later,
        "taken_back": summary.taken_back,
        "as_before": summary.as_before,
        "conflicts": len(summary.conflicts),
    }


def comparison_fields(comparison: "TableComparison", output: object, page: object) -> Fields:
    """How two tables differ."""
    scores = comparison.scores
    return {
        "output": output,
        "page": page,
        "equal": comparison.equal,
        "different": len(comparison.different),
        "only_first": len(comparison.only_first),
        "only_second": len(comparison.only_second),
        "scored": scores and scores.image_count,
        "reviewed": scores and scores.reviewed_count,
        "first": scores and _estimates(scores.first),
        "second": scores and _estimates(scores.second),
        "differences": scores and _estimates(scores.differences),
    }


def export_fields(summary: "ExportSummary") -> Fields:
    """The files of an export."""
    return {
        "output": summary.output,
        "files": summary.files,
        "bytes": summary.size_bytes,
        "largest_difference": summary.largest_difference,
    }


def machine_fields(facts: "Facts", throughput: "Throughput | None", advice: Sequence[str]) -> Fields:
    """The facts about a machine, and its pace in images and captions per second; null without the test."""
    return {**asdict(facts), "throughput": throughput and asdict(throughput), "advice": advice}


def _pace(count: int, duration_s: float) -> Fields:
    """Seconds, and images per second; null if nothing was done."""
    rate = round(count / duration_s, 3) if count and duration_s > 0 else None
    return {"seconds": round(duration_s, 3), "rate": rate}


def _estimates(estimates: Mapping[str, "Estimate"]) -> Fields:
    return {name: asdict(one) for name, one in estimates.items()}
