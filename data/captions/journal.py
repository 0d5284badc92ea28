"""The journals of a table of captions, in the folder `.NAME.made` beside it.

A journal is a line of JSON with the settings that all rows were made with, then three little-endian uint32 per row: a
checksum of what it was made from, its length in bytes and its CRC-32. So a row that is incomplete, changed by hand or
outdated is recognised. A row is recorded before it is written: a table never has an unrecorded row.
"""

import contextlib
import filecmp
import itertools
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from captionmill.data.captions.table import RowText, read_parquet, row_text, write_parquet
from captionmill.data.errors import InputError
from captionmill.data.files import errors_named, fit_name, flush_to_disk, replace_atomically
from captionmill.data.locks import hold_lock

FORMAT = "captionmill-captions"
FORMAT_VERSION = 1

_RECORD = struct.Struct("<III")  # checksum of what the row was made from, its length in bytes, its CRC-32
BLOCK_ROWS = 256  # written together

SourceChecksums = npt.NDArray[np.uint32]
"""[N], for each image a checksum of what its row is made from, including its key."""
Line = tuple[int, bytes | None]
"""The checksum of what a row was made from, and the row's text; None if that is not what was written."""


def made_dir(path: Path) -> Path:
    """The folder with the journals of the table at `path`."""
    return path.with_name(f".{path.name}.made")


@dataclass(frozen=True)
class TableDifference:
    """How the existing rows differ from the wanted ones."""

    matches: npt.NDArray[np.bool_]
    """[N], whether the row of this key exists and is up to date."""
    row_count: int
    is_whole: bool
    """No row is damaged."""
    end: int
    """Where the last row ends, bytes."""
    first_rows: int
    """How many rows at the beginning are up to date and in the right place."""
    first_end: int
    """Where these end, bytes."""


@dataclass(frozen=True)
class CaptionJournal:
    """The paths of the table, its replacement and their journals; reads and writes their rows."""

    path: Path
    folder: Path
    header_line: bytes
    """The first line of a journal."""
    text: RowText
    is_parquet: bool
    block_rows: int = BLOCK_ROWS
    """Rows that are written together; a kill loses at most these."""

    @property
    def finished(self) -> Path:
        """The journal of a complete table."""
        return self.folder / "rows"

    @property
    def growing(self) -> Path:
        """The journal of a table that is being written under its own name."""
        return self.folder / "growing"

    @property
    def new(self) -> Path:
        """The table that will replace the old one; for Parquet, its rows as JSON lines."""
        return self.folder / "new"

    @property
    def new_rows(self) -> Path:
        """The journal of the new table."""
        return self.folder / "new.rows"

    def recover(self) -> None:
        """Finish a run that was killed at the very end, and forget a table that no longer exists."""
        if self.new_rows.exists() and not self.new.exists():
            with self.new_rows.open("rb") as records:
                records.readline()
                is_complete = bool(records.read(1))
            if is_complete:  # the table is in its place already
                self._finish()
            else:  # the new table was not begun
                self.new_rows.unlink()
        if not self.path.exists():
            self.finished.unlink(missing_ok=True)
            self.growing.unlink(missing_ok=True)

    def is_finished(self, old: TableDifference) -> bool:
        """Whether the table is complete and unchanged since it was written."""
        if self.growing.exists() or not self.finished.exists() or not old.is_whole:
            return False
        return self.is_parquet or old.end == self.path.stat().st_size

    def can_grow_in_place(self, old: TableDifference) -> bool:
        """Whether there is no table yet, or only rows of this one from an interrupted run, all of them up to date."""
        if self.is_parquet or self.new.exists():
            return False
        if not self.path.exists():
            return True
        if not self.growing.exists() or not old.is_whole or old.first_rows < old.row_count:
            return False
        with self.growing.open("rb") as records, self.path.open("rb") as lines:
            is_this_one = records.readline() == self.header_line
            recorded_bytes = _recorded_bytes(records)
            begins_right = self.text.header.startswith(lines.read(len(self.text.header)))
        size = self.path.stat().st_size  # bytes beyond the recorded ones are somebody else's
        return is_this_one and begins_right and size <= len(self.text.header) + recorded_bytes

    def take_new(self) -> None:
        """Replace the old table by the complete new one."""
        if self.is_parquet:
            with replace_atomically(self.path) as partial_path:
                lines = (line for _, line in self.rows(self.new, self.new_rows)() if line is not None)
                write_parquet(partial_path, map(self.text.decode, lines))
            self.new.unlink()
        else:
            self.new.replace(self.path)
        self._finish()

    def _finish(self) -> None:
        """Forget the old table, which the new one has replaced."""
        self.growing.unlink(missing_ok=True)
        self.new_rows.replace(self.finished)

    def table_rows(self) -> Callable[[], Iterator[Line]]:
        """The rows of the existing table, finished or not."""
        journal = self.growing if self.growing.exists() else self.finished
        return self.rows(self.path, journal, is_parquet=self.is_parquet)

    def rows(self, table: Path, journal: Path, *, is_parquet: bool = False) -> Callable[[], Iterator[Line]]:
        """A function that yields the rows of `table` at each call; none if they were made with other settings."""

        def read() -> Iterator[Line]:
            if not (table.exists() and journal.exists()):
                return
            with journal.open("rb") as records, table.open("rb") as lines:
                if records.readline() == self.header_line:
                    yield from _recorded_lines(records, table, lines, self.text, is_parquet=is_parquet)

        return read

    def keep_edited(self) -> Path | None:
        """If the table was changed since it was written, copy it to a free name beside it; returns that path."""
        if not self.path.exists() or self._is_as_written():
            return None
        endings = (".edited" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        paths = (self.path.with_name(fit_name(self.path.stem, ending + self.path.suffix)) for ending in endings)
        kept = next(path for path in paths if not path.exists() or filecmp.cmp(self.path, path, shallow=False))
        if not kept.exists():  # else an interrupted run kept it already
            with replace_atomically(kept) as partial_path:
                shutil.copy2(self.path, partial_path)
        return kept

    def _is_as_written(self) -> bool:
        """Whether a journal records the whole table: after a kill at the very end, that of the new table."""
        old = self.growing if self.growing.exists() else self.finished
        return self._knows_table(old) or self._knows_table(self.new_rows)

    def _knows_table(self, journal: Path) -> bool:
        """Whether the table is as `journal` records it, whatever settings it was made with."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), journal.open("rb") as records:
            header, start = json.loads(records.readline()), records.tell()
            is_parquet = header["table"] == "parquet"
            text = row_text(header["table"], with_alternatives=header["with_alternatives"])
            if not is_parquet:
                size, recorded = self.path.stat().st_size, len(text.header) + _recorded_bytes(records)
                if size > recorded or (size < recorded and journal != self.growing):
                    return False
                records.seek(start)
            with self.path.open("rb") as lines:
                recorded_lines = _recorded_lines(records, self.path, lines, text, is_parquet=is_parquet)
                return all(line is not None for _, line in recorded_lines) and (is_parquet or not lines.read(1))
        return False

    @contextlib.contextmanager
    def append(self, table: Path, journal: Path, row_count: int, end: int) -> Iterator[Callable[[int, bytes], None]]:
        """A function that adds rows and their sources after `row_count` rows, which end at `end`; cuts off the rest."""
        journal_end = len(self.header_line) + row_count * _RECORD.size
        with (
            errors_named(self.path),
            _open_at(journal, self.header_line, journal_end) as records,
            _open_at(table, self.text.header, end) as file,
        ):
            block: list[tuple[bytes, bytes]] = []

            def flush() -> None:
                written = list(zip(*block, strict=True))
                block.clear()
                for target, pieces in zip((records, file), written, strict=False):  # the record first
                    target.write(b"".join(pieces))
                    target.flush()

            def add(source: int, line: bytes) -> None:
                block.append((_RECORD.pack(source, len(line), zlib.crc32(line)), line))
                if len(block) == self.block_rows:
                    flush()

            try:
                yield add
            finally:
                flush()
        flush_to_disk(journal)
        flush_to_disk(table)


def _recorded_lines(
    records: IO[bytes], table: Path, lines: IO[bytes], text: RowText, *, is_parquet: bool
) -> Iterator[Line]:
    """The rows that `records` lists, read from `lines` if `table` is text; none if its header is different."""
    encoded = _encode_parquet(table, text) if is_parquet else None
    if not is_parquet and lines.read(len(text.header)) != text.header:
        return
    while len(record := records.read(_RECORD.size)) == _RECORD.size:
        source, length, checksum = _RECORD.unpack(record)
        line = lines.read(length) if encoded is None else next(encoded, b"")
        if encoded is None and len(line) < length and not line.endswith(b"\n"):
            return  # incomplete; with a line end, somebody made the row shorter
        yield source, line if zlib.crc32(line) == checksum else None
    if encoded is not None and next(encoded, None) is not None:
        yield 0, None  # an unrecorded row; in text, the size shows it


def _encode_parquet(path: Path, text: RowText) -> Iterator[bytes]:
    """The rows of a Parquet table as text, as they were recorded; none if another program wrote the file."""
    with contextlib.suppress(ValueError, OSError, TypeError):
        yield from map(text.encode, read_parquet(path))


def _recorded_bytes(records: IO[bytes]) -> int:
    """The total length in bytes of the rows in the rest of `records`; an incomplete record does not count."""
    content = records.read()
    whole = content[: len(content) // _RECORD.size * _RECORD.size]
    return sum(length for _, length, _ in _RECORD.iter_unpack(whole))


@contextlib.contextmanager
def _open_at(path: Path, header: bytes, end: int) -> Iterator[IO[bytes]]:
    """The file at `path`, which begins with `header`, opened for writing at `end`; the rest is cut off."""
    resumes = end > len(header) and path.exists()
    with path.open("r+b" if resumes else "wb") as file:
        if resumes:
            file.truncate(end)
            file.seek(end)
        else:
            file.write(header)
            file.flush()
        yield file


@contextlib.contextmanager
def lock_table(path: Path) -> Iterator[Path]:
    """The folder with the journals, locked during the block: no other process may write to it or to the table."""
    folder = made_dir(path)
    folder.mkdir(exist_ok=True)
    error = InputError(f"{path}: another process is writing this table; wait for it to end")
    with hold_lock(folder / ".lock", error):
        yield folder
