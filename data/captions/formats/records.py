"""Captions in records with named fields: JSON lines, a JSON array of objects, and Parquet.

So are the tables that `caption` writes with `--format jsonl` and `parquet`, and Hugging Face's `metadata.jsonl`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from captionmill.data.captions.formats.rows import ColumnNames, ReferenceRow, find_columns, is_marked
from captionmill.data.errors import AnnotationError
from captionmill.data.foreign import parse_json, short_lines
from captionmill.data.parquet import open_parquet

_BATCH_ROWS = 16_384
_REMEDY = "export it again"


def read_json_lines(file: TextIO, wanted: ColumnNames) -> Iterator[ReferenceRow]:
    """The captions of a file with one JSON object per line; empty lines are passed over."""
    for number, line in enumerate(short_lines(file), 1):
        if line.strip():
            try:
                record = parse_json(line)
            except ValueError as exc:
                raise AnnotationError(f"line {number} is not valid JSON ({exc}); download or export it again") from exc
            yield from _rows_of(record, wanted, f"line {number}")


def read_json_array(entries: Sequence[Any], wanted: ColumnNames) -> Iterator[ReferenceRow]:
    """The captions of the objects in a JSON array."""
    for index, entry in enumerate(entries):
        yield from _rows_of(entry, wanted, f"entry [{index}]")


def read_parquet_file(path: Path, wanted: ColumnNames) -> Iterator[ReferenceRow]:
    """The captions of a Parquet table; AnnotationError at once if it has other columns, later if it is damaged."""
    with open_parquet(path, AnnotationError, _REMEDY) as file:
        header = file.schema_arrow.names
    return _parquet_rows(path, [header[position] for position in find_columns(header, wanted).positions], wanted)


def _parquet_rows(path: Path, names: Sequence[str], wanted: ColumnNames) -> Iterator[ReferenceRow]:
    with open_parquet(path, AnnotationError, _REMEDY) as file:
        batches = file.iter_batches(_BATCH_ROWS, columns=names)
        for number, record in enumerate((record for batch in batches for record in batch.to_pylist()), 1):
            yield from _rows_of(record, wanted, f"row {number}")


def _rows_of(record: Any, wanted: ColumnNames, where: str) -> Iterable[ReferenceRow]:
    """A row for each caption of `record`: one text, or a list of them."""
    if not isinstance(record, dict):
        raise AnnotationError(f"{where} is not an object with an image and a caption; download or export it again")
    values = list(record.values())
    try:
        found = find_columns(list(record), wanted)
    except AnnotationError as exc:
        raise AnnotationError(f"{where} {exc}") from exc
    image, captions = values[found.image], values[found.caption]
    split = None if found.split is None else values[found.split]
    if isinstance(image, dict):  # an image of Hugging Face's datasets: its bytes and its path
        image = image.get("path")
    captions = (captions or [None]) if isinstance(captions, list) else [captions]
    texts = all(caption is None or isinstance(caption, str) for caption in captions)
    if not isinstance(image, str) or not texts or not isinstance(split, str | None):
        raise AnnotationError(f"{where} must have texts for image, caption and split; it has other values")
    is_rejected = any(is_marked(values[position]) for position in found.rejected)
    status = found.status_in(values)
    return [ReferenceRow(where, image, caption, split, is_rejected, status=status) for caption in captions]
