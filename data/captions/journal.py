"""What captionmill remembers about a table of captions, in the folder `.NAME.made` beside it.

A journal says what all rows were made with, and of each row what it was made from, its length and its CRC-32: a line of
JSON, then three little-endian uint32 a row. So a row that is torn, changed by hand or out of date is known as such. A
row is recorded before it is written: a table never has a row that nobody knows.
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
from captionmill.data.files import errors_named, fit_name, flush_to_disk, hold_lock, replace_atomically

FORMAT = "captionmill-captions"
FORMAT_VERSION = 1

_RECORD = struct.Struct("<III")  # what the row was made from, its bytes, their CRC-32
_BLOCK_ROWS = 256  # written at once

SourceChecksums = npt.NDArray[np.uint32]
"""[N] for each image a number that changes with what its row is made from, its key included."""
Line = tuple[int, bytes | None]
"""What a row was made from, and its text: None if that is not what was written."""


def made_dir(path: Path) -> Path:
    """The folder of what captionmill remembers about the table at `path`."""
    return path.with_name(f".{path.name}.made")


@dataclass(frozen=True)
class TableDifference:
    """The rows that are there beside those that there should be."""

    matches: npt.NDArray[np.bool_]
    """[N] whether the row of this key is there and true."""
    row_count: int
    is_whole: bool
    """No row is damaged."""
    end: int
    """Where the last row ends, bytes."""
    first_rows: int
    """How many rows at the beginning are true and those that should be there."""
    first_end: int
    """Where these end, bytes."""


@dataclass(frozen=True)
class CaptionJournal:
    """Where the table, the one that is to replace it, and their journals lie; how rows get in and out."""

    path: Path
    folder: Path
    header_line: bytes
    """What a journal begins with."""
    text: RowText
    is_parquet: bool

    @property
    def finished(self) -> Path:
        """The journal of a table that is complete."""
        return self.folder / "rows"

    @property
    def growing(self) -> Path:
        """The journal of a table that is being written under its own name."""
        return self.folder / "growing"

    @property
    def new(self) -> Path:
        """The table that is to replace the old one; of a Parquet table, its rows as JSON lines."""
        return self.folder / "new"

    @property
    def new_rows(self) -> Path:
        """Its journal."""
        return self.folder / "new.rows"

    def recover(self) -> None:
        """Do what a kill at the very end left undone, and forget a table that is not there any more."""
        if self.new_rows.exists() and not self.new.exists():
            with self.new_rows.open("rb") as records:
                records.readline()
                is_complete = bool(records.read(1))
            if is_complete:  # the table has its place already
                self._finish()
            else:  # nor has it been begun
                self.new_rows.unlink()
        if not self.path.exists():
            self.finished.unlink(missing_ok=True)
            self.growing.unlink(missing_ok=True)

    def is_finished(self, old: TableDifference) -> bool:
        """Whether the table is complete and just as it was written."""
        if self.growing.exists() or not self.finished.exists() or not old.is_whole:
            return False
        return self.is_parquet or old.end == self.path.stat().st_size

    def can_grow_in_place(self, old: TableDifference) -> bool:
        """Whether there is no table, or what a killed run has written of this one, all of it as it should be now."""
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
        size = self.path.stat().st_size  # more than was recorded is somebody else's
        return is_this_one and begins_right and size <= len(self.text.header) + recorded_bytes

    def take_new(self) -> None:
        """Put the complete new table where the old one is."""
        if self.is_parquet:
            with replace_atomically(self.path) as partial_path:
                lines = (line for _, line in self.rows(self.new, self.new_rows)() if line is not None)
                write_parquet(partial_path, map(self.text.decode, lines))
            self.new.unlink()
        else:
            self.new.replace(self.path)
        self._finish()

    def _finish(self) -> None:
        """Forget the table that was there: the new one has its place."""
        self.growing.unlink(missing_ok=True)
        self.new_rows.replace(self.finished)

    def table_rows(self) -> Callable[[], Iterator[Line]]:
        """The rows of the table that is there, finished or not."""
        journal = self.growing if self.growing.exists() else self.finished
        return self.rows(self.path, journal, is_parquet=self.is_parquet)

    def rows(self, table: Path, journal: Path, *, is_parquet: bool = False) -> Callable[[], Iterator[Line]]:
        """Gives the rows of `table` as often as it is called; none if they were made with something else."""

        def read() -> Iterator[Line]:
            if not (table.exists() and journal.exists()):
                return
            with journal.open("rb") as records, table.open("rb") as lines:
                if records.readline() == self.header_line:
                    yield from _recorded_lines(records, table, lines, self.text, is_parquet=is_parquet)

        return read

    def keep_edited(self) -> Path | None:
        """Copy the table, if it is not just as it was written, to a free name beside it; that name."""
        if not self.path.exists() or self._is_as_written():
            return None
        endings = (".edited" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        paths = (self.path.with_name(fit_name(self.path.stem, ending + self.path.suffix)) for ending in endings)
        kept = next(path for path in paths if not path.exists() or filecmp.cmp(self.path, path, shallow=False))
        if not kept.exists():  # else a killed run has kept it
            with replace_atomically(kept) as partial_path:
                shutil.copy2(self.path, partial_path)
        return kept

    def _is_as_written(self) -> bool:
        """Whether a journal knows all of the table; that of the new one does if a kill came after it took its place."""
        old = self.growing if self.growing.exists() else self.finished
        return self._knows_table(old) or self._knows_table(self.new_rows)

    def _knows_table(self, journal: Path) -> bool:
        """Whether the table is what `journal` says, whatever it says that it was made with."""
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
        """Takes rows and what they were made from, after the first `row_count`, which end at `end`; cuts off others."""
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
                if len(block) == _BLOCK_ROWS:
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
    """The rows that `records` tells of, read from `lines` if `table` is text; none if that begins otherwise."""
    encoded = _encode_parquet(table, text) if is_parquet else None
    if not is_parquet and lines.read(len(text.header)) != text.header:
        return
    while len(record := records.read(_RECORD.size)) == _RECORD.size:
        source, length, checksum = _RECORD.unpack(record)
        line = lines.read(length) if encoded is None else next(encoded, b"")
        if encoded is None and len(line) < length and not line.endswith(b"\n"):
            return  # torn; with its end it is a row that somebody made shorter
        yield source, line if zlib.crc32(line) == checksum else None
    if encoded is not None and next(encoded, None) is not None:
        yield 0, None  # a row that nobody knows; in text it shows in the size


def _encode_parquet(path: Path, text: RowText) -> Iterator[bytes]:
    """The rows of a Parquet table as they were before; none if it is somebody else's file."""
    with contextlib.suppress(ValueError, OSError, TypeError):
        yield from map(text.encode, read_parquet(path))


def _recorded_bytes(records: IO[bytes]) -> int:
    """How many bytes the rows have that `records` tells of from where it stands; a torn record does not count."""
    content = records.read()
    whole = content[: len(content) // _RECORD.size * _RECORD.size]
    return sum(length for _, length, _ in _RECORD.iter_unpack(whole))


@contextlib.contextmanager
def _open_at(path: Path, header: bytes, end: int) -> Iterator[IO[bytes]]:
    """The file at `path`, which begins with `header`, open to be written from `end` on; what follows is cut off."""
    goes_on = end > len(header) and path.exists()
    with path.open("r+b" if goes_on else "wb") as file:
        if goes_on:
            file.truncate(end)
            file.seek(end)
        else:
            file.write(header)
            file.flush()
        yield file


@contextlib.contextmanager
def lock_table(path: Path) -> Iterator[Path]:
    """The folder beside the table, while no other process may write to either."""
    folder = made_dir(path)
    folder.mkdir(exist_ok=True)
    error = InputError(f"{path}: another process is writing this table; wait for it to end")
    with hold_lock(folder / ".lock", error):
        yield folder
