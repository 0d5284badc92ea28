"""The tables that people open in a spreadsheet: captions.csv, failures.csv and others. UTF-8, quoted where needed."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import pandas as pd

from captionmill.data.atomic import write_text


@dataclass(frozen=True)
class CaptionRow:
    """One image of captions.csv."""

    path: str
    """The image's key: its path relative to the folder."""
    caption: str
    """Empty if the image failed."""
    confidence: float | None
    """Geometric mean of the probabilities of the caption's words, 0 to 1; empty if the image failed."""
    status: Literal["ok", "failed"]
    error: str
    """Why it failed."""


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_CAPTION_COLUMNS = [field.name for field in fields(CaptionRow)]


def write_captions(path: Path, rows: Iterable[CaptionRow]) -> None:
    """Write captions.csv in place of what was there, all at once."""
    write_table(path, pd.DataFrame([asdict(row) for row in rows], columns=_CAPTION_COLUMNS))


def read_captions(path: Path) -> list[CaptionRow]:
    """The rows that `write_captions` wrote."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    return [
        CaptionRow(
            path, caption, float(confidence) if confidence else None, "ok" if status == "ok" else "failed", error
        )
        for path, caption, confidence, status, error in frame[_CAPTION_COLUMNS].to_numpy().tolist()
    ]


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> None:
    """Write failures.csv (key, reason) in place of what was there."""
    write_table(path, pd.DataFrame(list(failures), columns=["key", "reason"]))


def guard_formulas(cells: Iterable[str]) -> list[str]:
    """Each text with a ' in front if a spreadsheet could take it for a formula, as files may be called "=1+1.jpg".

    That is if it begins with one of = + - @, a tab or a line break (OWASP, "CSV Injection"), or with a ' already: so
    a reader that takes one ' off the front of every text that has one gets back what was given.
    """
    return [f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell for cell in cells]


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write any table as UTF-8 CSV, four decimals, in place of what was there."""
    text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    if "\r" in text:  # the csv module leaves a lone carriage return unquoted, and readers take it for a line's end
        text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_text(path, text)
