"""Reference captions and splits by image key, from every common layout of caption data sets.

A layout is recognised by content, never by the file's name. Captions keep their text, with these exceptions: HTML
entities are decoded, space at both ends is removed, accents are combined with their letters (Unicode NFC), so that a
word is the same however it was typed, and half of a surrogate pair, which is no text, becomes the replacement
character. Tokenizing is the vocabulary's job. "None" and "NA" are valid captions.
"""

import logging
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from captionmill.data.captions.files import Captions, Only, as_caption_files
from captionmill.data.captions.formats.detect import open_rows, open_text
from captionmill.data.captions.formats.rows import LeftOut, ReferenceRow
from captionmill.data.captions.texts import CaptionTexts
from captionmill.data.captions.words import FIRST_RULE, WORD_RULE, decode_entities, has_words
from captionmill.data.errors import AnnotationError
from captionmill.data.images.keys import image_key, match_forms
from captionmill.data.images.lists import find_misread
from captionmill.data.paths import AnyPath
from captionmill.data.tables.edits import edited_paths
from captionmill.data.tables.formats import columns_of
from captionmill.data.tables.journal import made_dir
from captionmill.data.tables.review import is_decision

RESTVAL_CHOICES = ("train", "drop")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_WITHOUT_TEXT = "captions without text"
_REJECTED = "captions that are marked as rejected or precanned"
_FAILED = "images that could not be read"
_NOT_REVIEWED = "captions that nobody reviewed"
_WITHOUT_WORDS = "captions without words, such as emoji only"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotations:
    """The reference captions and the split of each image."""

    captions: Mapping[str, tuple[str, ...]]
    """Image key -> its reference captions in file order; never empty."""
    splits: dict[str, str]
    """Image key -> "train", "val" or "test", for every image with captions; empty if the file names no splits."""

    def keys_of(self, split: str) -> list[str]:
        """The keys of one split, sorted."""
        return sorted(key for key, name in self.splits.items() if name == split)


def read_annotations(
    captions: Captions, *, restval: str = "train", known_keys: Collection[str] = (), word_rule: int = WORD_RULE
) -> Annotations:
    """The captions and splits of one file or several: Flickr token file, COCO or Karpathy JSON, CSV, JSON lines, ...

    Several files are read as one; an image may have captions in each. Images of the split "restval" (Karpathy's rest of
    the COCO validation set) go to "train", or are left out if `restval` is "drop". Captions without text, without
    words, those that VizWiz marks as rejected or precanned, and what belongs to no image, are left out and counted in a
    warning each. An image that differs from one of `known_keys` only in its Unicode form gets that key. For a model of
    the first `word_rule`, of the captions only those without text are left out, and entities are kept.

    A table that `caption` wrote has no splits: where other files have some, its images that are in none of them go to
    "train".

    Raises AnnotationError naming the file and the line, row or entry that cannot be understood, or if the files
    contradict each other: an image in two splits, or in none where others have one.
    """
    if restval not in RESTVAL_CHOICES:
        raise AnnotationError(f"restval is {restval!r}; choose one of {', '.join(RESTVAL_CHOICES)}")
    files = as_caption_files(captions)
    files.require_different()
    collected = _Collected(restval, word_rule, files.only)
    for path in files.paths:
        left_out = LeftOut()
        with open_rows(path, files.columns, left_out=left_out, known_keys=known_keys) as rows:
            edited = _find_edited(path, files.only) if files.only and path.is_file() else ()
            read_count = collected.add(rows, left_out, edited)
        for what, count in left_out.items():
            share = f" ({count / read_count:.1%})" if what in (_REJECTED, _WITHOUT_WORDS) else ""
            if count:
                _logger.warning("%s: left out %d %s%s", path, count, what, share)
    return collected.finish(files.name, known_keys)


def read_split_list(path: AnyPath, *, known_keys: Collection[str] = ()) -> list[str]:
    """The image keys of one split in the order of the file, one per line; a repeated key counts once.

    A key that differs from one of `known_keys` only in its Unicode form becomes that key. Raises AnnotationError if a
    line holds more than the name of one of `known_keys`, such as quotes or a label.
    """
    with open_text(Path(path)) as file:
        names = [line.strip() for line in file]
    known = set(known_keys)
    if found := find_misread(names, lambda name: image_key(name) in known):
        raise AnnotationError(f"{path}: {found}")
    keys = dict.fromkeys(image_key(name) for name in names if name)
    forms = match_forms(keys, known_keys)
    return [forms.get(key, key) for key in keys]


def _find_edited(path: Path, only: Only) -> set[str]:
    """The images whose captions a person has just changed in the file, if `caption` wrote it.

    AnnotationError if its column `status`, in which earlier decisions are, was deleted.
    """
    if made_dir(path).is_dir() and "status" not in columns_of(path):
        raise AnnotationError(
            f"{path}: has no column status, in which `only` {only} finds what a person decided; run `captionmill "
            f"caption` again, which writes it, or leave out `only` {only}"
        )
    return edited_paths(path)


@dataclass
class _Collected:
    """The captions and splits of all files that were read so far."""

    restval: str
    word_rule: int
    only: Only | None = None
    captions: CaptionTexts = field(default_factory=CaptionTexts)
    splits: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    """The image files beside text files of captions."""
    own: set[str] = field(default_factory=set)
    """The images that have captions in a table that `caption` wrote."""

    def add(self, rows: Iterator[ReferenceRow], left_out: LeftOut, edited: Collection[str]) -> int:
        """Add the rows of one file, in which a person has just `edited` these images; how many there are."""
        has_captions = is_own = False
        count = 0
        for row in rows:
            count += 1
            is_own = row.status is not None
            key = image_key(row.image if is_own else row.image.strip())  # ours has each name as it is
            caption = _normalise_caption(row.caption or "", self.word_rule)
            if not key:
                raise AnnotationError(f"{row.where} has no image name; fill it in or remove the {row.where.split()[0]}")
            if row.file is not None and (known := self.files.setdefault(key, row.file)) != row.file:
                raise AnnotationError(
                    f"{row.where} is about {row.file}, but {known} has the same name: give only the folder above both"
                )
            if row.split is not None:
                split = _read_split_name(row, self.restval)
                if self.splits.setdefault(key, split) != split:
                    raise AnnotationError(f"{row.where} puts {key} in {split}, but it is in {self.splits[key]} already")
            if reason := _reason_to_leave_out(row, caption, self.word_rule):
                left_out[reason] += 1
            elif self.only and is_own and not is_decision(row.status or "") and row.image not in edited:
                left_out[_NOT_REVIEWED] += 1
            else:
                self.captions.add(key, caption)
                has_captions = True
                self.own.update([key] if is_own else ())
        if not has_captions and not (self.only and is_own):
            raise AnnotationError(f"no captions in this file{_name_left_out(left_out)}")
        return count

    def finish(self, name: str, known_keys: Collection[str]) -> Annotations:
        """The captions and splits of all files together."""
        captions, splits = self.captions, self.splits
        if self.only and not self.own:
            raise AnnotationError(
                f"{name}: no caption that a person corrected or accepted, in a table that `captionmill caption` wrote, "
                f"with its column status; review some, or leave out `only` {self.only}"
            )
        if splits:
            splits |= dict.fromkeys(self.own - splits.keys(), "train")
        for key in [key for key, split in splits.items() if split == "drop" or key not in captions]:
            captions.drop(key)
            del splits[key]
        if not captions:
            raise AnnotationError(f"{name}: no captions in this file")
        without = next((key for key in captions if key not in splits), None) if splits else None
        if without is not None:
            count = sum(key not in splits for key in captions)
            raise AnnotationError(
                f"{name}: {count} images have no split, {without} first, but others have one: give a split to all of "
                "them, or to none"
            )
        for key, known_key in match_forms(captions, known_keys).items():
            captions.rename(key, known_key)
            if key in splits:
                splits[known_key] = splits.pop(key)
        return Annotations(captions, splits)


def _name_left_out(left_out: LeftOut) -> str:
    """What a file without captions had instead: ": left out 3 captions without words, such as emoji only"."""
    named = [f"{left_out[what]} {what}" for what in (_REJECTED, _WITHOUT_WORDS) if left_out[what]]
    return f": left out {'; '.join(named)}" if named else ""


def _normalise_caption(text: str, word_rule: int) -> str:
    decoded = text if word_rule == FIRST_RULE else decode_entities(text)
    return unicodedata.normalize("NFC", _HALF_PAIR.sub("\ufffd", decoded).strip())


def _reason_to_leave_out(row: ReferenceRow, caption: str, word_rule: int) -> str:
    """Why the caption is of no use; "" if it is of use."""
    if not caption:
        return _FAILED if row.status == "failed" else _WITHOUT_TEXT
    if word_rule == FIRST_RULE:
        return ""
    if row.is_rejected:
        return _REJECTED
    return "" if has_words(caption) else _WITHOUT_WORDS


def _read_split_name(row: ReferenceRow, restval: str) -> str:
    name = (row.split or "").strip().lower()
    if name == "restval":
        return restval
    if name not in _SPLIT_NAMES:
        raise AnnotationError(f"{row.where} has the split {row.split!r}; use train, val or test")
    return _SPLIT_NAMES[name]
