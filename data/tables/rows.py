"""A row of a table of captions: one image, its caption and where that comes from."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from captionmill.data.csv_tables import Cell, unguard_formula
from captionmill.data.errors import InputError
from captionmill.data.foreign import WRONG_VALUES, finite_number, text_of

Status = Literal["ok", "failed", "corrected", "accepted"]
"""`corrected`: a person wrote the caption; `accepted`: a person found the model's caption right."""
STATUSES: tuple[str, ...] = get_args(Status)
COLUMNS = ("path", "caption", "confidence", "alternatives", "flags", "status", "error")

_BETWEEN_ALTERNATIVES = " | "  # no word of a vocabulary contains this
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # XML, and so XMP, cannot hold most of them


@dataclass(frozen=True)
class CaptionRow:
    """One image."""

    path: str
    """The image's key: its path relative to the folder."""
    caption: str
    """Empty if the image failed."""
    confidence: float | None
    """How sure the model is (`Caption.confidence`), 0 to 1, four decimals; None if the image failed."""
    alternatives: tuple[str, ...] = ()
    """The next best captions, best first, if requested."""
    flags: tuple[str, ...] = ()
    """What is suspicious about the caption."""
    status: Status = "ok"
    error: str = ""
    """Why it failed."""

    @property
    def is_captioned(self) -> bool:
        """Whether it has a caption, of a model or of a person."""
        return self.status != "failed"


def row_of_values(values: Mapping[str, Any], path: Path | None = None) -> CaptionRow:
    """The row with the fields `values`, as JSON has them; InputError if one is missing. Other fields are left out."""
    try:
        confidence, status = values["confidence"], text_of(values["status"])
        return CaptionRow(
            text_of(values["path"]),
            text_of(values["caption"]),
            None if confidence is None else finite_number(confidence),
            tuple(map(text_of, values["alternatives"] or ())),
            tuple(map(text_of, values["flags"] or ())),
            _status_of(status),
            text_of(values["error"]),
        )
    except WRONG_VALUES as exc:
        raise InputError(f"{path or 'a row'}: not a table of captions") from exc


def cells_of(row: CaptionRow) -> dict[str, Cell]:
    """The cells of a CSV table by column."""
    return {
        "path": row.path,
        "caption": row.caption,
        "confidence": row.confidence,
        "alternatives": _BETWEEN_ALTERNATIVES.join(row.alternatives),
        "flags": " ".join(row.flags),
        "status": row.status,
        "error": row.error,
    }


def tidy(text: str) -> str:
    """A caption that a person wrote, in one line: one space for each run of spaces and control characters."""
    return " ".join(_CONTROL.sub(" ", text).split())


def row_of_cells(cells: Mapping[str, str]) -> CaptionRow:
    """The row with these cells of a CSV table; ValueError if its confidence is no number."""
    alternatives = unguard_formula(cells.get("alternatives", ""))
    return CaptionRow(
        unguard_formula(cells["path"]),
        unguard_formula(cells["caption"]),
        _confidence_of(cells.get("confidence", "").strip()),
        tuple(alternatives.split(_BETWEEN_ALTERNATIVES)) if alternatives else (),
        tuple(unguard_formula(cells.get("flags", "")).split()),
        _status_of(cells.get("status", "ok" if cells["caption"] else "failed")),
        unguard_formula(cells.get("error", "")),
    )


def _confidence_of(cell: str) -> float | None:
    """The number in a cell, also as spreadsheets write it (0,43 or 43%); None for an empty cell.

    LibreOffice saves what a cell shows, which is ### in a narrow column: None too.
    """
    if not cell.strip("#"):
        return None
    number = float(cell.rstrip("% ").replace(",", ".")) / (100 if cell.endswith("%") else 1)
    if not math.isfinite(number):
        raise ValueError(cell)
    return number


def _status_of(cell: str) -> Status:
    status = cell.strip().lower()
    return cast(Status, status) if status in STATUSES else "failed"
