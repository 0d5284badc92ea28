"""Reference captions and splits by image key, from every common layout of caption data sets.

A layout is recognised by content, never by the file's name. Captions keep their text, with three exceptions: HTML
entities are decoded, space at both ends is removed, and accents are combined with their letters (Unicode NFC), so that
a word is the same however it was typed. Tokenizing is the vocabulary's job. "None" and "NA" are valid captions.
"""

import io
import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from captionmill.data.captions.formats import ReferenceRow, read_rows, read_start
from captionmill.data.captions.texts import CaptionTexts
from captionmill.data.captions.words import FIRST_RULE, WORD_RULE, decode_entities, has_words
from captionmill.data.errors import AnnotationError
from captionmill.data.images.keys import image_key, match_forms
from captionmill.data.paths import AnyPath

RESTVAL_CHOICES = ("train", "drop")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
_WITHOUT_TEXT = "without text"
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
    path: AnyPath, *, restval: str = "train", known_keys: Collection[str] = (), word_rule: int = WORD_RULE
) -> Annotations:
    """The captions and splits of one file: Flickr token file, COCO or Karpathy JSON, CSV or TSV.

    Images of the split "restval" (Karpathy's rest of the COCO validation set) go to "train", or are left out if
    `restval` is "drop". Captions without text, without words, and those that VizWiz marks as rejected or precanned are
    left out and counted in a warning each. An image that differs from one of `known_keys` only in its Unicode form gets
    that key. For a model of the first `word_rule` only captions without text are left out, and entities are kept.
    Raises AnnotationError naming the line, row or entry that cannot be understood.
    """
    if restval not in RESTVAL_CHOICES:
        raise AnnotationError(f"restval is {restval!r}; choose one of {', '.join(RESTVAL_CHOICES)}")
    path = Path(path)
    with _opened(path) as file:
        try:
            return _collect(path, read_rows(file), restval, known_keys, word_rule)
        except AnnotationError as exc:
            raise AnnotationError(f"{path}: {exc}") from exc


def read_split_list(path: AnyPath, *, known_keys: Collection[str] = ()) -> list[str]:
    """The image keys of one split in the order of the file, one per line; a repeated key counts once.

    A key that differs from one of `known_keys` only in its Unicode form becomes that key.
    """
    with _opened(Path(path)) as file:
        keys = dict.fromkeys(image_key(line.strip()) for line in file if line.strip())
    forms = match_forms(keys, known_keys)
    return [forms.get(key, key) for key in keys]


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file, opened at its beginning; AnnotationError if it is empty or, during the block, cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as opened:
            file: TextIO = opened if opened.seekable() else io.StringIO(opened.read())  # a pipe
            if not read_start(file).strip():
                raise AnnotationError(f"{path}: the file is empty")
            yield file
    except UnicodeDecodeError as exc:
        raise AnnotationError(f"{path}: not UTF-8 text; save it as UTF-8 and try again") from exc
    except OSError as exc:
        raise AnnotationError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def _collect(
    path: Path, rows: Iterator[ReferenceRow], restval: str, known_keys: Collection[str], word_rule: int
) -> Annotations:
    captions = CaptionTexts()
    splits: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    kept_count = 0
    for row in rows:
        key, caption = image_key(row.image.strip()), _read_caption(row.caption, word_rule)
        if not key:
            raise AnnotationError(f"{row.where} has no image name; fill it in or remove the {row.where.split()[0]}")
        if row.split is not None:
            split = _read_split_name(row, restval)
            if splits.setdefault(key, split) != split:
                raise AnnotationError(f"{row.where} puts {key} in {split}, but it is in {splits[key]} already")
        if reason := _reason_to_leave_out(row, caption, word_rule):
            left_out[reason] += 1
        else:
            captions.add(key, caption)
            kept_count += 1
    total = left_out.total() + kept_count
    for reason, count in left_out.items():
        share = "" if reason == _WITHOUT_TEXT else f" ({count / total:.1%})"
        _logger.warning("%s: left out %d captions %s%s", path, count, reason, share)
    for key in [key for key, split in splits.items() if split == "drop" or key not in captions]:
        captions.drop(key)
        del splits[key]
    if not captions:
        raise AnnotationError("no captions in this file")
    for key, known_key in match_forms(captions, known_keys).items():
        captions.rename(key, known_key)
        if key in splits:
            splits[known_key] = splits.pop(key)
    return Annotations(captions, splits)


def _read_caption(text: str, word_rule: int) -> str:
    decoded = text if word_rule == FIRST_RULE else decode_entities(text)
    return unicodedata.normalize("NFC", decoded.strip())


def _reason_to_leave_out(row: ReferenceRow, caption: str, word_rule: int) -> str:
    """Why the caption is of no use; "" if it is of use."""
    if not caption:
        return _WITHOUT_TEXT
    if word_rule == FIRST_RULE:
        return ""
    if row.is_rejected:
        return "that are marked as rejected or precanned"
    return "" if has_words(caption) else "without words, such as emoji only"


def _read_split_name(row: ReferenceRow, restval: str) -> str:
    name = (row.split or "").strip().lower()
    if name == "restval":
        return restval
    if name not in _SPLIT_NAMES:
        raise AnnotationError(f"{row.where} has the split {row.split!r}; use train, val or test")
    return _SPLIT_NAMES[name]
