"""Captions in a CSV or TSV; a quote that opens a cell swallows no other row.

Where a quoted cell spans lines, and one of them would make a row of this table by itself, nobody can say whether the
quotes belong together or are in two captions: the table is refused, with the line.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from captionmill.data.captions.formats.quotes import RowReader, TableRow
from captionmill.data.captions.formats.rows import (
    OWN_IMAGE_COLUMN,
    ColumnNames,
    FoundColumns,
    ReferenceRow,
    find_columns,
    has_columns,
    is_marked,
)
from captionmill.data.csv_tables import SEPARATOR_LINE, unguard_formula
from captionmill.data.errors import AnnotationError

_MARKS = ("\t", ",", "|", ";")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")
_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|jpe|jfif|png|webp|bmp|gif|tiff?|heic|heif|avif|jxl)$", re.IGNORECASE)


@dataclass(frozen=True)
class TableLayout:
    """How a table is written."""

    mark: str
    """The separator."""
    header: Sequence[str]
    columns: FoundColumns
    skipped_lines: int
    """How many lines come before the header."""


def find_table(start: str, wanted: ColumnNames) -> TableLayout | None:
    """The layout of the table that begins with `start`, the first lines of a file; None if it is not a table.

    Raises AnnotationError if it is a table without the columns of image and caption, or without those `wanted`.
    """
    lines = start.split("\n")
    skipped = next((index for index, line in enumerate(lines) if line.strip()), 0)
    first = SEPARATOR_LINE.fullmatch(lines[skipped].removeprefix("\ufeff"))
    skipped += bool(first)
    marks = (first["mark"],) if first else _MARKS
    headers = {mark: RowReader(mark).split(lines[skipped] if skipped < len(lines) else "").cells for mark in marks}
    mark = max(marks, key=lambda mark: (has_columns(headers[mark], wanted), len(headers[mark])))
    if len(headers[mark]) < 2:
        return None
    return TableLayout(mark, headers[mark], find_columns(headers[mark], wanted), skipped)


def read_caption_table(file: TextIO, layout: TableLayout) -> Iterator[ReferenceRow]:
    """The captions of a table from its beginning."""
    columns, mark = layout.columns, layout.mark
    is_own = layout.header[columns.image].strip().casefold() == OWN_IMAGE_COLUMN
    for number, row in _read_checked(file, layout):
        cells = row.cells
        if not any(map(str.strip, cells)):  # spreadsheets leave empty rows
            continue
        if len(cells) > len(layout.header):
            detail = f"Expected {len(layout.header)} fields in line {row.line}, saw {len(cells)}"
            raise AnnotationError(f"damaged table ({detail}); put quotes around captions that contain {mark!r}")
        split = None if columns.split is None else _cell(cells, columns.split)
        image, caption = _cell(cells, columns.image), _cell(cells, columns.caption)
        if is_own:
            image = unguard_formula(image if columns.status is not None else image.lstrip(" "))
            caption = unguard_formula(caption.lstrip(" "))
        is_rejected = any(is_marked(_cell(cells, position)) for position in columns.rejected)
        yield ReferenceRow(f"row {number}", image, caption, split, is_rejected, status=columns.status_in(cells))


def _cell(cells: Sequence[str], position: int) -> str:
    return cells[position] if position < len(cells) else ""


def _read_checked(file: TextIO, layout: TableLayout) -> Iterator[tuple[int, TableRow]]:
    """The rows below the header with their numbers; AnnotationError for one that can be read in two ways."""
    reader = RowReader(layout.mark)
    names: _Names | None = None
    stray: TableRow | None = None  # the last row but for empty ones, if it has a quote that is text
    for number, row in enumerate(reader.read(file), 1):
        if number <= layout.skipped_lines:
            continue
        if stray or (row.lines and (len(row.lines) > 1 or row.stray or len(row.cells) != len(layout.header))):
            if names is None:
                position = file.tell()
                file.seek(0)
                names = _Names.of(reader.read(file), layout)
                file.seek(position)
            if stray and any(map(str.strip, row.cells)):
                first_line = row.lines[0] if row.lines else layout.mark.join(row.cells)
                if not names.could_be_row(reader.split(first_line).cells):  # it may be the rest of the caption
                    raise AnnotationError(
                        f"line {stray.line} opens a quote that is not closed, and line {row.line} does not begin a "
                        "row: double the quotes inside a quoted caption, or remove the one that opens it"
                    )
                stray = None
            _refuse_doubtful(row, layout, reader, names)
        stray = row if row.stray else stray
        if number > layout.skipped_lines + 1:
            yield number, row
    if stray and stray.lines[-1].count('"') % 2:  # `"Go" sign` closes its own
        raise AnnotationError(
            f"line {stray.line} opens a quote that nothing closes: remove it, or complete the caption if it was cut"
        )


def _refuse_doubtful(row: TableRow, layout: TableLayout, reader: RowReader, names: "_Names") -> None:
    columns = layout.columns
    if columns.image in row.stray:
        raise AnnotationError(f"line {row.line} has an image name that begins with a quote; remove the quote")
    last = row.line + len(row.lines) - 1
    if len(row.lines) > 1:
        own = row.line_of(columns.image)
        for index, line in enumerate(row.lines):
            if index != own and names.could_be_row(reader.split(line).cells):
                raise AnnotationError(
                    f"line {row.line} opens a quote that line {last} closes, but line {row.line + index} by itself is "
                    "a row: remove the quotes, or double those that belong to a caption and quote it whole"
                )
    elif row.lines and len(row.cells) < len(layout.header) == len(row.lines[0].split(layout.mark)):
        raise AnnotationError(
            f"line {row.line} has quotes around {layout.mark!r} and one cell too few: remove the quotes, or double "
            "those that belong to a caption and quote it whole"
        )
    if row.lines and len(row.cells) <= max(columns.image, columns.caption):
        raise AnnotationError(f"line {row.line} has quotes and no caption: put quotes around the caption only")


@dataclass
class _Names:
    """What the image names of a table look like, by which a row is known from a line of a caption."""

    columns: FoundColumns
    width: int
    """The number of columns."""
    total: int = 0
    plain: int = 0
    """How many have no suffix."""
    suffixes: set[str] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    """Of the names without a suffix: how many hold a digit, a letter, a space, or any other character."""

    @classmethod
    def of(cls, rows: Iterator[TableRow], layout: TableLayout) -> "_Names":
        """Of the names in `rows`, except those in a row after a stray quote, which may be the rest of a caption."""
        names = cls(columns=layout.columns, width=len(layout.header))
        after_stray = False
        for number, row in enumerate(rows, 1):
            name = _bare(_cell(row.cells, layout.columns.image))
            if number > layout.skipped_lines + 1 and name and not after_stray:
                names.add(name)
            after_stray = bool(row.stray)
        return names

    def add(self, name: str) -> None:
        """Count one more name."""
        self.total += 1
        if suffix := _SUFFIX.search(name):
            self.suffixes.add(suffix[0].lower())
        else:
            self.plain += 1
            self.kinds.update(_kinds(name))

    def could_be_row(self, cells: Sequence[str]) -> bool:
        """Whether `cells`, those of one line, could be a row: the columns are there, the image has a likely name."""
        name = _bare(_cell(cells, self.columns.image))
        if not name or len(cells) <= max(self.columns.image, self.columns.caption):
            return False
        suffix = _SUFFIX.search(name)
        if suffix and (suffix[0].lower() in self.suffixes or _IMAGE_SUFFIX.search(name)):
            return True  # even with too many cells: its caption may lack quotes
        if suffix or len(cells) < self.width or self.plain * 4 < self.total:
            return False
        usual = {kind for kind, count in self.kinds.items() if count * 10 >= self.plain}
        found = _kinds(name)
        return found <= usual and ("9" in found or self.kinds["9"] * 10 < self.plain * 9)


def _bare(name: str) -> str:
    return name.strip().strip('"').strip()


def _kinds(name: str) -> set[str]:
    return {"9" if mark.isdigit() else "a" if mark.isalpha() else " " if mark.isspace() else mark for mark in name}
