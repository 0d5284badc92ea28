"""What a person changed in a table of captions, in an editor or a spreadsheet, since it was written."""

import filecmp
import functools
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.files import digest_of_file, fit_name, replace_atomically
from captionmill.data.tables.formats import has_other_columns, is_caption_table, read_captions
from captionmill.data.tables.journal import CaptionJournal, Known, made_dir
from captionmill.data.tables.review import Review, is_decision
from captionmill.data.tables.rows import CaptionRow, tidy

_LEAST_ROUNDING = 6e-4  # of a confidence

_logger = logging.getLogger(__name__)


def take_edits(
    path: Path, journal: CaptionJournal, known: Known, others: Iterable[Review] = (), *, keep_copy: bool = True
) -> list[Review]:
    """The reviews that the table at `path` has and its journal does not, and `others`, made elsewhere.

    A caption that differs from the one written is a correction, whatever else a spreadsheet did to the file: rows may
    be sorted or deleted, separators and quotes changed. An emptied caption is no correction. What cannot be kept so, as
    a column or a row that somebody added, is kept in a copy of the table, with a warning, if `keep_copy`. Raises
    InputError if an image has two different captions.
    """
    reviews: dict[str, Review] = {}
    is_more = False
    if digest_of_file(path) not in ("", *known.renderings):
        written = {_as_written(key): row for key, row in journal.rendered_rows().items()}
        rounding = functools.cache(functools.partial(_rounding_of, path))
        is_table = is_caption_table(path) and path.stat().st_size > 0
        is_more = path.stat().st_size > 0 and (not is_table or has_other_columns(path))
        for row in read_captions(path) if is_table else ():
            before = written.get(row.path)
            if review := _review_of(row, before, rounding):
                _add(reviews, review, path)
            else:
                is_more = is_more or not _is_same(row, before)
    for review in others:
        if known.reviews.get(review.path) != review:
            _add(reviews, review, path, where=", in the table or in files beside it")
    if is_more and keep_copy:
        _keep_copy(path)
    return list(reviews.values())


def edited_paths(path: Path) -> set[str]:
    """The images, as the table at `path` names them, whose captions a person changed in it; nothing is written."""
    return set(_edits_of(path))


def read_edited(path: Path) -> Iterator[CaptionRow]:
    """The rows of the table at `path`, also with the status of what a person changed in it; nothing is written.

    Raises InputError as `read_captions` and `take_edits` do.
    """
    edits = _edits_of(path) if path.is_file() else {}
    for row in read_captions(path):
        yield replace(edits[row.path].apply(row), path=row.path) if row.path in edits else row


def _edits_of(path: Path) -> dict[str, Review]:
    """What a person changed in the table, by the images as it names them."""
    journal = CaptionJournal(made_dir(path))
    if not journal.path.exists():
        return {}
    known = journal.known()
    return {_as_written(review.path): review for review in take_edits(path, journal, known, keep_copy=False)}


def _add(reviews: dict[str, Review], review: Review, path: Path, where: str = "") -> None:
    other = reviews.setdefault(review.path, review)
    if other != review:
        raise InputError(
            f"{path}: {review.path} was corrected twice, as {other.caption!r} and as {review.caption!r}{where}; "
            "leave one of them"
        )


def _review_of(row: CaptionRow, before: CaptionRow | None, rounding: Callable[[], float]) -> Review | None:
    """What a person decided, if `row` was written as `before`; confidences may differ by `rounding`."""
    caption = tidy(row.caption)
    if before is None:
        return Review(row.path, row.status, caption) if caption and is_decision(row.status) else None
    if not caption:
        return None
    if caption != tidy(before.caption):
        return None if _is_of_another_run(row, before, rounding) else Review(before.path, "corrected", caption)
    if row.status == "accepted" and before.status == "ok":
        return Review(before.path, "accepted", caption)
    return None


def _is_of_another_run(row: CaptionRow, before: CaptionRow, rounding: Callable[[], float]) -> bool:
    """Whether a model made `row`: a person changes a caption and leaves its confidence as it is, or empties it."""
    if row.status != "ok" or row.confidence is None:
        return False
    if before.confidence is None:
        return True
    difference = abs(row.confidence - before.confidence)
    return difference > _LEAST_ROUNDING and difference > rounding()


def _rounding_of(path: Path) -> float:
    """How far confidences in the table may be from those written: spreadsheets save only the digits that they show."""
    shown = (Decimal(str(round(row.confidence, 6))) for row in read_captions(path) if row.confidence is not None)
    places = max((-int(number.normalize().as_tuple().exponent) for number in shown), default=0)
    return 0.5 * 10.0 ** -max(places, 0) + 1e-4


def _as_written(key: str) -> str:
    """A path as a table shows it."""
    return key.encode("utf-8", "backslashreplace").decode()


def _is_same(row: CaptionRow, before: CaptionRow | None) -> bool:
    """Whether nothing is lost if `row` becomes `before`; an emptied caption is nothing."""
    return before is not None and row.caption.split() in ([], before.caption.split())


def _keep_copy(path: Path) -> None:
    """Copy the table to a free name beside it, unless it was already."""
    endings = (".edited" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    paths = (path.with_name(fit_name(path.stem, ending + path.suffix)) for ending in endings)
    kept = next(other for other in paths if not other.exists() or filecmp.cmp(path, other, shallow=False))
    if not kept.exists():  # else an interrupted run kept it already
        with replace_atomically(kept) as partial_path:
            shutil.copy2(path, partial_path)
    _logger.warning("%s: has more changes than corrected captions; the changed table is kept as %s", path, kept.name)
