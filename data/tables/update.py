"""Brings a table of captions up to date: rows that are up to date are not made again, and a person's are never lost.

Rows go into the journal first, in blocks. When all are there, the table is written beside the old one and replaces it,
so a table is whole at every moment, and the next run resumes what an interrupted one left.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captionmill.data.errors import InputError
from captionmill.data.files import digest_of_file, replace_atomically, stamp_of
from captionmill.data.tables.edits import take_edits
from captionmill.data.tables.formats import TableFormat, write_captions
from captionmill.data.tables.journal import BLOCK_ROWS, CaptionJournal, IsAsWanted, Known, SourceChecksums, lock_table
from captionmill.data.tables.older import convert_older
from captionmill.data.tables.renames import HashesOf, MatchedReviews, match_reviews, unknown_hashes
from captionmill.data.tables.review import Review, is_decision
from captionmill.data.tables.rows import CaptionRow


@dataclass(frozen=True)
class WantedTable:
    """What a table must show."""

    keys: Sequence[str]
    """The images, sorted, one row each."""
    sources: SourceChecksums
    """[N], checksums of what each row is made from, including its key."""
    made_with: Mapping[str, Any]
    """The settings that all rows are made with, as JSON."""
    format: TableFormat = "csv"
    with_alternatives: bool = False
    """Whether CSV has that column."""
    is_as_wanted: IsAsWanted | None = None
    """Which rows of other settings, such as those of an older version, are kept."""
    contents_of: HashesOf = unknown_hashes
    """The hash of the content of each image, by which those that were renamed are recognised."""
    features_of: HashesOf = unknown_hashes
    """The hash of the features of each image."""

    def digest(self) -> str:
        """SHA-256 of all this."""
        digest = hashlib.sha256(json.dumps([self.made_with, self.format, self.with_alternatives]).encode())
        for key in self.keys:
            digest.update(key.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(self.sources.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TableSummary:
    """What an update of a table did."""

    made: int
    """Rows that were made now."""
    corrections: int
    """Captions that a person had changed in the table since it was written."""
    reviewed: int
    """Rows with a caption that a person wrote or accepted."""
    renamed: int = 0
    """Decisions of a person that follow an image which has another key now."""
    absent: int = 0
    """Decisions of a person on images that have no row now; they are kept."""
    changed: tuple[str, ...] = ()
    """Keys of images with a caption that a person wrote or accepted before the image changed."""


def update_captions(
    path: Path,
    wanted: WantedTable,
    make_rows: Callable[[Sequence[str]], Iterable[CaptionRow]],
    *,
    corrections: Sequence[Review] = (),
    keep_edited: bool = True,
    withdraw_reviews: bool = False,
    block_rows: int = BLOCK_ROWS,
) -> TableSummary:
    """Make `path` the table that is `wanted`.

    An earlier row is kept if its source and settings are the wanted ones. `make_rows` gets the keys of the others and
    returns their rows in that order. `block_rows` rows are written together.

    Captions that were changed in the table since it was written, and `corrections` made elsewhere, are a person's from
    then on, whatever is wanted, and stay with an image that was renamed; `withdraw_reviews` forgets all of them. If
    `keep_edited`, a table with more changes than that is kept under another name too, with a warning.

    Raises InputError if another process writes to the table, it is changed meanwhile, or an image has two corrections.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_table(path) as folder:
        journal = CaptionJournal(folder)
        convert_older(path, journal)
        stamp = stamp_of(path)
        known = journal.known(wanted.keys, wanted.sources, wanted.made_with, wanted.is_as_wanted)
        edits = take_edits(path, journal, known, corrections, keep_copy=keep_edited)
        if edits or withdraw_reviews:
            with journal.append(known.end) as writer:
                writer.add_reviews(edits)
                if withdraw_reviews:
                    writer.withdraw_reviews()
            known = journal.known(wanted.keys, wanted.sources, wanted.made_with, wanted.is_as_wanted)
        replaced = {wanted.keys[position] for position in np.flatnonzero(known.is_replaced).tolist()}
        matched = match_reviews(known.decided, wanted.keys, wanted.contents_of, wanted.features_of, replaced=replaced)
        made = _make_missing(journal, known, wanted, make_rows, block_rows=block_rows)
        if made or matched.news or known.last != (digest_of_file(path), wanted.digest()):
            _render_if_same(path, journal, known, wanted, matched, stamp=stamp)
            journal.compact(known, wanted.made_with)
    reviewed = {path for path, review in matched.reviews.items() if is_decision(review.decision)}
    return TableSummary(
        made,
        corrections=len(edits),
        reviewed=len(reviewed),
        renamed=len(matched.renamed),
        absent=matched.absent,
        changed=tuple(matched.changed),
    )


def _make_missing(
    journal: CaptionJournal,
    known: Known,
    wanted: WantedTable,
    make_rows: Callable[[Sequence[str]], Iterable[CaptionRow]],
    *,
    block_rows: int,
) -> int:
    """Add the rows that are missing to the journal and to `known`; their number."""
    missing = [position for position, is_current in enumerate(known.is_current) if not is_current]
    if not missing:
        return 0
    rows = make_rows([wanted.keys[position] for position in missing])
    with journal.append(known.end, block_rows) as writer:
        writer.add_settings(wanted.made_with)
        for position, row in zip(missing, rows, strict=True):
            if row.path != wanted.keys[position]:
                raise ValueError(f"the row of {row.path} came for {wanted.keys[position]}")
            known.offsets[position] = writer.add_row(row, int(wanted.sources[position]))
            known.is_current[position] = True
    known.end = journal.path.stat().st_size
    return len(missing)


def _render_if_same(
    path: Path,
    journal: CaptionJournal,
    known: Known,
    wanted: WantedTable,
    matched: MatchedReviews,
    *,
    stamp: tuple[int, ...] | None,
) -> None:
    """Replace the table, if it is still the one that had `stamp`."""
    reviews = matched.reviews
    rows = (reviews[row.path].apply(row) if row.path in reviews else row for row in journal.rows_at(known.offsets))
    with replace_atomically(path) as partial_path:
        write_captions(partial_path, rows, wanted.format, with_alternatives=wanted.with_alternatives)
        rendering = digest_of_file(partial_path)
        if stamp_of(path) != stamp:
            raise InputError(f"{path}: was changed while the new table was made from it; run again")
        with journal.append(known.end) as writer:  # first, so that no table of ours is taken for an edited one
            writer.add_decided(matched.news)
            writer.add_table(rendering, wanted.digest())
    known.last = rendering, wanted.digest()
    known.renderings.append(rendering)
    known.end = journal.path.stat().st_size
