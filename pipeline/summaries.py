"""The summaries of stages as text for a terminal: pure functions from a summary to a line or a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from captionmill.pipeline.words import show_count, show_duration, show_list, show_rate

if TYPE_CHECKING:  # the stages import torch, and `--help` must be instant
    from captionmill.data.captions.splits import Splits
    from captionmill.data.images.walk import PassedOver
    from captionmill.data.tables.decisions import DecisionSummary
    from captionmill.pipeline.captioning.folder import FolderSummary
    from captionmill.pipeline.doctor import Facts
    from captionmill.pipeline.export import ExportSummary
    from captionmill.pipeline.forecast import Forecast
    from captionmill.pipeline.throughput import Throughput
    from captionmill.stages.encoding.extract import ExtractSummary
    from captionmill.stages.scoring.comparison import TableComparison
    from captionmill.stages.scoring.evaluate import Evaluation
    from captionmill.stages.scoring.leaks import LeakReport
    from captionmill.stages.scoring.statistics import CaptionStatistics
    from captionmill.stages.training.state import EpochResult
    from captionmill.stages.training.train import TrainSummary

SCORE_NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
    "spice": "SPICE",
}


def extract_line(summary: "ExtractSummary") -> str:
    """ "8,091 images found: 0 cached before, 8,091 extracted, 0 failed; 2 min (64 images/s, cpu bfloat16)"."""
    line = (
        f"{show_count(summary.found, 'image')} found: {summary.cached:,} cached before, "
        f"{summary.extracted:,} extracted, {len(summary.failures):,} failed"
    )
    if summary.extracted:
        rate = show_rate(summary.extracted / summary.duration_s, "images")
        line += f"; {show_duration(summary.duration_s)} ({rate}, {summary.engine})"
    return line + _left_out(summary.left_out)


def meter_line(summary: "ExtractSummary") -> str:
    """ "forward 93 %, decoding 4 %, reading 2 %, writing 1 %; forward-bound: the network is the limit; ..."."""
    parts = sorted(summary.meter.fractions().items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {100 * part:.0f} %" for name, part in parts) + f"; {summary.advice}"


def unlisted_line(summary: "ExtractSummary") -> str:
    """The number of rows whose image is no longer found, and whether they were removed."""
    rows = show_count(summary.unlisted, "row")
    if summary.pruned:
        return f"{rows} removed: their images are no longer found"
    return f"{summary.output}: no image is found for {rows}; `prune` removes such rows"


def splits_lines(splits: "Splits") -> str:
    """The number of images in each split, and the images left out, with the reason."""
    lines = [f"images: {len(splits.train):,} train, {len(splits.val):,} val, {len(splits.test):,} test"]
    for reason, keys in splits.unmatched.items():
        lines += [
            f"left out, {reason}: {len(keys):,} (all of them will be in the model's unmatched.csv)",
            show_list(keys),
        ]
    return "\n".join(lines)


def first_score_line(val_cider: float) -> str:
    """ "a third of epoch 1: validation CIDEr-D 0.121"."""
    return f"a third of epoch 1: validation CIDEr-D {val_cider:.3f}"


def epoch_line(result: "EpochResult") -> str:
    """ "epoch 3: loss 3.012, validation CIDEr-D 0.389, 1,900 captions/s, 16.2 s, best so far"."""
    loss = "reward" if result.phase == "self-critical" else "loss"
    line = (
        f"epoch {result.epoch}: {loss} {result.loss:.3f}, validation CIDEr-D {result.val_cider:.3f}, "
        f"{result.captions_per_s:,.0f} captions/s, {show_duration(result.duration_s)}"
    )
    return line + (", best so far" if result.best else "")


def train_line(summary: "TrainSummary") -> str:
    """The vocabulary's size, the epoch that was kept and its score."""
    best = summary.best
    reranked = "" if summary.reranked_cider is None else f", re-ranked {summary.reranked_cider:.3f}"
    reranked = " (re-ranked)" if summary.reranks_validation else reranked
    return (
        f"{summary.vocab_size:,} words, epoch {best.epoch} of {len(summary.history)} kept, "
        f"validation CIDEr-D {best.val_cider:.3f}{reranked}; {show_duration(summary.duration_s)}"
    )


def folder_line(summary: "FolderSummary") -> str:
    """The numbers of images that were found, captioned and not readable."""
    kept = summary.found - summary.made
    as_before = f", {show_count(kept, 'row')} as before" if kept else ""
    return (
        f"{show_count(summary.found, 'image')} found: {summary.captioned:,} captioned "
        f"({summary.cached:,} from cached features{as_before}), "
        f"{len(summary.failures):,} failed; {show_duration(summary.duration_s)}{_left_out(summary.left_out)}"
    )


def forecast_lines(forecast: "Forecast") -> str:
    """What a dry run found: images to read and rows to make, and about how long that takes."""
    again = f", {forecast.read_again:,} of them again (changed or damaged)" if forecast.read_again else ""
    failed = f", {forecast.failed_before:,} of them failed before" if forecast.failed_before else ""
    skipped = forecast.found - forecast.to_read
    lines = [
        f"{show_count(forecast.found, 'image')} found: {forecast.to_read:,} would be read{again}{failed}; "
        f"{skipped:,} would be skipped, as their features are cached" + _left_out(forecast.left_out)
    ]
    if forecast.unlisted:
        lines.append(f"no image is found for {show_count(forecast.unlisted, 'row')} of the store")
    if rows := forecast.rows:
        as_before = max(0, forecast.found - rows.made)
        lines.append(f"{show_count(rows.made, 'caption')} would be made, {show_count(as_before, 'row')} as before")
    if rows and rows.reviewed:
        new = f", {rows.corrections:,} of them new" if rows.corrections else ""
        lines.append(f"{show_count(rows.reviewed, 'caption')} of a person would stay{new}")
    if rows and rows.elsewhere:
        lines.append(f"captions of a person for images that are not there, or were renamed: {rows.elsewhere:,}, kept")
    how_long = "not known yet"
    if forecast.duration_s is not None:
        how_long = f"about {show_duration(forecast.duration_s)}, by the rates of earlier runs here"
    return "\n".join([*lines, f"time: {how_long}"])


def _left_out(left_out: "PassedOver") -> str:
    words = left_out.describe()
    return f"; left out: {words}" if words else ""


def decision_line(summary: "DecisionSummary") -> str:
    """ "12 captions corrected, 30 accepted, 1 for later, 3 as before, 0 conflicts"."""
    taken_back = f"{summary.taken_back:,} taken back, " if summary.taken_back else ""
    return (
        f"{show_count(summary.corrected, 'caption')} corrected, {summary.accepted:,} accepted, {summary.later:,} for "
        f"later, {taken_back}{summary.as_before:,} as before, {show_count(len(summary.conflicts), 'conflict')}"
    )


def export_line(summary: "ExportSummary") -> str:
    """ "encoder.onnx, ..., manifest.json, 105.3 MB; equal to torch to 3e-06"."""
    return (
        f"{', '.join(summary.files)}, {summary.size_bytes / 1e6:.1f} MB; "
        f"equal to torch to {summary.largest_difference:.1g}"
    )


def written_lines(summary: "FolderSummary") -> list[str]:
    """One line for a person's captions and for each kind of file that was written beside or into the images."""
    lines = []
    if summary.reviewed:
        new = f", {summary.corrections:,} of them since the last run" if summary.corrections else ""
        verb = "is" if summary.reviewed == 1 else "are"
        lines.append(f"{show_count(summary.reviewed, 'caption')} {verb} a person's and stay{'s' * (verb == 'is')}{new}")
    lines += summary.decision_notes
    if summary.sidecars is not None:
        there = summary.captioned - summary.sidecars - len(summary.files.kept_sidecars)
        others = f", {there:,} {'was' if there == 1 else 'were'} there already" if there else ""
        lines.append(f"{show_count(summary.sidecars, 'sidecar')} written{others}")
    if keys := summary.files.kept_sidecars:
        lines.append(f"{show_count(len(keys), 'sidecar')} of somebody else or changed meanwhile stay as they are:")
        lines.append(show_list(keys))
    if shards := summary.files.shards:
        others = f", {shards.as_before:,} as before" if shards.as_before else ""
        lines.append(f"{show_count(shards.written, 'tar')} with captions written{others}")
    if summary.embedded is not None:
        lines.append(f"{show_count(summary.embedded.embedded, 'image')} with the caption inside")
        if keys := summary.embedded.described:
            lines.append(f"{show_count(len(keys), 'image')} keep a description that another program wrote:")
            lines.append(show_list(keys))
        if keys := summary.embedded.unsupported:
            lines.append(f"{show_count(len(keys), 'image')} cannot hold a description (format, damage or read-only):")
            lines.append(show_list(keys))
    return lines


def score_table(evaluation: "Evaluation") -> str:
    """The scored images, one line per metric with its 95 % interval, differences to another model, and the captions."""
    rows = [f"{show_count(len(evaluation.captions), 'image')}: {evaluation.chosen_by}"]
    rows += [
        f"  {SCORE_NAMES[name]:8} {found.value:.4f}  95 % [{found.low:.4f}, {found.high:.4f}]"
        for name, found in evaluation.estimates.items()
    ]
    if evaluation.against:
        rows.append(f"difference to {evaluation.against.model}, paired")
        rows += [
            f"  {SCORE_NAMES[name]:8} {found.value:+.4f}  95 % [{found.low:+.4f}, {found.high:+.4f}]"
            for name, found in evaluation.against.differences.items()
        ]
    return "\n".join([*rows, *_statistics_lines(evaluation.statistics, len(evaluation.captions))])


def comparison_lines(comparison: "TableComparison") -> str:
    """How many captions differ, the scores of both tables, and the images with different captions."""
    names = comparison.first.name, comparison.second.name
    only = f"{show_count(len(comparison.only_first), 'image')} only in {names[0]}"
    only += f", {len(comparison.only_second):,} only in {names[1]}"
    lines = [f"{show_count(comparison.equal, 'caption')} equal, {len(comparison.different):,} different; {only}"]
    if scores := comparison.scores:
        if scores.reviewed_count:
            lines.append(
                f"{show_count(scores.reviewed_count, 'image')} not scored, with a caption that a person wrote or "
                "accepted"
            )
        lines.append(f"{show_count(scores.image_count, 'image')} with references: first, second, difference (paired)")
        lines += [
            f"  {SCORE_NAMES[name]:8} {scores.first[name].value:.4f}  {scores.second[name].value:.4f}  "
            f"{found.value:+.4f}  95 % [{found.low:+.4f}, {found.high:+.4f}]"
            for name, found in scores.differences.items()
        ]
    if comparison.different:
        lines.append(
            show_list(
                [f"{one.first.path}: {one.first.caption!r} -> {one.second.caption!r}" for one in comparison.different]
            )
        )
    return "\n".join(lines)


def _statistics_lines(statistics: "CaptionStatistics", caption_count: int) -> list[str]:
    copied = "unknown, the captions file has no training captions of this model"
    if statistics.copied is not None:
        copied = f"{statistics.copied:.1%}"
        if statistics.training_images_missing:
            copied += f" or more ({show_count(statistics.training_images_missing, 'training image')} without captions)"
    return [
        "captions",
        f"  length                {statistics.mean_length:.1f} words, mean",
        f"  distinct              {statistics.distinct:,} of {caption_count:,}",
        f"  vocabulary used       {statistics.vocabulary_share:.1%}, {show_count(statistics.words_used, 'word')}",
        f"  copied from training  {copied}",
        f"  repeated word         {statistics.repeated_word:.1%}",
        f"  repeated trigram      {statistics.repeated_trigram:.1%}",
    ]


def leak_lines(report: "LeakReport") -> str:
    """The compared images, the number of pairs between each two splits, and the closest pairs."""
    has_splits = list(report.images) != ["all"]
    counted = (f"{count:,} {name}" if has_splits else f"{count:,}" for name, count in report.images.items())
    lines = ["images with features: " + ", ".join(counted)]
    for (first, second), count in report.counts.items():
        where = f"within {first}" if first == second else f"{first} and {second}"
        where = where if has_splits else "among them"
        lines.append(
            f"{where}: {show_count(count.near, 'pair')} of cosine {report.threshold:g} or more, "
            f"{count.identical:,} identical"
        )
    shown = []
    for pair in report.pairs:
        first, second = pair.key_a, pair.key_b
        if has_splits:
            first, second = f"{pair.split_a} {first}", f"{pair.split_b} {second}"
        shown.append(f"{pair.cosine:.4f}  {first}  {second}{'  identical' if pair.identical else ''}")
    if shown:
        lines.append(show_list(shown))
    kept, found = len(report.pairs), sum(count.near for count in report.counts.values())
    if kept < found:
        lines.append(f"the closest {kept:,} of {found:,} pairs are listed; a higher threshold finds fewer")
    return "\n".join(lines)


def doctor_lines(facts: "Facts", throughput: "Throughput | None", advice: Sequence[str]) -> str:
    """The machine's facts, its throughput and the advice."""
    kinds = {"bf16": facts.fast_bf16, "int8": facts.fast_int8}
    speeds = [f"{name} {'fast' if is_fast else 'slow'}" for name, is_fast in kinds.items()]
    extras = [f"{name} ({'yes' if not missing else 'no'})" for name, missing in facts.extras.items()]
    rows = {
        "versions": ", ".join(f"{name} {version or 'not installed'}" for name, version in facts.versions.items()),
        "extras": ", ".join(extras),
        "system": facts.system,
        "cores": f"{facts.cores} of {facts.cores_present} may be used, load {facts.load:.1f}",
        "memory": f"{facts.memory_bytes / 1e9:.1f} GB" if facts.memory_bytes else "unknown",
        "CPU": f"{', '.join(facts.cpu_flags) or 'no fast instructions'}; {', '.join(speeds)}",
        "GPUs": ", ".join(facts.gpus) or "none that torch can use",
        "torch": f"built for CUDA {facts.torch_cuda}" if facts.torch_cuda else "built without CUDA",
        "Java": "found" if facts.java else "not found",
        "weights": f"{facts.weights_path}: {'here' if facts.weights_here else 'not here'}",
        "networks": facts.cache,
    }
    if throughput:
        rows |= {
            "engine": throughput.engine,
            "decoding": show_rate(throughput.decoding, "images"),
            "network": show_rate(throughput.forward, "images"),
            "captions": show_rate(throughput.captions, "captions"),
        }
    lines = [f"{name:9} {value}" for name, value in rows.items()]
    return "\n".join([*lines, "", *(advice or ["nothing to change"])])
