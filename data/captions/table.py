"""The table of captions, one row per image: CSV for spreadsheets, JSON lines or Parquet for programs.

CSV begins with a byte order mark, by which Excel recognises UTF-8 (pandas and R's readr skip it; Python reads it as
"utf-8-sig"), and no text in it is a formula (`guard_formula`). From each format, `read_captions` returns exactly what
was written.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from captionmill.data.csv_tables import csv_line, guard_formula, unguard_formula
from captionmill.data.errors import InputError
from captionmill.data.optional import require
from captionmill.data.paths import AnyPath

TableFormat = Literal["csv", "jsonl", "parquet"]

_COLUMNS = ("path", "caption", "confidence", "alternatives", "flags", "status", "error")
_NO_TABLE = frozenset({".xlsx", ".xls", ".ods", ".json", ".html", ".htm", ".tsv", ".gz", ".zip"})
_BETWEEN_ALTERNATIVES = " | "  # no word of a vocabulary contains this
_MARK = b"\xef\xbb\xbf"
_NEEDED_COLUMNS = frozenset(_COLUMNS) - {"alternatives", "flags"}
_SEPARATORS = ",;\t"
_SEPARATOR_LINE = re.compile(r'"?sep=."?\s*', re.IGNORECASE)  # Excel's first line
_STATUSES = ("ok", "failed")
_JSON_START = b'{"path": '
_PARQUET_START = b"PAR1"
_SPECIAL = re.compile(r"""[",\\\x00-\x1f]|^'""")  # in a key that a table may quote, escape or guard
_PARQUET_ROWS = 16_384  # in a row group


@dataclass(frozen=True)
class CaptionRow:
    """One image."""

    path: str
    """The image's key: its path relative to the folder."""
    caption: str
    """Empty if the image failed."""
    confidence: float | None
    """Geometric mean of the probabilities of the caption's words, 0 to 1, four decimals; None if the image failed."""
    alternatives: tuple[str, ...] = ()
    """The next best captions, best first, if requested."""
    flags: tuple[str, ...] = ()
    """What is suspicious about the caption."""
    status: Literal["ok", "failed"] = "ok"
    error: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class RowText:
    """How each row is written as text; Parquet is made from JSON lines when all rows are complete."""

    header: bytes
    """The beginning of a file."""
    encode: Callable[[CaptionRow], bytes]
    decode: Callable[[bytes], CaptionRow]
    around_key: tuple[bytes, bytes]
    """What is before and after the key in a row whose key is written as it is."""

    def is_of(self, line: bytes, key: str) -> bool:
        """Whether `line` is the row of `key`; a row is decoded only if its key may be written in another way."""
        before, after = self.around_key
        is_plain = not _SPECIAL.search(key)
        if is_plain and line.startswith(before + key.encode("utf-8", "surrogatepass") + after):
            return True
        return self.decode(line).path == key


def format_of(path: Path) -> TableFormat:
    """The format of a table by its suffix: .jsonl, .parquet, and CSV for any other.

    Raises InputError for a suffix of another file type, which programs would not read as CSV.
    """
    formats: dict[str, TableFormat] = {".jsonl": "jsonl", ".parquet": "parquet"}
    if path.suffix.lower() in _NO_TABLE:
        others = " or ".join(formats)
        raise InputError(f"{path}: a table of captions ends in .csv (for spreadsheets), {others}; or set its format")
    return formats.get(path.suffix.lower(), "csv")


def row_text(table_format: TableFormat, *, with_alternatives: bool) -> RowText:
    """How a table of this format is written row by row; `with_alternatives` adds that column to CSV."""
    if table_format != "csv":
        return RowText(b"", _encode_json, _decode_json, (_JSON_START + b'"', b'",'))
    columns = [name for name in _COLUMNS if with_alternatives or name != "alternatives"]

    def encode(row: CaptionRow) -> bytes:
        cells = _cells(row)
        return csv_line(cells[name] for name in columns)

    def decode(line: bytes) -> CaptionRow:
        (cells,) = csv.reader([line.decode("utf-8")])
        return _row_of_cells(dict(zip(columns, cells, strict=True)))

    return RowText(_MARK + csv_line(columns), encode, decode, (b"", b","))


def read_captions(path: AnyPath) -> Iterator[CaptionRow]:
    """The rows of a finished table of captions in any format (recognised by content), in constant memory.

    Raises InputError if there is no such file or it is not a table of captions.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror}; `captionmill caption` makes one") from exc
    if start == _PARQUET_START:
        return read_parquet(path)
    return _read_json_lines(path) if start.startswith(b"{") else _read_csv(path)


def is_caption_table(path: Path) -> bool:
    """Whether the file at `path` begins like a table of captions in any of the formats; an empty file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_PARQUET_START):
        _, parquet = _require_pyarrow()
        try:
            return set(_COLUMNS).issubset(parquet.read_schema(path).names)
        except (ValueError, OSError):
            return False
    text = start.removeprefix(_MARK).decode("utf-8", "replace").replace("\r\n", "\n")
    separator_line = _SEPARATOR_LINE.match(text)
    header = text[separator_line.end() if separator_line else 0 :].partition("\n")[0].strip("\r")
    columns = re.split(f"[{_SEPARATORS}]", header.replace('"', ""))  # as spreadsheets save it
    return not start or start.startswith(_JSON_START) or _NEEDED_COLUMNS.issubset(columns)


def read_parquet(path: Path) -> Iterator[CaptionRow]:
    """The rows of a Parquet table, read one row group at a time."""
    _, parquet = _require_pyarrow()
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_PARQUET_ROWS):
            for values in batch.to_pylist():
                yield _row_of_values(path, values)


def write_parquet(path: Path, rows: Iterable[CaptionRow]) -> None:
    """Write `rows` to `path` as Parquet, one row group at a time."""
    arrow, parquet = _require_pyarrow()
    texts = arrow.list_(arrow.string())
    schema = arrow.schema(
        [
            (name, {"confidence": arrow.float64(), "alternatives": texts, "flags": texts}.get(name, arrow.string()))
            for name in _COLUMNS
        ]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(asdict(row))
            if len(group) == _PARQUET_ROWS:
                writer.write_table(arrow.Table.from_pylist(group, schema))
                group.clear()
        writer.write_table(arrow.Table.from_pylist(group, schema))


def _require_pyarrow() -> tuple[Any, Any]:
    arrow = require("pyarrow", extra="parquet", needed_by="Parquet")
    return arrow, require("pyarrow.parquet", extra="parquet", needed_by="Parquet")


def _cells(row: CaptionRow) -> dict[str, str]:
    return {
        "path": guard_formula(row.path),
        "caption": guard_formula(row.caption),
        "confidence": "" if row.confidence is None else f"{row.confidence:.4f}",
        "alternatives": guard_formula(_BETWEEN_ALTERNATIVES.join(row.alternatives)),
        "flags": " ".join(row.flags),
        "status": row.status,
        "error": guard_formula(row.error),
    }


def _row_of_cells(cells: dict[str, str]) -> CaptionRow:
    alternatives = unguard_formula(cells.get("alternatives", ""))
    return CaptionRow(
        unguard_formula(cells["path"]),
        unguard_formula(cells["caption"]),
        float(cells["confidence"].replace(",", ".")) if cells["confidence"] else None,  # 0,5 where a comma is used
        tuple(alternatives.split(_BETWEEN_ALTERNATIVES)) if alternatives else (),
        tuple(cells.get("flags", "").split()),
        "ok" if cells["status"] == "ok" else "failed",
        unguard_formula(cells["error"]),
    )


def _read_csv(path: Path) -> Iterator[CaptionRow]:
    """The rows of a CSV with the separator that its header shows: a spreadsheet may have saved it with another one."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        has_separator_line = _SEPARATOR_LINE.fullmatch(first) is not None
        header = file.readline() if has_separator_line else first
        mark = max(_SEPARATORS, key=header.count)
        file.seek(0)
        lines = csv.reader(file, delimiter=mark, strict=True)  # else a quote could swallow rows
        try:
            columns = next(lines, [])
            columns = next(lines, []) if has_separator_line else columns
            if not _NEEDED_COLUMNS.issubset(columns):
                raise InputError(f"{path}: not a table of captions; it begins with {','.join(columns)[:80]!r}")
            for cells in lines:
                if any(f"{mark}{status}{mark}" in cell for cell in cells if "\n" in cell for status in _STATUSES):
                    raise _damaged(path, f"line {lines.line_num}")
                if any(cells):  # spreadsheets leave empty rows
                    yield _row_of_cells(dict(zip(columns, cells, strict=True)))
        except InputError:
            raise
        except (ValueError, csv.Error) as exc:
            raise _damaged(path, f"line {lines.line_num}") from exc


def _encode_json(row: CaptionRow) -> bytes:
    values = asdict(row) | {"confidence": None if row.confidence is None else round(row.confidence, 4)}
    return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _decode_json(line: bytes) -> CaptionRow:
    return _row_of_values(None, json.loads(line))


def _read_json_lines(path: Path) -> Iterator[CaptionRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _decode_json(line)
            except (ValueError, RecursionError) as exc:
                raise _damaged(path, f"line {number}") from exc


def _row_of_values(path: Path | None, values: dict[str, Any]) -> CaptionRow:
    try:
        return CaptionRow(
            **values | {"alternatives": tuple(values["alternatives"] or ()), "flags": tuple(values["flags"] or ())}
        )
    except (TypeError, KeyError) as exc:
        raise InputError(f"{path or 'a row'}: not a table of captions") from exc


def _damaged(path: Path, where: str) -> InputError:
    return InputError(f"{path}: {where} is not a complete row of captions; if its run was interrupted, run it again")
