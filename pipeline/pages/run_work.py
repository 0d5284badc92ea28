"""The images and the time of a run, as its report shows them: pure functions from the run's files."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from captionmill.data.features.log import ExtractionRecord
from captionmill.pipeline.pages.run_files import ModelFiles, StoreFiles, TableFiles
from captionmill.pipeline.words import show_count, show_duration, show_rate

NOT_RECORDED = "not recorded"
_REASONS = 20
_ADVISED_S = 60  # an extraction that took less needs no advice


@dataclass(frozen=True)
class FunnelStep:
    """A bar of a funnel."""

    name: str
    count: int | None
    """None if it is not recorded."""
    share: float
    """Of the longest bar, 0 to 1."""
    is_failure: bool = False


@dataclass(frozen=True)
class Funnel:
    """What became of the images of a store or of a table."""

    name: str
    note: str
    steps: Sequence[FunnelStep]
    reasons: Sequence[tuple[str, int]]
    """Why images failed, and how many did so; the most frequent first."""
    failures: Sequence[tuple[str, str]]
    """The first of them: key, reason."""
    hidden: int
    """How many more failed."""


@dataclass(frozen=True)
class Pace:
    """How fast a part of the run was."""

    stage: str
    of: str
    """The output's name, and which part of the work where it has several."""
    rate: str
    amount: str = ""
    duration_s: float = 0.0
    note: str = ""
    shares: Sequence[tuple[str, float]] = ()
    """Where the time went, 0 to 1 each; empty if that is not known."""
    advice: str = ""

    @property
    def duration(self) -> str:
        """In words."""
        return show_duration(self.duration_s)


def store_funnel(files: StoreFiles) -> Funnel:
    """What the last extraction into a store found."""
    last = files.records[-1] if files.records else None
    failures = files.failures or ()
    failed = last.failed if last else (None if files.failures is None else len(failures))
    counts = [
        ("found", last.found if last else None),
        ("cached before", last.cached if last else None),
        ("extracted", last.extracted if last else None),
        ("failed", failed),
        ("rows in the store", len(files.store)),
    ]
    note = f"last extraction {_moment(last)}, from {last.images}" if last else f"its last extraction is {NOT_RECORDED}"
    return _funnel(files.name, note, counts, failures if failed else ())


def table_funnel(files: TableFiles) -> Funnel:
    """What became of the images of a table of captions."""
    last = files.record
    counts = [
        ("found", files.found),
        ("cached before", last.cached if last else None),
        ("extracted", last.extracted if last else None),
        ("failed", len(files.failures)),
        ("captioned", files.captioned),
    ]
    note = f"written {_moment(last)}, from {last.images}" if last else "a table of captions"
    return _funnel(files.name, note, counts, files.failures)


def _funnel(
    name: str, note: str, counts: Sequence[tuple[str, int | None]], failures: Sequence[tuple[str, str]]
) -> Funnel:
    longest = max((count or 0 for _, count in counts), default=0) or 1
    steps = [FunnelStep(step, count, (count or 0) / longest, step == "failed") for step, count in counts]
    reasons = Counter(reason for _, reason in failures).most_common(_REASONS)
    return Funnel(name, note, steps, reasons, failures[:_REASONS], max(0, len(failures) - _REASONS))


def paces(stores: Iterable[StoreFiles], models: Iterable[ModelFiles], tables: Iterable[TableFiles]) -> list[Pace]:
    """How fast each part was, as far as it is recorded."""
    found = []
    for store in stores:
        worked = [record for record in store.records if record.extracted]
        missing = Pace("extract", store.name, NOT_RECORDED, note="no log of an extraction lies beside the store")
        found.append(_extraction_pace("extract", store.name, worked[-1]) if worked else missing)
    for model in models:
        if not model.history:
            found.append(Pace("train", model.name, NOT_RECORDED, note="no history.csv"))
        for phase, rows in groupby(model.history, lambda epoch: epoch.phase):
            epochs = list(rows)
            rate = statistics.median(epoch.captions_per_s for epoch in epochs)
            found.append(
                Pace(
                    "train",
                    f"{model.name}, {phase}",
                    f"{rate:,.0f} captions/s",
                    show_count(len(epochs), "epoch"),
                    sum(epoch.duration_s for epoch in epochs),
                    "the rate is that of the median epoch, without its validation; the time includes validation",
                )
            )
    for table in tables:
        last = table.timed
        if last is None or last.captioned is None or not last.captioning_s:
            found.append(Pace("caption", table.name, NOT_RECORDED, note="no log of this run lies beside its features"))
            continue
        if last.extracted:
            found.append(_extraction_pace("caption", f"{table.name}, features", last))
        found.append(
            Pace(
                "caption",
                f"{table.name}, words",
                _rate(last.captioned, last.captioning_s),
                show_count(last.captioned, "image"),
                last.captioning_s,
            )
        )
    return found


def stage_shares(found: Iterable[Pace]) -> list[tuple[str, float, str]]:
    """Each stage's share of the time that is recorded, and that time in words; none unless two stages are."""
    totals: dict[str, float] = {}
    for pace in found:
        if pace.duration_s:
            totals[pace.stage] = totals.get(pace.stage, 0.0) + pace.duration_s
    if len(totals) < 2:
        return []
    whole_s = sum(totals.values())
    return [(stage, total_s / whole_s, show_duration(total_s)) for stage, total_s in totals.items()]


def _extraction_pace(stage: str, of: str, record: ExtractionRecord) -> Pace:
    shares = [(name, float(getattr(record, name))) for name in ("reading", "decoding", "forward", "writing")]
    return Pace(
        stage,
        of,
        _rate(record.extracted, record.duration_s),
        show_count(record.extracted, "image"),
        record.duration_s,
        f"{record.engine}, {_moment(record)}",
        shares,
        record.advice if record.duration_s >= _ADVISED_S else "",
    )


def _moment(record: ExtractionRecord) -> str:
    return record.finished.replace("T", " ").replace("+00:00", " UTC")


def _rate(count: int, duration_s: float) -> str:
    return show_rate(count / duration_s if duration_s else 0.0, "images")
