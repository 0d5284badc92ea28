"""What a run has left on disk, read for people: stores with their logs, models with their histories, scores, tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionmill.data.csv_tables import read_cells
from captionmill.data.errors import InputError
from captionmill.data.features.log import ExtractionRecord, read_records
from captionmill.data.features.store import FeatureStore, cache_path_for
from captionmill.data.foreign import WRONG_VALUES, decimal_number, finite_number, parse_json, text_of, whole_number
from captionmill.data.models.bundle import Model, read_bundle
from captionmill.data.regular import read_text
from captionmill.data.tables.formats import read_captions
from captionmill.stages.encoding.extract import FAILURES_NAME
from captionmill.stages.training.run_folder import HISTORY_NAME, SELF_CRITICAL

_GREATEST_SCORE = 1e6  # far above that of any metric
Failures = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StoreFiles:
    """A feature store and what lies beside it."""

    name: str
    store: FeatureStore
    records: Sequence[ExtractionRecord]
    """Its log, oldest first; empty if there is none."""
    failures: Failures | None
    """(key, reason) of failures.csv; None if there is no such file."""


@dataclass(frozen=True)
class Epoch:
    """A row of history.csv."""

    epoch: int
    phase: str
    loss: float
    """Cross entropy, nats per word; in the self-critical phase the mean reward."""
    val_cider: float
    captions_per_s: float
    duration_s: float

    @property
    def is_rewarded(self) -> bool:
        """Whether the loss is a reward."""
        return self.phase == SELF_CRITICAL


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder."""

    name: str
    bundle: Model
    history: Sequence[Epoch]
    """Empty if there is no history.csv."""

    @property
    def best_epoch(self) -> int | None:
        """The epoch of training that the model was saved after."""
        epoch = self.bundle.scores.get("epoch")
        return None if epoch is None else int(epoch)


@dataclass(frozen=True)
class ScoredCaption:
    """The caption of one image, and its scores."""

    key: str
    caption: str
    references: tuple[str, ...]
    confidence: float | None
    """0 to 1; None in files of versions that did not write it."""
    cider_d: float | None


@dataclass(frozen=True)
class ScoreFile:
    """What `evaluate --output` wrote."""

    name: str
    """Of the model or the models scored."""
    values: Mapping[str, Any]
    captions: tuple[ScoredCaption, ...]


@dataclass(frozen=True)
class TableFiles:
    """captions.csv, and the log of the features it was made from."""

    name: str
    found: int
    """Rows."""
    failures: Failures
    record: ExtractionRecord | None
    """The run that wrote the table; None if it is not known."""
    timed: ExtractionRecord | None
    """The last run that captioned all of them; None if it is not known."""

    @property
    def captioned(self) -> int:
        """Rows with a caption."""
        return self.found - len(self.failures)


def read_store(path: Path) -> StoreFiles:
    """The store at `path` with its log and its failures; StoreError if it cannot be opened."""
    store = FeatureStore.open(path)
    own, shared = path.with_suffix(f".{FAILURES_NAME}"), path.with_name(FAILURES_NAME)
    failures_path = own if own.exists() else shared
    failures = None
    if failures_path.exists():
        failures = tuple((key, reason) for key, reason in read_cells(failures_path, ("key", "reason")))
    return StoreFiles(path.name, store, read_records(path), failures)


def _epoch_of(row: Sequence[str]) -> Epoch:
    epoch, phase, *figures = row
    loss, val_cider, captions_per_s, duration_s = map(decimal_number, figures)
    return Epoch(whole_number(epoch), phase, loss, val_cider, finite_number(captions_per_s), finite_number(duration_s))


def read_model_files(folder: Path) -> ModelFiles:
    """The model in `folder` with its history; ModelError if it cannot be read, InputError for a damaged history."""
    bundle = read_bundle(folder)
    path = folder / HISTORY_NAME
    if not path.exists():
        return ModelFiles(folder.name, bundle, ())
    rows = read_cells(path, ["epoch", "phase", "loss", "val_cider", "captions_per_s", "duration_s"])
    try:
        history = [_epoch_of(row) for row in rows]
    except ValueError as exc:
        raise InputError(f"{path}: not a history as `captionmill train` writes it ({exc}); move it away") from exc
    return ModelFiles(folder.name, bundle, history)


def read_scores(path: Path) -> ScoreFile:
    """The scores in `path`; InputError if they are not what `evaluate --output` writes."""
    try:
        values = parse_json(read_text(path))
        model = values["model"]
        names = [model] if isinstance(model, str) else model
        _require_described(values)
        _require_intervals(values["scores"], values["intervals"])
        if other := values.get("against"):
            text_of(other["model"])
            _require_intervals(other["scores"], other["intervals"])
            _require_intervals(other["differences"], other["difference_intervals"])
        captions = tuple(
            ScoredCaption(
                key,
                text_of(entry["caption"]),
                tuple(map(text_of, entry["references"])),
                _read_number(entry.get("confidence")),
                _read_number(entry.get("cider_d")),
            )
            for key, entry in values["captions"].items()
        )
        return ScoreFile(" + ".join(names), values, captions)
    except (OSError, *WRONG_VALUES) as exc:
        problem = " ".join(repr(exc).split())[:200]
        raise InputError(f"{path}: not scores as `captionmill evaluate` writes them ({problem})") from exc


def read_table(path: Path) -> TableFiles:
    """What became of the images in `path`, and the last run that is logged beside it, if it was of as many images.

    Of the rows only those of failures are kept: a table may have millions.
    """
    found, failures = 0, []
    for row in read_captions(path):
        found += 1
        if row.status == "failed":
            failures.append((row.path, row.error))
    records = [record for record in read_records(cache_path_for(path)) if record.captioned is not None]
    record = records[-1] if records and records[-1].found == found else None
    timed = next((other for other in reversed(records) if other.found == found and other.captioning_s), None)
    return TableFiles(path.name, found, tuple(failures), record, timed)


def _require_described(values: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError if what a report shows of the captions has other types."""
    text_of(values.get("images_chosen_by", ""))
    for line in values.get("left_out", ()):
        text_of(line)
    if not isinstance(values.get("search", {}), dict):
        raise TypeError("its search is no record")
    if statistics := values.get("caption_statistics"):
        for name in ("mean_length", "distinct", "words_used", "vocabulary_share", "repeated_word", "repeated_trigram"):
            finite_number(statistics[name])
        if statistics["copied"] is not None:
            finite_number(statistics["copied"])
        finite_number(statistics.get("training_images_missing", 0))


def _require_intervals(scores: Mapping[str, object], intervals: Mapping[str, Sequence[object]]) -> None:
    for name, score in scores.items():
        low, high = map(finite_number, intervals[name])
        if low > high or max(map(abs, (low, high, finite_number(score)))) > _GREATEST_SCORE:
            raise ValueError(f"{name} is {score}, with the interval [{low}, {high}]")


def _read_number(value: object) -> float | None:
    return None if value is None else finite_number(value)
