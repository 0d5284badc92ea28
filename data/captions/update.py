"""Brings a table of captions up to date: rows are appended in blocks, and rows that are up to date are not made again.

A new table grows under its own name. A finished one is never changed: the next table grows beside it and replaces it
when it is complete. The next run resumes what an interrupted one left (`journal.py`).
"""

import bisect
import contextlib
import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captionmill.data.captions.journal import (
    BLOCK_ROWS,
    FORMAT,
    FORMAT_VERSION,
    CaptionJournal,
    Line,
    SourceChecksums,
    TableDifference,
    lock_table,
)
from captionmill.data.captions.table import CaptionRow, RowText, TableFormat, row_text
from captionmill.data.errors import InputError
from captionmill.data.files import flush_to_disk

_logger = logging.getLogger(__name__)


def update_captions(
    path: Path,
    keys: Sequence[str],
    sources: SourceChecksums,
    made_with: dict[str, Any],
    make_rows: Callable[[Sequence[str]], Iterable[CaptionRow]],
    *,
    table_format: TableFormat = "csv",
    with_alternatives: bool = False,
    keep_edited: bool = True,
    block_rows: int = BLOCK_ROWS,
) -> int:
    """Make `path` the table of the images `keys` (sorted), one row each; returns how many rows were made.

    `sources` [N] are checksums of what each row is made from, including its key; `made_with` (JSON) are the settings
    that all rows are made with. A row is kept if both are unchanged. `make_rows` gets the other keys and returns their
    rows in that order. If `keep_edited`, a table that is replaced but was changed since it was written (by hand, for
    example) is kept under another name, with a warning. `block_rows` rows are written together. Raises InputError if
    another process writes to the table.
    """
    text = row_text(table_format, with_alternatives=with_alternatives)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "table": table_format}
    header |= {"with_alternatives": with_alternatives, "made_with": made_with}
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_table(path) as folder:
        header_line = (json.dumps(header) + "\n").encode()
        place = CaptionJournal(path, folder, header_line, text, table_format == "parquet", block_rows)
        place.recover()
        old_rows = place.table_rows()
        old = _compare(old_rows(), keys, sources, text)
        if place.is_finished(old) and old.matches.all() and old.row_count == len(keys):
            return 0
        in_place = place.can_grow_in_place(old)
        if in_place:
            table, journal, there, kept = path, place.growing, old, np.zeros(len(keys), dtype=np.bool_)
        else:
            table, journal, kept = place.new, place.new_rows, old.matches
            there = _compare(place.rows(table, journal)(), keys, sources, text)
        start = there.first_rows
        missing = [key for key, is_kept in zip(keys[start:], kept[start:], strict=True) if not is_kept]
        made = _check_keys(missing, make_rows(missing))
        with (
            contextlib.closing(_kept_lines(old_rows(), keys, sources, text)) as kept_lines,
            place.append(table, journal, start, there.first_end) as add,
        ):
            for position in range(start, len(keys)):
                if kept[position]:
                    line = next((line for place_of_line, line in kept_lines if place_of_line == position), None)
                    if line is None:
                        raise InputError(f"{path}: was changed while the new table was made from it; run again")
                else:
                    line = text.encode(next(made))
                add(int(sources[position]), line)
        if in_place:
            place.growing.replace(place.finished)
        else:
            if keep_edited and (kept_path := place.keep_edited()):
                _logger.warning(
                    "%s: was changed since it was written; the changed table is kept as %s", path, kept_path.name
                )
            place.take_new()
        flush_to_disk(path.parent)
    return len(missing)


def _compare(rows: Iterable[Line], keys: Sequence[str], sources: SourceChecksums, text: RowText) -> TableDifference:
    matches = np.zeros(len(keys), dtype=np.bool_)
    row_count = first_rows = 0
    end = first_end = len(text.header)
    is_whole = True
    for place, line in _find_places(rows, keys, sources, text):
        end += len(line or b"")
        is_whole = is_whole and line is not None
        if place is not None:
            matches[place] = True
            if is_whole and place == first_rows == row_count:
                first_rows, first_end = first_rows + 1, end
        row_count += 1
    return TableDifference(matches, row_count, is_whole, end, first_rows, first_end)


def _kept_lines(
    rows: Iterable[Line], keys: Sequence[str], sources: SourceChecksums, text: RowText
) -> Generator[tuple[int, bytes], None, None]:
    """The rows that are up to date, each with the position of its key."""
    for place, line in _find_places(rows, keys, sources, text):
        if place is not None and line is not None:
            yield place, line


def _find_places(
    rows: Iterable[Line], keys: Sequence[str], sources: SourceChecksums, text: RowText
) -> Iterator[tuple[int | None, bytes | None]]:
    """Each row with the position of its key in the sorted `keys`; None if it is outdated or out of order."""
    following = 0
    for source, line in rows:
        place = None
        if line is not None:
            # a checksum has four bytes and proves no name
            if following < len(keys) and sources[following] == source and text.is_of(line, keys[following]):
                place = following
            else:
                key = text.decode(line).path
                following = bisect.bisect_left(keys, key, following)
                if following < len(keys) and keys[following] == key and sources[following] == source:
                    place = following
            if place is not None:
                following = place + 1
        yield place, line


def _check_keys(keys: Sequence[str], rows: Iterable[CaptionRow]) -> Iterator[CaptionRow]:
    for key, row in zip(keys, rows, strict=True):
        if row.path != key:
            raise ValueError(f"the row of {row.path} came for {key}")
        yield row
