"""The tables that are written: UTF-8 CSV, with a guard on cells that a spreadsheet would run as formulas."""

import csv
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from captionmill.data.errors import InputError
from captionmill.data.files import replace_atomically, write_text
from captionmill.data.foreign import WRONG_VALUES, parse_json, short_lines
from captionmill.data.regular import open_regular, open_regular_text

Cell = str | int | float | None
RecordLayout = Literal["csv", "jsonl"]
TableRecord = Mapping[str, Any]
"""Texts and numbers by column."""
SEPARATOR_LINE = re.compile(r'"?sep=(?P<mark>[^"\r\n])"?\s*', re.IGNORECASE)
"""A line before the header, by which Excel knows the separator."""
_MOST_FIRST_LINE = 2**24  # bytes; a record may hold a long caption
_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def _guard_formula(cell: str) -> str:
    """The text, with a ' in front if a spreadsheet could read it as a formula.

    This applies if it begins with one of = + - @, a tab or a line break (OWASP, "CSV Injection"), or with a '; so
    `unguard_formula` restores every text.
    """
    return f"'{cell}" if cell.startswith(_STARTS) else cell


def unguard_formula(cell: str) -> str:
    """The text that was written as `cell`; a ' that the guard does not put there belongs to the text: 'twas."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_STARTS) else cell


def encoding_of(start: bytes) -> str:
    """The encoding of a text that begins with `start`: UTF-16 by its mark, as Excel saves "Unicode Text", or UTF-8."""
    return "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def csv_line(cells: Iterable[Cell], float_format: str = ".4f") -> bytes:
    """One record as in RFC 4180, except that it ends with only a line feed, which every CSV reader accepts.

    No text in it is a formula, numbers are as they are, and None is an empty cell.
    """
    texts = [_guard_formula(cell) if isinstance(cell, str) else _number_text(cell, float_format) for cell in cells]
    quoted = ['"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text for text in texts]
    return (",".join(quoted) + "\n").encode("utf-8", "backslashreplace")


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Iterable[Cell]], *, float_format: str = ".4f"
) -> None:
    """Write a table, one `csv_line` per row, replacing any old one."""
    with replace_atomically(path) as partial_path, partial_path.open("wb") as file:
        file.write(csv_line(columns))
        file.writelines(csv_line(row, float_format) for row in rows)


def read_cells(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The cells of these columns in a table that `write_table` wrote; InputError if it is another file."""
    try:
        with open_regular_text(path, "utf-8-sig") as file:
            reader = csv.reader(short_lines(file), strict=True)
            header = next(reader, [])
            places = [header.index(name) for name in columns]
            return [tuple(unguard_formula(cells[place]) for place in places) for cells in reader if cells]
    except (ValueError, IndexError, csv.Error) as exc:
        raise InputError(f"{path}: not a table with the columns {', '.join(columns)}; move it away") from exc


def render_records(records: Iterable[TableRecord], columns: Sequence[str], layout: RecordLayout) -> str:
    """Records as a table with these columns: numbers with four decimals, and no text in a CSV is a formula."""
    if layout == "jsonl":
        rows = ({name: _four_decimals(record[name]) for name in columns} for record in records)
        lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace") for row in rows]
    else:
        lines = [csv_line(columns)]
        lines += [csv_line(record[name] for name in columns) for record in records]
    return b"".join(lines).decode()


def require_records_name(path: Path, layout: RecordLayout | None = None) -> None:
    """Raise InputError if the name of a table of records promises another layout than CSV or JSON lines."""
    known = (".csv", ".jsonl")
    if path.name == "-" or (layout is None and path.suffix.lower() not in known):
        raise InputError(f"{path}: a table of these ends in {' or '.join(known)}; without `output` it is only shown")


def require_own_table(path: Path, columns: Sequence[str], optional: Collection[str] = ()) -> None:
    """Raise InputError if there is another file at `path` than a table of these columns and `optional` ones, or none.

    Reference captions named by mistake would be lost, and so would columns that somebody added. An empty file may go.
    """
    try:
        with open_regular(path) as file:
            first = file.readline(_MOST_FIRST_LINE)
    except FileNotFoundError:
        return
    names: list[str] = []
    with suppress(*WRONG_VALUES, csv.Error):
        text = first.decode()
        record = parse_json(text) if text.startswith("{") else None
        names = list(record) if isinstance(record, dict) else next(csv.reader([text]), [])
        if record is None and first != csv_line(names):  # somebody else has written it
            names = []
    if first and not (names[: len(columns)] == list(columns) and set(names[len(columns) :]) <= {*optional}):
        raise InputError(
            f"{path}: is there, and no table that this command wrote; name another output, or move it away"
        )


def write_records(
    path: Path, records: Iterable[TableRecord], columns: Sequence[str], layout: RecordLayout | None = None
) -> None:
    """Write what `render_records` makes, by default JSON lines if `path` ends in .jsonl, else CSV."""
    promised: RecordLayout = "jsonl" if path.suffix.lower() == ".jsonl" else "csv"
    write_text(path, render_records(records, columns, layout or promised))


def _four_decimals(value: str | float) -> str | float:
    return value if isinstance(value, str) else round(value, 4)


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> None:
    """Write failures.csv (key, reason), replacing any old one."""
    write_table(path, ("key", "reason"), failures)


def failed_keys(path: Path) -> set[str]:
    """The keys in failures.csv; none without one, or in another file of that name."""
    with suppress(FileNotFoundError, InputError):
        return {key for (key,) in read_cells(path, ("key",)) if key}
    return set()


def _number_text(cell: float | None, float_format: str) -> str:
    if cell is None:
        return ""
    return format(cell, float_format) if isinstance(cell, float) else str(cell)
