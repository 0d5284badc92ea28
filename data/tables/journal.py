"""The journal of a table of captions, `.NAME.made/journal.jsonl` beside it. The table is a rendering of it.

Each line is a JSON object whose last member is the CRC-32 of the bytes before it. Lines are only added, so a kill can
tear only the last one, which the next run cuts off. They record what happened, in this order:

    {"format": "captionmill-captions", "format_version": 2, "crc": ...}
    {"made_with": the settings of the rows that follow, "crc": ...}
    {"row": a CaptionRow, "source": a checksum of what the row is made from, "crc": ...}
    {"review": a Review, or null to forget all before it, "image": hashes of its content and its features, "crc": ...}
    {"table": SHA-256 of a rendering, "of": SHA-256 of what was rendered, "crc": ...}

A later line about an image replaces earlier ones of the same kind.
"""

import contextlib
import json
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from captionmill.data.errors import InputError
from captionmill.data.files import errors_named, flush_to_disk, remove_leftovers, replace_atomically
from captionmill.data.foreign import WRONG_VALUES, LongLineError, parse_json, short_lines, text_of
from captionmill.data.locks import hold_lock
from captionmill.data.regular import make_own_folder, open_own, open_regular
from captionmill.data.tables.review import Decided, Review, Reviews, is_review
from captionmill.data.tables.rows import CaptionRow, row_of_values

FORMAT = "captionmill-captions"
FORMAT_VERSION = 2
BLOCK_ROWS = 256  # written together
KEPT_RENDERINGS = 100  # an older table that is put back is compared row by row instead

_CRC = b', "crc": '

SourceChecksums = npt.NDArray[np.uint32]
"""[N], for each image a checksum of what its row is made from, including its key."""

IsAsWanted = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
"""Whether a row (the second argument, its fields) that was made with other settings (the first) would be the same."""


@dataclass
class Known:
    """What a journal knows about the images of one table."""

    offsets: npt.NDArray[np.int64]
    """[N], where the line with the last row of each image begins, bytes; -1 for none."""
    is_current: npt.NDArray[np.bool_]
    """[N], whether that row is made with the wanted settings and from the wanted source."""
    is_replaced: npt.NDArray[np.bool_]
    """[N], whether that row is made from another source."""
    decided: Reviews = field(default_factory=Reviews)
    renderings: list[str] = field(default_factory=list)
    """SHA-256 of the tables that were rendered, the last ones last."""
    last: tuple[str, str] | None = None
    """The last rendering and what it shows, as in its line; None if a row or a review came after it."""
    end: int = 0
    """Where the last whole line ends, bytes."""

    @property
    def reviews(self) -> dict[str, Review]:
        """The last review of each key."""
        return self.decided.latest


def made_dir(path: Path) -> Path:
    """The folder with the journal of the table at `path`."""
    return path.with_name(f".{path.name}.made")


@contextlib.contextmanager
def lock_table(path: Path) -> Iterator[Path]:
    """The folder with the journal, locked during the block: no other process may write to it or to the table."""
    folder = made_dir(path)
    make_own_folder(folder)
    for written_to in (path.parent, folder):  # also if there will be nothing to write
        remove_leftovers(written_to)
    error = InputError(f"{path}: another process is writing this table; wait for it to end")
    with hold_lock(folder / ".lock", error):
        yield folder


class CaptionJournal:
    """The journal in one folder; only the holder of the table's lock uses it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"

    def known(
        self,
        keys: Sequence[str] = (),
        sources: SourceChecksums | Sequence[int] = (),
        made_with: Mapping[str, Any] | None = None,
        is_as_wanted: IsAsWanted | None = None,
    ) -> Known:
        """What is known about the images `keys` (sorted), whose rows are wanted from `sources` and `made_with`.

        Without `keys`, only the reviews and the renderings. A row that was made with other settings is current too if
        `is_as_wanted` finds that it would be the same.
        """
        known = Known(np.full(len(keys), -1, dtype=np.int64), *np.zeros((2, len(keys)), dtype=np.bool_))
        wanted = parse_json(json.dumps(made_with))
        is_wanted = False
        settings: dict[str, Any] = {}
        following = 0
        for offset, end, values in self._entries():
            known.end = end
            if "row" in values:
                known.last = None
                key = values["row"]["path"]
                if following >= len(keys) or keys[following] != key:  # most rows follow each other
                    following = bisect_left(keys, key)
                if following < len(keys) and keys[following] == key:
                    known.offsets[following] = offset
                    is_current = is_wanted or (is_as_wanted is not None and is_as_wanted(settings, values["row"]))
                    known.is_replaced[following] = values["source"] != sources[following]
                    known.is_current[following] = is_current and not known.is_replaced[following]
                    following += 1
            elif "made_with" in values:
                settings = values["made_with"]
                is_wanted = settings == wanted
            elif "review" in values:
                known.last = None
                known.decided.add(values)
            elif "table" in values:
                known.renderings.append(values["table"])
                known.last = values["table"], values["of"]
        return known

    def rendered_rows(self, *, reviewed: bool = True) -> dict[str, CaptionRow]:
        """The rows of the last rendering by path, with reviews if `reviewed`; rows that came after it are left out."""
        rendered: dict[str, CaptionRow] = {}
        since: dict[str, CaptionRow] = {}
        decided = Reviews()
        for _, _, values in self._entries():
            if "row" in values:
                since[values["row"]["path"]] = row_of_values(values["row"], self.path)
            elif "review" in values and reviewed:
                decided.add(values)
            elif "table" in values:
                rendered |= since
                since.clear()
        latest = decided.latest
        return {path: latest[path].apply(row) if path in latest else row for path, row in rendered.items()}

    def rows_at(self, offsets: Iterable[int]) -> Iterator[CaptionRow]:
        """The rows whose lines begin at `offsets`."""
        with open_regular(self.path) as file:
            for line in _lines_at(file, offsets):
                yield row_of_values(parse_json(line)["row"], self.path)

    @contextlib.contextmanager
    def append(self, end: int, block_rows: int = BLOCK_ROWS) -> Iterator["JournalWriter"]:
        """A writer of lines after `end`, where the rest is cut off; they are on the disk when the block ends.

        `block_rows` lines are written together; a kill loses at most these.
        """
        with errors_named(self.path), open_own(self.path, "r+b" if end else "wb") as file:
            file.truncate(end)
            file.seek(end)
            writer = JournalWriter(file, end, block_rows)
            try:
                yield writer
            finally:
                writer.flush()
        flush_to_disk(self.path)

    def compact(self, known: Known, made_with: Mapping[str, Any]) -> None:
        """Leave out what later lines replaced, if that is more than half, and all but the last renderings.

        Every row of `known` must be current.
        """
        with open_regular(self.path) as old:
            live = sum(map(len, _lines_at(old, known.offsets)))
        if known.end < 2 * live + 2**16:
            return
        # the old one is closed when it is replaced, as Windows demands
        with (
            replace_atomically(self.path) as partial_path,
            open_regular(self.path) as old,
            partial_path.open("wb") as file,
        ):
            writer = JournalWriter(file, 0)
            for rendering in known.renderings[-KEPT_RENDERINGS:]:
                writer.add_table(rendering, of="")
            writer.add_decided(known.decided.all())
            writer.add_settings(made_with)
            for line in _lines_at(old, known.offsets):
                writer.add_line(line)
            if known.last is not None:
                writer.add_table(*known.last)
            writer.flush()

    def _entries(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Where each line begins and ends, and its content; a damaged line is left out, a torn last one too."""
        if not self.path.exists():
            return
        end = 0
        with open_regular(self.path) as file, contextlib.suppress(LongLineError):  # damage too, and not ours
            for line in short_lines(file):
                start, end = end, end + len(line)
                body, found, crc = line.rpartition(_CRC)
                if not line.endswith(b"}\n"):
                    return
                if found and crc == b"%d}\n" % zlib.crc32(body) and (values := _entry_of(body + b"}")) is not None:
                    yield start, end, values


class JournalWriter:
    """Adds lines to a journal, in blocks."""

    def __init__(self, file: IO[bytes], end: int, block_rows: int = BLOCK_ROWS) -> None:
        self._file, self._block_rows = file, block_rows
        self._block: list[bytes] = []
        self._end = end
        if not end:
            self._add({"format": FORMAT, "format_version": FORMAT_VERSION})

    def add_settings(self, made_with: Mapping[str, Any]) -> None:
        """The settings of the rows that follow, which begin a block."""
        self._add({"made_with": made_with})
        self.flush()

    def add_row(self, row: CaptionRow, source: int) -> int:
        """A row and the checksum of what it was made from; returns where its line begins."""
        return self._add({"row": asdict(row), "source": source})

    def add_reviews(self, reviews: Iterable[Review]) -> None:
        """What a person decided, about whichever image has the key in the next run."""
        self.add_decided(map(Decided, reviews))

    def add_decided(self, decided: Iterable[Decided]) -> None:
        """What a person decided about images."""
        for one in decided:
            self._add(one.line())

    def withdraw_reviews(self) -> None:
        """Forget every review until now."""
        self._add({"review": None})

    def add_table(self, rendering: str, of: str) -> None:
        """The SHA-256 of a rendering, and of what it shows."""
        self._add({"table": rendering, "of": of})

    def add_line(self, line: bytes) -> int:
        """A line of another journal; returns where it begins."""
        start = self._end
        self._end += len(line)
        self._block.append(line)
        if len(self._block) == self._block_rows:
            self.flush()
        return start

    def flush(self) -> None:
        """Write what was added."""
        self._file.write(b"".join(self._block))
        self._block.clear()
        self._file.flush()

    def _add(self, values: Mapping[str, Any]) -> int:
        body = json.dumps(values)[:-1].encode()
        return self.add_line(b"%s%s%d}\n" % (body, _CRC, zlib.crc32(body)))


def _entry_of(text: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is not one of those that `JournalWriter` writes."""
    try:
        values: dict[str, Any] = parse_json(text)
        if "row" in values:
            text_of(values["row"]["path"])
            is_known = isinstance(values["source"], int)
        elif "review" in values:
            is_known = is_review(values)
        elif "table" in values:
            is_known = all(isinstance(values[name], str) for name in ("table", "of"))
        else:
            is_known = isinstance(values.get("made_with", {}), dict)
    except WRONG_VALUES:
        return None
    return values if is_known else None


def _lines_at(file: IO[bytes], offsets: Iterable[int]) -> Iterator[bytes]:
    for offset in offsets:
        file.seek(offset)
        yield file.readline()
