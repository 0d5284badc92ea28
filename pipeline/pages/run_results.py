"""Models, scores, captions and settings of a run, as its report shows them: pure functions from the run's files."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from captionmill.data.models.bundle import Model
from captionmill.pipeline.pages.charts import (
    COLOURS,
    Chart,
    Interval,
    Series,
    interval_chart,
    line_chart,
    scatter_chart,
)
from captionmill.pipeline.pages.run_files import ModelFiles, ScoredCaption, ScoreFile, StoreFiles
from captionmill.pipeline.pages.run_work import NOT_RECORDED
from captionmill.pipeline.summaries import SCORE_NAMES
from captionmill.stages.scoring.statistics import Quarter, quarter_by_confidence, rank_correlation
from captionmill.stages.settings import ExtractConfig, SearchConfig, TrainConfig

_PICKED = 4  # captions of the best, of the median and of the worst


@dataclass(frozen=True)
class Curve:
    """A chart and what it shows."""

    title: str
    unit: str
    lines: Sequence[tuple[str, int]]
    """The name of each line's model, and its colour."""
    chart: Chart


@dataclass(frozen=True)
class ScoreCell:
    """A score of one model."""

    value: float
    low: float
    high: float
    chart: Interval | None
    """The interval on a scale that the row's cells share; None where there is nothing to compare it with."""
    is_difference: bool = False

    @property
    def shown(self) -> tuple[str, str, str]:
        """Score and interval in words, with the decimals that the interval leaves meaning to; differences signed."""
        value, low, high = (
            show_score(number, self.low, self.high, signed=self.is_difference)
            for number in (self.value, self.low, self.high)
        )
        return value, low, high


@dataclass(frozen=True)
class Picks:
    """Some captions of similar score."""

    name: str
    captions: Sequence[ScoredCaption]


@dataclass(frozen=True)
class Confidence:
    """How well confidence separates good captions from bad ones."""

    quarters: Sequence[Quarter]
    correlation: float | None
    chart: Chart


@dataclass(frozen=True)
class ShownSetting:
    """A setting with the value that it has in each of several outputs."""

    name: str
    default: str
    values: Sequence[str]

    @property
    def differs(self) -> bool:
        """Whether a value is not the default or, where there is none, not that of the first output."""
        return any(value != (self.default or self.values[0]) for value in self.values)


@dataclass(frozen=True)
class SettingsTable:
    """The settings of one stage, those that differ from their defaults first."""

    stage: str
    names: Sequence[str]
    settings: Sequence[ShownSetting]


def show_score(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """`value` with the decimals that the interval `low` to `high` leaves meaning to: "0.52" of [0.43, 0.61]."""
    decimals = 2 if high - low >= 0.025 else 3 if high - low >= 0.0025 else 4
    return f"{value:{'+' if signed else ''}.{decimals}f}"


def curves(models: Sequence[ModelFiles]) -> list[Curve]:
    """Loss, reward and validation CIDEr-D over the epochs, all models in one chart each."""
    kept = [model for model in models if model.history]
    losses = [_series(model, "loss", rewarded=False) for model in kept]
    rewards = [_series(model, "loss", rewarded=True) for model in kept]
    ciders = [replace(_series(model, "val_cider"), name=model.name + _note_on_cider(model.bundle)) for model in kept]
    wanted = [
        ("Training loss", "cross entropy, nats per word", losses),
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


def _note_on_cider(model: Model) -> str:
    return ", re-ranked" if model.reranks_validation else ""


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
    """Confidence against CIDEr-D of the captions of `file`; None unless it holds both for some of them."""
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
    return Confidence(quarters, rank_correlation(confidences, scores), chart)


def settings_tables(
    stores: Sequence[StoreFiles], models: Sequence[ModelFiles], scores: Sequence[ScoreFile]
) -> list[SettingsTable]:
    """The settings of each stage, a column per output."""
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
        ShownSetting(
            name,
            _show_value(defaults.get(name)),
            [
                _show_value(some[name]) if name in some else NOT_RECORDED if name in defaults else "\N{EM DASH}"
                for some in values
            ],
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
    if value is None:  # such as the default of max_epochs, which depends on the captions
        return ""
    if isinstance(value, list | tuple):  # what JSON reads as a list was a tuple
        return ", ".join(map(str, value)) or "none"
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
