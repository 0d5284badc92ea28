"""Tables for spreadsheets: UTF-8 CSV, with a guard on cells that a spreadsheet would run as formulas."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from captionmill.data.files import write_text

if TYPE_CHECKING:
    import pandas as pd

RecordLayout = Literal["csv", "jsonl"]

_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def guard_formula(cell: str) -> str:
    """The text, with a ' in front if a spreadsheet could read it as a formula.

    This applies if it begins with one of = + - @, a tab or a line break (OWASP, "CSV Injection"), or with a '; so
    `unguard_formula` restores every text.
    """
    return f"'{cell}" if cell.startswith(_STARTS) else cell


def unguard_formula(cell: str) -> str:
    """The text that `guard_formula` was given."""
    return cell.removeprefix("'")


def csv_line(cells: Iterable[str]) -> bytes:
    """One record as in RFC 4180, except that it ends with only a line feed, which every CSV reader accepts."""
    quoted = ['"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell for cell in cells]
    return (",".join(quoted) + "\n").encode("utf-8", "backslashreplace")


TableRecord = Mapping[str, Any]
"""Texts and numbers by column."""


def render_records(records: Iterable[TableRecord], columns: Sequence[str], layout: RecordLayout) -> str:
    """Records as a table with these columns: numbers with four decimals, and no text in a CSV is a formula."""
    if layout == "jsonl":
        rows = ({name: _shorten(record[name]) for name in columns} for record in records)
        lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace") for row in rows]
    else:
        lines = [csv_line(columns)]
        lines += [csv_line(_cell(record[name]) for name in columns) for record in records]
    return b"".join(lines).decode()


def write_records(
    path: Path, records: Iterable[TableRecord], columns: Sequence[str], layout: RecordLayout | None = None
) -> None:
    """Write what `render_records` makes, by default JSON lines if `path` ends in .jsonl, else CSV."""
    promised: RecordLayout = "jsonl" if path.suffix.lower() == ".jsonl" else "csv"
    write_text(path, render_records(records, columns, layout or promised))


def _shorten(value: str | float) -> str | float:
    return value if isinstance(value, str) else round(value, 4)


def _cell(value: str | float) -> str:
    return guard_formula(value) if isinstance(value, str) else f"{value:.4f}"


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> None:
    """Write failures.csv (key, reason), replacing any old one."""
    import pandas as pd

    write_table(path, pd.DataFrame(list(failures), columns=["key", "reason"]))


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Write a table as UTF-8 CSV with four decimals, replacing any old one."""
    text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    if "\r" in text:  # csv leaves a single carriage return unquoted, and readers take it for a line end
        text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_text(path, text)
