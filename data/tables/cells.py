"""A CSV as any spreadsheet or editor may have saved it: its separator, quotes, line ends and Unicode encoding vary."""

import csv
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.csv_tables import SEPARATOR_LINE, encoding_of
from captionmill.data.errors import InputError
from captionmill.data.foreign import short_lines
from captionmill.data.regular import open_regular, open_regular_text

_SEPARATORS = ",;\t|"
_START_BYTES = 1 << 16  # as long as the lines up to the header may be


@dataclass(frozen=True)
class CsvLayout:
    """How a CSV is written."""

    columns: tuple[str, ...]
    """Their names in lower case, without spaces at their ends."""
    mark: str
    """The separator."""
    skipped_lines: int
    """How many lines come before the header."""
    encoding: str

    @classmethod
    def of(cls, path: Path) -> "CsvLayout":
        """That of the file at `path`, which may be any file: then its columns mean nothing. Raises OSError."""
        with open_regular(path) as file:
            start = file.read(_START_BYTES)
        encoding = encoding_of(start)
        lines = start.decode(encoding, "replace").splitlines()[:2]
        named = SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
        header = "".join(lines[bool(named) :][:1])
        mark = named["mark"] if named else max(_SEPARATORS, key=header.count)
        names = next(csv.reader([header], delimiter=mark), [])
        return cls(tuple(name.strip().lower() for name in names), mark, int(bool(named)), encoding)


def read_saved_cells(
    path: Path, layout: CsvLayout, content: str, *, needed: Collection[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows below the header: the number of the last line of each, and its cells by column; empty rows are left out.

    Excel leaves out separators before empty cells at the end of a row: such cells are "" unless their column is
    `needed`. Raises InputError with the line if one is no row; `content` is what a row is of ("captions").
    """
    least = 1 + max(place for place, name in enumerate(layout.columns) if name in needed)
    width = len(layout.columns)
    with open_regular_text(path, layout.encoding) as file:
        lines = csv.reader(short_lines(file), delimiter=layout.mark, strict=True)  # else a quote could swallow rows
        try:
            for cells in itertools.islice(lines, layout.skipped_lines + 1, None):
                if any(cells):  # spreadsheets leave empty rows
                    if len(cells) < least or any(cells[width:]):
                        raise ValueError(f"{len(cells)} cells")
                    padded = itertools.chain(cells, itertools.repeat(""))
                    yield lines.line_num, dict(zip(layout.columns, padded, strict=False))
        except UnicodeDecodeError as exc:
            raise InputError(f"{path}: not in UTF-8; save it as CSV in UTF-8") from exc
        except (ValueError, csv.Error) as exc:
            raise not_a_row(path, lines.line_num, content) from exc


def not_a_row(path: Path, line: int, content: str) -> InputError:
    """The error about a line that is no row."""
    return InputError(f"{path}: line {line} is not a complete row of {content}; correct it there, or delete it")
