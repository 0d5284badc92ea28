"""Reference captions and splits by image key, from every layout in which caption data sets are published.

A layout is recognised by content, never by the file's name. Captions keep their text apart from space at both ends, and
apart from accents, which are put together with their letters (Unicode's NFC), so that a word is one word however it was
typed: tokenizing is the vocabulary's job, and a caption that reads "None" or "NA" is a caption.
"""

import csv
import hashlib
import io
import json
import logging
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from captionmill.data.caption_texts import CaptionTexts
from captionmill.data.errors import AnnotationError
from captionmill.data.formulas import unguard_formula
from captionmill.data.image_files import image_key
from captionmill.data.name_forms import match_forms

FORMATS = (
    "a Flickr token file (name.jpg#0<TAB>caption), COCO captions JSON, Karpathy JSON, "
    "or CSV or TSV with the columns image and caption"
)
RESTVAL_CHOICES = ("train", "drop")

_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
_OWN_IMAGE_COLUMN = "path"  # in a table that `caption` wrote
_IMAGE_COLUMNS = ("image", "image_name", _OWN_IMAGE_COLUMN)  # the second as in Flickr30k's results.csv
_CAPTION_COLUMNS = ("caption", "comment")
_DELIMITERS = ("\t", ",", "|", ";")
_TOKEN_LINE = re.compile(r"(?P<image>.*?)#\d+[ \t]*\t(?P<caption>.*)")

_START_CHARACTERS = 65_536
_BLOCK_ROWS = 100_000

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotations:
    """What people wrote about each image, and what each image is for."""

    captions: Mapping[str, tuple[str, ...]]
    """Image key -> its reference captions in file order; never empty."""
    splits: dict[str, str]
    """Image key -> "train", "val" or "test", for every image with captions; empty when the file names no splits."""

    def keys_of(self, split: str) -> list[str]:
        """The keys of one split, sorted."""
        return sorted(key for key, name in self.splits.items() if name == split)


@dataclass(frozen=True)
class _Row:
    """One caption as the file has it."""

    where: str
    image: str
    caption: str
    split: str | None = None


def read_annotations(path: Path, *, restval: str = "train", known_keys: Collection[str] = ()) -> Annotations:
    """The captions and splits of one file: Flickr token file, COCO or Karpathy JSON, CSV or TSV.

    Images of the split "restval" (Karpathy's rest of the COCO validation set) go to "train", or are left out when
    `restval` is "drop". Captions without text are left out and counted in a warning. An image that one of `known_keys`
    names in another form of Unicode gets that key. Raises AnnotationError naming the line, row or entry that cannot be
    understood.
    """
    if restval not in RESTVAL_CHOICES:
        raise AnnotationError(f"restval is {restval!r}; choose one of {', '.join(RESTVAL_CHOICES)}")
    with _opened(path) as file:
        try:
            return _collect(path, _read_rows(file), restval, known_keys)
        except AnnotationError as exc:
            raise AnnotationError(f"{path}: {exc}") from exc


def read_split_list(path: Path, *, known_keys: Collection[str] = ()) -> list[str]:
    """The image keys of one split in the order of the file, one a line; a repeated key counts once.

    One that is one of `known_keys` in another form of Unicode becomes that key.
    """
    with _opened(path) as file:
        keys = dict.fromkeys(image_key(line.strip()) for line in file if line.strip())
    forms = match_forms(keys, known_keys)
    return [forms.get(key, key) for key in keys]


def split_by_image(
    keys: Iterable[str], *, seed: int, val_fraction: float = 0.05, test_fraction: float = 0.05
) -> dict[str, str]:
    """Each key's split, drawn by image so that no image has captions in two splits.

    Each split has at least one image, and of ten images and more two: the CIDEr-D of one alone is always 0.

    The order of drawing is that of SHA-256 over seed and key: the same keys and seed give the same splits, on every
    machine and in whatever order the keys come. Raises AnnotationError when there are too few images.
    """
    unique_keys = sorted(set(keys))
    if len(unique_keys) < 3:
        raise AnnotationError(f"cannot split {len(unique_keys)} images; 3 or more with captions are needed")
    least = 2 if len(unique_keys) >= 10 else 1
    val_count = max(least, round(len(unique_keys) * val_fraction))
    held_out_count = val_count + max(least, round(len(unique_keys) * test_fraction))
    if held_out_count >= len(unique_keys):
        raise AnnotationError(
            f"val fraction {val_fraction} and test fraction {test_fraction} leave none of {len(unique_keys)} images to "
            "train on; choose smaller fractions"
        )
    drawn = sorted(unique_keys, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest())
    val, test = set(drawn[:val_count]), set(drawn[val_count:held_out_count])
    return {key: "val" if key in val else "test" if key in test else "train" for key in unique_keys}


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file at its beginning; AnnotationError if it is empty, or, while the block lasts, cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as opened:
            file: TextIO = opened if opened.seekable() else io.StringIO(opened.read())  # of a pipe
            if not _read_start(file).strip():
                raise AnnotationError(f"{path}: the file is empty")
            yield file
    except UnicodeDecodeError as exc:
        raise AnnotationError(f"{path}: not UTF-8 text; save it as UTF-8 and try again") from exc
    except OSError as exc:
        raise AnnotationError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def _read_start(file: TextIO) -> str:
    """The first characters of `file`, enough to tell its kind; the file is at its beginning again after that."""
    start = file.read(_START_CHARACTERS)
    while start.isspace() and (more := file.read(_START_CHARACTERS)):
        start += more
    file.seek(0)
    return start


def _read_rows(file: TextIO) -> Iterator[_Row]:
    start = _read_start(file)
    if start.lstrip().startswith(("{", "[")):
        return _read_json(file.read())
    first_lines = start.lstrip("\n").split("\n", 3)[:3]
    if any(_TOKEN_LINE.fullmatch(line) for line in first_lines):
        return _read_token_file(file)
    return _read_table(file, first_lines[0])


def _collect(path: Path, rows: Iterator[_Row], restval: str, known_keys: Collection[str]) -> Annotations:
    captions = CaptionTexts()
    splits: dict[str, str] = {}
    empty_count = 0
    for row in rows:
        key, caption = image_key(row.image.strip()), unicodedata.normalize("NFC", row.caption.strip())
        if not key:
            raise AnnotationError(f"{row.where} has no image name; fill it in or remove the {row.where.split()[0]}")
        if row.split is not None:
            split = _read_split_name(row, restval)
            if splits.setdefault(key, split) != split:
                raise AnnotationError(f"{row.where} puts {key} in {split}, but it is in {splits[key]} already")
        if caption:
            captions.add(key, caption)
        else:
            empty_count += 1
    if empty_count:
        _logger.warning("%s: left out %d captions without text", path, empty_count)
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


def _read_split_name(row: _Row, restval: str) -> str:
    name = (row.split or "").strip().lower()
    if name == "restval":
        return restval
    if name not in _SPLIT_NAMES:
        raise AnnotationError(f"{row.where} has the split {row.split!r}; use train, val or test")
    return _SPLIT_NAMES[name]


def _read_token_file(file: TextIO) -> Iterator[_Row]:
    for number, line in enumerate((line.removesuffix("\n") for line in file), start=1):
        if match := _TOKEN_LINE.fullmatch(line):
            yield _Row(f"line {number}", match["image"], match["caption"])
        elif line.strip():
            raise AnnotationError(f"line {number} is not of the form name.jpg#0<TAB>caption: {line[:60]!r}")


def _read_table(file: TextIO, header_line: str) -> Iterator[_Row]:
    import pandas as pd

    headers = {mark: [name.strip().lower() for name in _split_cells(header_line, mark)] for mark in _DELIMITERS}
    mark = max(_DELIMITERS, key=lambda mark: len(headers[mark]))
    header = headers[mark]
    if len(header) < 2:
        raise AnnotationError(f"unknown format; expected {FORMATS}")
    image_column = next((header.index(name) for name in _IMAGE_COLUMNS if name in header), None)
    caption_column = next((header.index(name) for name in _CAPTION_COLUMNS if name in header), None)
    if image_column is None or caption_column is None:
        found = ", ".join(header)[:100]
        raise AnnotationError(f"needs the columns image and caption, but has: {found}; expected {FORMATS}")
    split_column = header.index("split") if "split" in header else None
    number = 0
    try:
        blocks = pd.read_csv(
            file,
            chunksize=_BLOCK_ROWS,
            sep=mark,
            header=None,  # with a header, pandas silently drops or shifts the cells of a row that is too long
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            skipinitialspace=True,
            quoting=csv.QUOTE_NONE if mark == "|" else csv.QUOTE_MINIMAL,  # results.csv has bare quotes in captions
        )
        for block in blocks:
            for cells in block.itertuples(index=False, name=None):
                number += 1
                if number > 1 and any(map(str.strip, cells)):  # the first is the header; spreadsheets leave empty rows
                    split = None if split_column is None else cells[split_column]
                    image, caption = cells[image_column], cells[caption_column]
                    if header[image_column] == _OWN_IMAGE_COLUMN:
                        image, caption = unguard_formula(image), unguard_formula(caption)
                    yield _Row(f"row {number}", image, caption, split)
    except (pd.errors.ParserError, csv.Error) as exc:
        detail = " ".join(str(exc).rpartition("C error: ")[2].split())
        raise AnnotationError(f"damaged table ({detail}); put quotes around captions that contain {mark!r}") from exc


def _split_cells(line: str, mark: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=mark, skipinitialspace=True))
    except csv.Error as exc:
        raise AnnotationError(f"no table: its first line cannot be read ({exc}); expected {FORMATS}") from exc


def _read_json(text: str) -> Iterator[_Row]:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as exc:
        raise AnnotationError(f"not valid JSON ({exc}); download or export the file again") from exc
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and "annotations" in content:
        return _read_coco(images, _field(content, "annotations", list, "the file"))
    if isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images):
        return _read_karpathy(images)
    raise AnnotationError(
        f"unknown JSON, without images and annotations (COCO) or sentences (Karpathy); expected {FORMATS}"
    )


def _read_coco(images: list[Any], annotations: list[Any]) -> Iterator[_Row]:
    names: dict[int | str, str] = {}
    for index, image in enumerate(images):
        where = f"images[{index}]"
        image_id, name = _field(image, "id", (int, str), where), _field(image, "file_name", str, where)
        if names.setdefault(image_id, name) != name:
            raise AnnotationError(f"{where} has the id {image_id} of {names[image_id]}; every image needs its own")
    for index, annotation in enumerate(annotations):
        where = f"annotations[{index}]"
        image_id = _field(annotation, "image_id", (int, str), where)
        if image_id not in names:
            raise AnnotationError(f"{where} is about image {image_id}, which is not among the images of the file")
        yield _Row(where, names[image_id], _field(annotation, "caption", str, where))


def _read_karpathy(images: list[Any]) -> Iterator[_Row]:
    for index, image in enumerate(images):
        where = f"images[{index}]"
        name, split = _field(image, "filename", str, where), _field(image, "split", str, where)
        folder = image.get("filepath") or ""
        for number, sentence in enumerate(_field(image, "sentences", list, where)):
            caption = _field(sentence, "raw", str, f"{where}.sentences[{number}]")
            yield _Row(where, f"{folder}/{name}" if folder else name, caption, split)


def _field(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise AnnotationError(f"{where} has no usable {name!r}; download or export the file again")
    return value
