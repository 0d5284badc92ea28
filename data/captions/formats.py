"""The layouts in which caption data sets are published: Flickr token file, COCO and Karpathy JSON, CSV and TSV."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from captionmill.data.csv_tables import unguard_formula
from captionmill.data.errors import AnnotationError

FORMATS = (
    "a Flickr token file (name.jpg#0<TAB>caption), COCO captions JSON, Karpathy JSON, "
    "or CSV or TSV with the columns image and caption"
)
_OWN_IMAGE_COLUMN = "path"  # in a table that `caption` wrote
_IMAGE_COLUMNS = ("image", "image_name", _OWN_IMAGE_COLUMN)  # the second as in Flickr30k's results.csv
_CAPTION_COLUMNS = ("caption", "comment")
_REJECTED = ("is_rejected", "is_precanned")  # of annotations of VizWiz
_DELIMITERS = ("\t", ",", "|", ";")
_TOKEN_LINE = re.compile(r"(?P<image>.*?)#\d+[ \t]*\t(?P<caption>.*)")
_START_CHARACTERS = 65_536
_BLOCK_ROWS = 100_000


@dataclass(frozen=True)
class ReferenceRow:
    """One caption as read from the file."""

    where: str
    image: str
    caption: str
    split: str | None = None
    is_rejected: bool = False
    """Whether VizWiz marks the caption as rejected or as one of its stock sentences ("precanned")."""


def read_start(file: TextIO) -> str:
    """The first characters of `file`, enough to recognise its layout; then the file is at its beginning again."""
    start = file.read(_START_CHARACTERS)
    while start.isspace() and (more := file.read(_START_CHARACTERS)):
        start += more
    file.seek(0)
    return start


def read_rows(file: TextIO) -> Iterator[ReferenceRow]:
    """The captions of `file` one by one, in any known layout; AnnotationError if its layout is unknown."""
    start = read_start(file)
    if start.lstrip().startswith(("{", "[")):
        return _read_json(file.read())
    first_lines = start.lstrip("\n").split("\n", 3)[:3]
    if any(_TOKEN_LINE.fullmatch(line) for line in first_lines):
        return _read_token_file(file)
    return _read_table(file, first_lines[0])


def _read_token_file(file: TextIO) -> Iterator[ReferenceRow]:
    for number, line in enumerate((line.removesuffix("\n") for line in file), start=1):
        if match := _TOKEN_LINE.fullmatch(line):
            yield ReferenceRow(f"line {number}", match["image"], match["caption"])
        elif line.strip():
            raise AnnotationError(f"line {number} is not of the form name.jpg#0<TAB>caption: {line[:60]!r}")


def _read_table(file: TextIO, header_line: str) -> Iterator[ReferenceRow]:
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
                    yield ReferenceRow(f"row {number}", image, caption, split)
    except (pd.errors.ParserError, csv.Error) as exc:
        detail = " ".join(str(exc).rpartition("C error: ")[2].split())
        raise AnnotationError(f"damaged table ({detail}); put quotes around captions that contain {mark!r}") from exc


def _split_cells(line: str, mark: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=mark, skipinitialspace=True))
    except csv.Error as exc:
        raise AnnotationError(f"not a table: its first line cannot be read ({exc}); expected {FORMATS}") from exc


def _read_json(text: str) -> Iterator[ReferenceRow]:
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


def _read_coco(images: list[Any], annotations: list[Any]) -> Iterator[ReferenceRow]:
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
        is_rejected = any(bool(annotation.get(name)) for name in _REJECTED)
        caption = _field(annotation, "caption", str, where)
        yield ReferenceRow(where, names[image_id], caption, is_rejected=is_rejected)


def _read_karpathy(images: list[Any]) -> Iterator[ReferenceRow]:
    for index, image in enumerate(images):
        where = f"images[{index}]"
        name, split = _field(image, "filename", str, where), _field(image, "split", str, where)
        folder = image.get("filepath") or ""
        for number, sentence in enumerate(_field(image, "sentences", list, where)):
            caption = _field(sentence, "raw", str, f"{where}.sentences[{number}]")
            yield ReferenceRow(where, f"{folder}/{name}" if folder else name, caption, split)


def _field(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise AnnotationError(f"{where} has no usable {name!r}; download or export the file again")
    return value
