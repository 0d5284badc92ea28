"""What each extraction into a store did and how fast, a row a run, in a table beside the store.

The store itself cannot tell: it knows its rows, not how many images were looked at for them, nor how long that took.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExtractionRecord:
    """One extraction; `found` = `cached` + `extracted` + `failed`."""

    finished: str
    """UTC, ISO 8601."""
    images: str
    """The folder, list, tar or URL that was looked through."""
    found: int
    cached: int
    """Images that had a row already."""
    extracted: int
    failed: int
    duration_s: float
    engine: str
    """Device, engine and arithmetic; empty if nothing was left to do."""
    reading: float
    """Share of the time that the pictures' way to the store waited for this, 0 to 1; so are the next three."""
    decoding: float
    forward: float
    writing: float
    advice: str
    """What bounded the speed."""
    captioned: int | None = None
    """Images captioned from the store in the same run; None where the run was to extract alone."""
    captioning_s: float | None = None


_NAMES = [field.name for field in fields(ExtractionRecord)]
_COUNTS = {"found", "cached", "extracted", "failed", "captioned"}
_TEXTS = {"finished", "images", "engine", "advice"}


def log_path(store_path: Path) -> Path:
    """The table that belongs to the store at `store_path`: features.log.csv beside features.h5."""
    return store_path.with_suffix(".log.csv")


def append_record(store_path: Path, record: ExtractionRecord) -> None:
    """Append a row to the log of the store. The rows before it are not read: a damaged log ends no extraction."""
    path = log_path(store_path)
    text = io.StringIO()
    writer = csv.DictWriter(text, _NAMES, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow({name: _shorten(value) for name, value in asdict(record).items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, io.SEEK_END)
            if file.read(1) != b"\n":  # a kill cut the last row short: it must not take this one with it
                file.write(b"\n")
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))  # a path may be of any bytes


def read_records(store_path: Path) -> list[ExtractionRecord]:
    """The rows of the store's log, oldest first; none without a log. A row that a kill cut short is left out."""
    try:
        with log_path(store_path).open(encoding="utf-8", errors="replace", newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row]
    except FileNotFoundError:
        return []
    return [record for row in rows if (record := _parse(row)) is not None]


def _parse(row: Mapping[str, Any]) -> ExtractionRecord | None:
    try:
        values: dict[str, Any] = {name: _read(name, row[name]) for name in _NAMES}
        return ExtractionRecord(**values)
    except (KeyError, TypeError, ValueError):
        return None


def _read(name: str, cell: str) -> str | int | float | None:
    if name in _TEXTS:
        return str(cell)
    if name.startswith("caption") and cell == "":
        return None
    return int(cell) if name in _COUNTS else float(cell)


def _shorten(value: object) -> object:
    return f"{value:.4f}" if isinstance(value, float) else value
