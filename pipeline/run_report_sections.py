"""What each section of a run's report says: from the files of the run to words, numbers and charts, without HTML."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from captionmill.data.extraction_log import ExtractionRecord
from captionmill.pipeline.charts import COLOURS, Series, interval_chart, line_chart, scatter_chart
from captionmill.pipeline.run_files import ModelFiles, ScoredCaption, ScoreFile, StoreFiles, TableFiles
from captionmill.pipeline.summaries import SCORE_NAMES, show_count, show_duration
from captionmill.stages.config import ExtractConfig, SearchConfig, TrainConfig
from captionmill.stages.scoring.confidence import Quarter, quarter_by_confidence, rank_correlation

NOT_RECORDED = "not recorded"
_PICKED = 4  # captions of the best, of the median and of the worst
_REASONS = 20


@dataclass(frozen=True)
class Step:
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
    steps: Sequence[Step]
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
    """Where the time went, 0 to 1 each; empty if that is not told apart."""
    advice: str = ""

    @property
    def duration(self) -> str:
        """In words."""
        return show_duration(self.duration_s)


@dataclass(frozen=True)
class Curve:
    """A chart and what it shows."""

    title: str
    unit: str
    lines: Sequence[tuple[str, int]]
    """The name of each line's model, and its colour."""
    chart: Markup


@dataclass(frozen=True)
class ScoreCell:
    """A score of one model."""

    value: float
    low: float
    high: float
    chart: Markup | None
    """The interval on a scale that the row's cells share; None where there is nothing to compare with."""
    is_difference: bool = False


@dataclass(frozen=True)
class Picks:
    """Some captions of like worth."""

    name: str
    captions: Sequence[ScoredCaption]


@dataclass(frozen=True)
class Confidence:
    """Whether confidence tells good captions from bad ones."""

    name: str
    quarters: Sequence[Quarter]
    correlation: float | None
    chart: Markup


@dataclass(frozen=True)
class Setting:
    """A setting with the value that it has in each of several outputs."""

    name: str
    default: str
    values: Sequence[str]

    @property
    def differs(self) -> bool:
        """Whether a value is not the default; what has no default does not count."""
        return self.default != "" and any(value != self.default for value in self.values)


@dataclass(frozen=True)
class SettingsTable:
    """The settings of one stage, those that differ from their defaults first."""

    stage: str
    names: Sequence[str]
    settings: Sequence[Setting]


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
    failures = [(row.path, row.error) for row in files.rows if row.status == "failed"]
    last = files.record
    counts = [
        ("found", len(files.rows)),
        ("cached before", last.cached if last else None),
        ("extracted", last.extracted if last else None),
        ("failed", len(failures)),
        ("captioned", len(files.rows) - len(failures)),
    ]
    return _funnel(
        files.name, f"written {_moment(last)}, from {last.images}" if last else "a table of captions", counts, failures
    )


def _funnel(
    name: str, note: str, counts: Sequence[tuple[str, int | None]], failures: Sequence[tuple[str, str]]
) -> Funnel:
    longest = max((count or 0 for _, count in counts), default=0) or 1
    steps = [Step(step, count, (count or 0) / longest, step == "failed") for step, count in counts]
    reasons = Counter(reason for _, reason in failures).most_common(_REASONS)
    return Funnel(name, note, steps, reasons, failures[:_REASONS], max(0, len(failures) - _REASONS))


def paces(stores: Iterable[StoreFiles], models: Iterable[ModelFiles], tables: Iterable[TableFiles]) -> list[Pace]:
    """How fast each part was, as far as it is recorded."""
    found = []
    for store in stores:
        worked = [record for record in store.records if record.extracted]
        if worked:
            found.append(_extraction_pace("extract", store.name, worked[-1]))
        else:
            found.append(
                Pace("extract", store.name, NOT_RECORDED, note="no log of an extraction lies beside the store")
            )
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
                    "the rate is the median epoch's, without its validation; the time is all",
                )
            )
    for table in tables:
        last = table.record
        if last is None or last.captioned is None or not last.captioning_s:
            found.append(Pace("caption", table.name, NOT_RECORDED, note="no log of this run lies beside its features"))
            continue
        if last.extracted:
            found.append(_extraction_pace("caption", f"{table.name}, features", last))
        found.append(
            Pace(
                "caption",
                f"{table.name}, words",
                f"{_rate(last.captioned, last.captioning_s)} images/s",
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
        f"{_rate(record.extracted, record.duration_s)} images/s",
        show_count(record.extracted, "image"),
        record.duration_s,
        f"{record.engine}, {_moment(record)}",
        shares,
        record.advice,
    )


def curves(models: Sequence[ModelFiles]) -> list[Curve]:
    """Loss, reward and validation CIDEr-D over the epochs, all models in one chart each."""
    kept = [model for model in models if model.history]
    losses = [_series(model, "loss", rewarded=False) for model in kept]
    rewards = [_series(model, "loss", rewarded=True) for model in kept]
    ciders = [_series(model, "val_cider") for model in kept]
    wanted = [
        ("Training loss", "cross entropy a word, nats", losses),
        ("Reward", "mean, self-critical phase", rewards),
        ("Validation CIDEr-D", "larger dot: the epoch that was kept", ciders),
    ]
    return [
        Curve(
            title,
            unit,
            [(line.name, number % COLOURS) for number, line in enumerate(lines) if line.points],
            line_chart(lines, title=f"{title} over the epochs", x_label="epoch"),
        )
        for title, unit, lines in wanted
        if any(line.points for line in lines)
    ]


def _series(model: ModelFiles, name: str, *, rewarded: bool | None = None) -> Series:
    points = [
        (float(epoch.epoch), float(getattr(epoch, name)))
        for epoch in model.history
        if (rewarded is None or epoch.is_rewarded == rewarded) and math.isfinite(getattr(epoch, name))
    ]
    marked = [point for point in points if name == "val_cider" and point[0] == model.best_epoch]
    return Series(model.name, points, marked[0] if marked else None)


def score_columns(files: Sequence[ScoreFile]) -> list[str]:
    """The headings of the score table: each file's model, and what it was compared with."""
    headings = []
    for file in files:
        headings.append(file.name)
        if other := file.values.get("against"):
            headings += [str(other["model"]), f"{file.name} minus {other['model']}"]
    return headings


def score_rows(files: Sequence[ScoreFile]) -> list[tuple[str, list[ScoreCell | None]]]:
    """For each metric its name and a cell for each of `score_columns`; None where a model has no such score."""
    rows = []
    for metric, shown in SCORE_NAMES.items():
        found = [cell for file in files for cell in _score_cells(file.values, metric)]
        scores = [cell for cell in found if cell and not cell.is_difference]
        if not scores:
            continue
        least, most = min(cell.low for cell in scores), max(cell.high for cell in scores)
        cells: list[ScoreCell | None] = []
        for number, cell in enumerate(found):
            if cell is None or cell.is_difference or len(scores) < 2:
                cells.append(cell)
                continue
            chart = interval_chart(cell.value, cell.low, cell.high, least=least, most=most, colour=number % COLOURS)
            cells.append(ScoreCell(cell.value, cell.low, cell.high, chart))
        rows.append((shown, cells))
    return rows


def _score_cells(values: Mapping[str, Any], metric: str) -> list[ScoreCell | None]:
    found = [_score_cell(values["scores"], values["intervals"], metric)]
    if other := values.get("against"):
        found.append(_score_cell(other["scores"], other["intervals"], metric))
        found.append(_score_cell(other["differences"], other["difference_intervals"], metric, is_difference=True))
    return found


def _score_cell(
    scores: Mapping[str, float], intervals: Mapping[str, Sequence[float]], metric: str, *, is_difference: bool = False
) -> ScoreCell | None:
    if metric not in scores:
        return None
    low, high = intervals[metric]
    return ScoreCell(scores[metric], low, high, None, is_difference)


def pick_captions(captions: Iterable[ScoredCaption]) -> list[Picks]:
    """The best, the median and the worst captions by CIDEr-D, up to four each, none twice; none without scores."""
    scored = [caption for caption in captions if caption.cider_d is not None]
    ranked = sorted(scored, key=lambda caption: (-(caption.cider_d or 0.0), caption.key))
    count = max(1, min(_PICKED, len(ranked) // 3))
    best, rest = ranked[:count], ranked[count:]
    worst, middle = rest[::-1][:count], rest[:-count]
    start = max(0, (len(middle) - count) // 2)
    picked = [Picks("Best", best), Picks("Median", middle[start : start + count]), Picks("Worst", worst)]
    return [picks for picks in picked if picks.captions]


def confidence_against_score(file: ScoreFile) -> Confidence | None:
    """Confidence against CIDEr-D of the captions of `file`; None if it does not tell both of each."""
    dots = [
        (caption.confidence, caption.cider_d)
        for caption in file.captions
        if caption.confidence is not None and caption.cider_d is not None
    ]
    if not dots:
        return None
    confidences, scores = [x for x, _ in dots], [y for _, y in dots]
    quarters = quarter_by_confidence(confidences, scores)
    chart = scatter_chart(
        dots,
        [(quarter.confidence, quarter.score) for quarter in quarters],
        title="CIDEr-D of each caption against its confidence",
        x_label="confidence",
    )
    return Confidence(file.name, quarters, rank_correlation(confidences, scores), chart)


def settings_tables(
    stores: Sequence[StoreFiles], models: Sequence[ModelFiles], scores: Sequence[ScoreFile]
) -> list[SettingsTable]:
    """The settings of each stage, side by side for several outputs."""
    store_values = [store.store.spec.to_json() | {"dtype": str(store.store.dtype)} for store in stores]
    tables = [
        _settings_table("extract", [store.name for store in stores], store_values, asdict(ExtractConfig())),
        _settings_table(
            "train",
            [model.name for model in models],
            [_flatten(model.bundle.training) for model in models],
            _flatten(asdict(TrainConfig())),
        ),
        _settings_table(
            "evaluate",
            [file.name for file in scores],
            [file.values.get("search", {}) for file in scores],
            asdict(SearchConfig()),
        ),
    ]
    return [table for table in tables if table.names]


def _settings_table(
    stage: str, names: Sequence[str], values: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> SettingsTable:
    known = dict.fromkeys(name for some in values for name in some)
    settings = [
        Setting(
            name,
            _show_value(defaults[name]) if name in defaults else "",
            [_show_value(some[name]) if name in some else NOT_RECORDED for some in values],
        )
        for name in known
    ]
    return SettingsTable(stage, names, sorted(settings, key=lambda setting: not setting.differs))


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """A training's settings with those of its search among them, named search.beam_size and so on."""
    flat = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    for outer, inner in values.items():
        if isinstance(inner, Mapping):
            flat |= {f"{outer}.{name}": value for name, value in inner.items()}
    return flat


def _show_value(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _moment(record: ExtractionRecord) -> str:
    return record.finished.replace("T", " ").replace("+00:00", " UTC")


def _rate(count: int, duration_s: float) -> str:
    rate = count / duration_s if duration_s else 0.0
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
