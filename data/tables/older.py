"""Journals of format 1, which knew only the lengths and checksums of a table's rows; they are converted when met.

`rows` in the folder (`growing` for a table whose run was interrupted) is a line of JSON with the settings of all rows,
then three little-endian uint32 per row: a checksum of what it was made from, its length in bytes and its CRC-32.
"""

import contextlib
import struct
import zlib
from pathlib import Path
from typing import Any

from captionmill.data.errors import InputError
from captionmill.data.files import digest_of_file, replace_atomically
from captionmill.data.foreign import WRONG_VALUES, parse_json
from captionmill.data.regular import read_bytes
from captionmill.data.tables.formats import is_caption_table, read_captions, row_text
from captionmill.data.tables.journal import CaptionJournal, JournalWriter
from captionmill.data.tables.review import Review
from captionmill.data.tables.rows import tidy

_FILES = ("growing", "rows", "new", "new.rows")
_RECORD = struct.Struct("<III")


def convert_older(path: Path, journal: CaptionJournal) -> None:
    """Begin `journal` with what a journal of format 1 beside it knows of the table at `path`, and remove that one.

    A row that is not as it was written counts as corrected by a person.
    """
    files = [journal.path.with_name(name) for name in _FILES]
    older = next((file for file in files[:2] if file.exists()), None)
    if older is not None and not journal.path.exists() and is_caption_table(path):
        with contextlib.suppress(*WRONG_VALUES):  # a damaged one is as good as none
            _convert_journal(path, older, journal)
    for file in files:
        file.unlink(missing_ok=True)


def _convert_journal(path: Path, older: Path, journal: CaptionJournal) -> None:
    header_line, _, records = read_bytes(older).partition(b"\n")
    header: dict[str, Any] = parse_json(header_line)
    text = row_text(header["table"], with_alternatives=header["with_alternatives"])
    records = records[: len(records) // _RECORD.size * _RECORD.size]
    sources = {(length, checksum): source for source, length, checksum in _RECORD.iter_unpack(records)}
    reviews: list[Review] = []
    with replace_atomically(journal.path) as partial_path, partial_path.open("wb") as file:
        writer = JournalWriter(file, 0)
        writer.add_settings(header["made_with"])
        with contextlib.suppress(InputError):  # of a last row that is incomplete
            for row in read_captions(path):
                line = text.encode(row)
                source = sources.get((len(line), zlib.crc32(line)))
                if source is not None:
                    writer.add_row(row, source)
                elif row.caption:
                    reviews.append(Review(row.path, "corrected", tidy(row.caption)))
        if not reviews:
            writer.add_table(digest_of_file(path), of="")
        writer.add_reviews(reviews)
        writer.flush()
