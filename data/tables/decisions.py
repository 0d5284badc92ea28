"""Decisions about captions, from a file that a page of them saves or from another table, merged into their table."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from captionmill.data.csv_tables import unguard_formula
from captionmill.data.errors import InputError
from captionmill.data.files import digest_of_file, replace_atomically
from captionmill.data.paths import AnyPath
from captionmill.data.tables.cells import CsvLayout, read_saved_cells
from captionmill.data.tables.edits import read_edited, take_edits
from captionmill.data.tables.formats import is_caption_table, layout_of, read_captions, write_captions
from captionmill.data.tables.journal import CaptionJournal, lock_table
from captionmill.data.tables.older import convert_older
from captionmill.data.tables.review import DECISIONS, Decision, Review, is_decision
from captionmill.data.tables.rows import CaptionRow, tidy

COLUMNS = ("path", "decision", "caption", "shown")


@dataclass(frozen=True)
class Conflict:
    """A decision that is not merged."""

    path: str
    reason: str


@dataclass(frozen=True)
class DecisionSummary:
    """What a file of decisions does to a table; `applied` + `as_before` + the number of `conflicts` is all of them."""

    corrected: int
    accepted: int
    later: int
    as_before: int
    """Decisions that the table shows already."""
    conflicts: tuple[Conflict, ...]
    taken_back: int = 0
    """Captions that are the model's again, as if nobody had decided about them."""


def apply_decisions(decisions: AnyPath, table: AnyPath, *, dry_run: bool = False) -> DecisionSummary:
    """Merge the file `decisions` into the table of captions `table`; with `dry_run` only find out what it would do.

    `decisions` may also be another table of captions: then what a person decided in it is merged.

    A decision about a caption that the table no longer has, or about an image that it does not have, is a conflict: the
    table keeps what it has. One from another table is a conflict if a person decided otherwise here. Captions that a
    person changed in the table itself count as corrections. Raises InputError if one of the files cannot be read or is
    something else, an image has two decisions, or another process writes to the table.
    """
    decisions, table = Path(decisions), Path(table)
    decided = _read_decisions(decisions)
    if not table.exists() or not is_caption_table(table):
        raise InputError(f"{table}: not a table of captions; `captionmill caption` makes one")
    if table.samefile(decisions):
        raise InputError(f"{table}: cannot be merged into itself")
    with lock_table(table) as folder:
        journal = CaptionJournal(folder)
        convert_older(table, journal)
        known = journal.known()
        edits = {review.path: review for review in take_edits(table, journal, known, keep_copy=not dry_run)}
        shown_now = {row.path: row for row in read_captions(table)}
        person = known.reviews | edits  # some may be in the journal only: a run took them from the table, and failed
        rows = {path: person[path].apply(row) if path in person else row for path, row in shown_now.items()}
        made = journal.rendered_rows(reviewed=False)
        reviews: dict[str, Review] = {}
        decided_rows: dict[str, CaptionRow] = {}
        conflicts = []
        as_before = 0
        for review, shown in decided:
            row = rows.get(review.path)
            if row is None:
                conflicts.append(Conflict(review.path, "the table has no such image"))
                continue
            after = review.apply(made.get(review.path, row) if review.decision == "undecided" else row)
            is_kept = (
                row.status == "corrected" if review.decision == "later" else shown is None and is_decision(row.status)
            )
            is_decided = review.path in person and person[review.path].decision != "undecided"
            if after == row or (review.decision == "undecided" and not is_decided):
                as_before += 1
            elif is_kept:
                conflicts.append(Conflict(review.path, f"the table has a person's caption already: {row.caption!r}"))
            elif shown not in (None, row.caption):
                conflicts.append(Conflict(review.path, f"decided about {shown!r}, but the table says {row.caption!r}"))
            else:
                reviews[review.path], decided_rows[review.path] = review, after
        if not dry_run and (reviews or rows != shown_now):
            with journal.append(known.end) as writer:
                writer.add_reviews([*edits.values(), *reviews.values()])
            _render(table, rows | decided_rows, journal)
    counts = Counter(review.decision for review in reviews.values())
    return DecisionSummary(
        counts["corrected"], counts["accepted"], counts["later"], as_before, tuple(conflicts), counts["undecided"]
    )


def _render(table: Path, rows: Mapping[str, CaptionRow], journal: CaptionJournal) -> None:
    """Replace the table by one of `rows`, of the same format."""
    table_format, with_alternatives = layout_of(table)
    with replace_atomically(table) as partial_path:
        write_captions(partial_path, rows.values(), table_format, with_alternatives=with_alternatives)
        with journal.append(journal.path.stat().st_size) as writer:
            writer.add_table(digest_of_file(partial_path), of="")


def _read_decisions(path: Path) -> list[tuple[Review, str | None]]:
    """Each decision, with the caption that was shown to whoever made it; None in a table, which does not show it."""
    decided: dict[str, tuple[Review, str | None]] = {}
    try:
        if is_caption_table(path) and path.stat().st_size > 0:
            for row in read_edited(path):
                if is_decision(row.status) and (caption := tidy(row.caption)):  # an emptied one does not count
                    review = Review(row.path, row.status, caption)
                    if decided.setdefault(row.path, (review, None)) != (review, None):
                        raise InputError(f"{path}: a second decision about {row.path}")
            return list(decided.values())
        layout = CsvLayout.of(path)
        if not set(COLUMNS).issubset(layout.columns):
            raise InputError(f"{path}: not a file of decisions; it needs the columns {', '.join(COLUMNS)}")
        for line, cells in read_saved_cells(path, layout, "decisions", needed=("path", "decision")):
            key, typed, caption, shown = (unguard_formula(cells[name]) for name in COLUMNS)
            caption, decision = tidy(caption), typed.strip().lower()
            is_empty = not (caption if decision == "corrected" else shown) and decision != "later"
            if decision not in DECISIONS or is_empty:
                raise InputError(f"{path}: line {line}: {typed} {caption!r} is no decision")
            if key in decided:
                raise InputError(f"{path}: line {line}: a second decision about {key}")
            decided[key] = (
                Review(key, cast(Decision, decision), caption if decision == "corrected" else shown),
                shown,
            )
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror}") from exc
    return list(decided.values())
