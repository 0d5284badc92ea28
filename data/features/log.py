"""The log of the extractions into a store: a table beside it, one row per run, with counts and times.

The store itself holds only rows, not how many images were examined for them or how long that took.
"""

import csv
import errno
import io
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from captionmill.data.csv_tables import csv_line, unguard_formula
from captionmill.data.files import write_bytes
from captionmill.data.foreign import decimal_number, finite_number, whole_number
from captionmill.data.regular import open_own, open_regular_text, read_bytes, refuse_link


@dataclass(frozen=True)
class ExtractionRecord:
    """One extraction; `found` = `cached` + `extracted` + `failed`."""

    finished: str
    """UTC, ISO 8601."""
    images: str
    """The folder, list, tar or URL that was searched."""
    found: int
    cached: int
    """Images that had a row already."""
    extracted: int
    failed: int
    duration_s: float
    engine: str
    """Device, engine and precision; empty if there was nothing to do."""
    reading: float
    """Share of the time spent waiting for this step, 0 to 1; likewise the next three."""
    decoding: float
    forward: float
    writing: float
    advice: str
    """What limited the speed."""
    captioned: int | None = None
    """Images captioned from the store in the same run; None if the run only extracted."""
    captioning_s: float | None = None
    """None also if captions of an earlier run were kept: then it shows no speed."""
    left_out: str = ""
    """What the search for images passed over, in words; empty if nothing, and in rows of earlier versions."""


_logger = logging.getLogger(__name__)
_NAMES = [field.name for field in fields(ExtractionRecord)]
_COUNTS = {"found", "cached", "extracted", "failed", "captioned"}
_TEXTS = {"finished", "images", "engine", "advice"}
_FORMER_HEADER = csv_line(_NAMES[:-1])  # before `left_out`


def log_path(store_path: Path) -> Path:
    """The table that belongs to the store at `store_path`: features.log.csv beside features.h5."""
    return store_path.with_suffix(".log.csv")


def append_record(store_path: Path, record: ExtractionRecord) -> None:
    """Append a row to the log of the store. Earlier rows are not read: a damaged log stops no extraction.

    Nothing is written through a link, or into anything but a file: a warning says so.
    """
    path = log_path(store_path)
    try:
        _append(path, csv_line(asdict(record).values()))
    except OSError as exc:
        if exc.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        _logger.warning("%s: %s; this run is not in the log", path, exc.strerror)


def _append(path: Path, row: bytes) -> None:
    refuse_link(path)
    header = b"" if path.exists() else csv_line(_NAMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    _add_column(path)
    with open_own(path, "a+b") as file:
        if file.tell():
            file.seek(-1, io.SEEK_END)
            if file.read(1) != b"\n":  # a kill cut the last row short: keep this one apart from it
                file.write(b"\n")
        file.write(header + row)


def _add_column(path: Path) -> None:
    """Give a log of an earlier version the header of this one; its rows are shorter then."""
    if path.exists() and (content := read_bytes(path)).startswith(_FORMER_HEADER):
        write_bytes(path, csv_line(_NAMES) + content.removeprefix(_FORMER_HEADER))


def read_records(store_path: Path) -> list[ExtractionRecord]:
    """The rows of the store's log, oldest first; none without a log. An incomplete row is left out."""
    records: list[ExtractionRecord] = []
    no_end = csv.Error  # of a cell, after a write that was cut off
    with suppress(FileNotFoundError, no_end), open_regular_text(log_path(store_path), errors="replace") as file:
        for row in csv.DictReader(file):
            if None not in row and (record := _parse(row)) is not None:
                records.append(record)
    return records


def _parse(row: Mapping[str, Any]) -> ExtractionRecord | None:
    try:
        values: dict[str, Any] = {name: _value_of(name, row[name]) for name in _NAMES[:-1]}
        return ExtractionRecord(**values, left_out=unguard_formula(row.get("left_out") or ""))
    except (KeyError, TypeError, ValueError):
        return None


def _value_of(name: str, cell: str) -> str | int | float | None:
    if name in _TEXTS:
        return unguard_formula(cell)
    if name.startswith("caption") and cell == "":
        return None
    return whole_number(cell) if name in _COUNTS else finite_number(decimal_number(cell))
