"""The table of captions, one row per image: CSV for spreadsheets, JSON lines or Parquet for programs.

CSV begins with a byte order mark, by which Excel recognises UTF-8 (pandas and R's readr skip it; Python reads it as
"utf-8-sig"), and no text in it is a formula (`csv_line`). From each format, `read_captions` returns exactly what
was written.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from captionmill.data.csv_tables import csv_line
from captionmill.data.errors import InputError
from captionmill.data.files import require_other_file
from captionmill.data.foreign import parse_json, read_line, short_lines
from captionmill.data.parquet import PARQUET_START, open_parquet, require_pyarrow
from captionmill.data.paths import AnyPath
from captionmill.data.regular import open_regular
from captionmill.data.tables.cells import CsvLayout, not_a_row, read_saved_cells
from captionmill.data.tables.rows import COLUMNS, STATUSES, CaptionRow, cells_of, row_of_cells, row_of_values

TableFormat = Literal["csv", "jsonl", "parquet"]

_SUFFIXES: dict[str, TableFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_PACKED = frozenset({".xlsx", ".xls", ".ods", ".gz", ".zip"})
"""Of files that no program opens as a table of any of the formats."""
_NO_TABLE = _PACKED | {".json", ".html", ".htm", ".tsv"}
_MARK = b"\xef\xbb\xbf"
_ALL_COLUMNS = frozenset(COLUMNS) - {"alternatives", "flags"}
"""Of any table of captions; older ones lack the others."""
_NEEDED_COLUMNS = frozenset({"path", "caption"})
"""What a person may not delete."""
_KEPT_CELLS = _NEEDED_COLUMNS | {"status"}
"""Of a row that is not torn."""
_JSON_START = b'{"path": '
_REMEDY = "write it again"
_PARQUET_ROWS = 16_384  # in a row group


@dataclass(frozen=True)
class RowText:
    """How each row is written as text."""

    header: bytes
    """The beginning of a file."""
    encode: Callable[[CaptionRow], bytes]


def format_of(path: Path, wanted: TableFormat | None = None) -> TableFormat:
    """The format of a table: `wanted`, or else by its suffix: .jsonl, .parquet, and CSV for any other.

    Raises InputError for a suffix of another file type, which programs would not read as CSV, unless a format is
    wanted; and for a suffix that contradicts it.
    """
    suffix = path.suffix.lower()
    promised = _SUFFIXES.get(suffix)
    if wanted is not None:
        if (promised or wanted) != wanted or suffix in _PACKED:
            raise InputError(f"{path}: `format` is {wanted}, so it must not end in {path.suffix}; rename it")
        return wanted
    if suffix in _NO_TABLE:
        raise InputError(
            f"{path}: a table of captions ends in .csv (for spreadsheets), .jsonl or .parquet; or set its format"
        )
    return promised or "csv"


def row_text(table_format: TableFormat, *, with_alternatives: bool) -> RowText:
    """How a table of this format is written row by row; `with_alternatives` adds that column to CSV."""
    if table_format != "csv":
        return RowText(b"", _encode_json)
    columns = [name for name in COLUMNS if with_alternatives or name != "alternatives"]

    def encode(row: CaptionRow) -> bytes:
        cells = cells_of(row)
        return csv_line(cells[name] for name in columns)

    return RowText(_MARK + csv_line(columns), encode)


def read_captions(path: AnyPath) -> Iterator[CaptionRow]:
    """The rows of a finished table of captions in any format (recognised by content), in constant memory.

    Raises InputError if there is no such file or it is not a table of captions.
    """
    path = Path(path)
    readers = {"csv": _read_csv, "jsonl": _rows_of_json_lines, "parquet": read_parquet}
    try:
        return readers[_found_format(path)](path)
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror}; `captionmill caption` makes one") from exc


def is_caption_table(path: Path) -> bool:
    """Whether the file at `path` begins like a table of captions in any of the formats; an empty file does."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        start = file.read(512)
    if not start or start.startswith(_JSON_START):
        return True
    if start.startswith(PARQUET_START):
        with suppress(InputError):
            return set(COLUMNS).issubset(columns_of(path))
        return False
    columns = CsvLayout.of(path).columns
    return _ALL_COLUMNS.issubset(columns) or (_NEEDED_COLUMNS.issubset(columns) and _is_ours(path))


def require_other_output(output: Path, *inputs: Path | None) -> None:
    """As `require_other_file`; InputError also if `output` is a table of captions: a person may have corrected it.

    An empty file may be replaced, and so may a table of other columns.
    """
    require_other_file(output, *inputs)
    is_filled = is_caption_table(output) and output.stat().st_size > 0
    if is_filled and (_is_ours(output) or _KEPT_CELLS.issubset(columns_of(output))):
        raise InputError(f"{output}: is a table of captions and would be overwritten; name another output")


def _is_ours(path: Path) -> bool:
    """Whether a run wrote a table at `path`; a person may have deleted columns of it since."""
    from captionmill.data.tables.journal import made_dir  # imports numpy, which a help does not need

    return made_dir(path).is_dir()


def layout_of(path: Path) -> tuple[TableFormat, bool]:
    """The format of the table of captions at `path`, and whether it has a column of alternatives."""
    return _found_format(path), "alternatives" in columns_of(path)


def _found_format(path: Path) -> TableFormat:
    """The format of the table at `path` by its first bytes."""
    with open_regular(path) as file:
        start = file.read(len(PARQUET_START))
    if start == PARQUET_START:
        return "parquet"
    return "jsonl" if start.startswith(b"{") else "csv"


def has_other_columns(path: Path) -> bool:
    """Whether the table of captions at `path` has a column that none of ours has."""
    return not columns_of(path).issubset(("", *COLUMNS))


def columns_of(path: Path) -> set[str]:
    """The names of the columns of the table of captions at `path`; of CSV in lower case."""
    found = _found_format(path)
    if found == "csv":
        return set(CsvLayout.of(path).columns)
    if found == "parquet":
        with open_parquet(path, InputError, _REMEDY) as table:
            return set(table.schema_arrow.names)
    try:
        with open_regular(path) as file:
            return set(parse_json(read_line(file)))
    except ValueError as exc:
        raise not_a_row(path, 1, "captions") from exc


def write_captions(
    path: Path, rows: Iterable[CaptionRow], table_format: TableFormat, *, with_alternatives: bool
) -> None:
    """Write `rows` to `path` as a table; `with_alternatives` adds that column to CSV."""
    if table_format == "parquet":
        write_parquet(path, rows)
        return
    text = row_text(table_format, with_alternatives=with_alternatives)
    with path.open("wb") as file:
        file.write(text.header)
        file.writelines(map(text.encode, rows))


def read_parquet(path: Path) -> Iterator[CaptionRow]:
    """The rows of a Parquet table, read one row group at a time."""
    with open_parquet(path, InputError, _REMEDY) as file:
        for batch in file.iter_batches(_PARQUET_ROWS):
            for values in batch.to_pylist():
                yield row_of_values(values, path)


def write_parquet(path: Path, rows: Iterable[CaptionRow]) -> None:
    """Write `rows` to `path` as Parquet, one row group at a time."""
    arrow, parquet = require_pyarrow()
    texts = arrow.list_(arrow.string())
    schema = arrow.schema(
        [
            (name, {"confidence": arrow.float64(), "alternatives": texts, "flags": texts}.get(name, arrow.string()))
            for name in COLUMNS
        ]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(_values_of(row))
            if len(group) == _PARQUET_ROWS:
                writer.write_table(arrow.Table.from_pylist(group, schema))
                group.clear()
        writer.write_table(arrow.Table.from_pylist(group, schema))


def _read_csv(path: Path) -> Iterator[CaptionRow]:
    layout = CsvLayout.of(path)
    if not _NEEDED_COLUMNS.issubset(layout.columns):
        raise InputError(f"{path}: not a table of captions; it begins with {','.join(layout.columns)[:80]!r}")
    inside = tuple(f"{layout.mark}{status}{layout.mark}" for status in STATUSES)
    for line, cells in read_saved_cells(path, layout, "captions", needed=_KEPT_CELLS):
        if any(text in cell for cell in cells.values() if "\n" in cell for text in inside):
            raise not_a_row(path, line, "captions")
        try:
            yield row_of_cells(cells)
        except ValueError as exc:
            raise not_a_row(path, line, "captions") from exc


def _encode_json(row: CaptionRow) -> bytes:
    return (json.dumps(_values_of(row), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _values_of(row: CaptionRow) -> dict[str, Any]:
    return asdict(row) | {"confidence": None if row.confidence is None else round(row.confidence, 4)}


def _rows_of_json_lines(path: Path) -> Iterator[CaptionRow]:
    done = 0
    with open_regular(path) as file:
        try:
            for line in short_lines(file):
                yield row_of_values(parse_json(line))
                done += 1
        except ValueError as exc:
            raise not_a_row(path, done + 1, "captions") from exc
