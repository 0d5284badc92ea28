"""Recognises the layout of a file or folder of captions by its content, never by its name, and reads its rows."""

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from captionmill.data.captions.formats.coco import read_images
from captionmill.data.captions.formats.records import read_json_array, read_json_lines, read_parquet_file
from captionmill.data.captions.formats.rows import (
    FORMATS,
    ColumnNames,
    LeftOut,
    ReferenceRow,
    find_columns,
    has_columns,
)
from captionmill.data.captions.formats.tables import find_table, read_caption_table
from captionmill.data.captions.formats.text_files import read_text_files
from captionmill.data.captions.formats.token_file import is_token_line, read_token_file
from captionmill.data.csv_tables import encoding_of
from captionmill.data.errors import AnnotationError
from captionmill.data.foreign import LongLineError, parse_json
from captionmill.data.parquet import PARQUET_START
from captionmill.data.regular import is_folder, open_file_or_pipe, open_regular

_START_CHARACTERS = 65_536


@contextmanager
def open_rows(
    path: Path, columns: ColumnNames, *, left_out: LeftOut, known_keys: Collection[str]
) -> Iterator[Iterator[ReferenceRow]]:
    """The captions in the file or folder `path` one by one; what is not used is counted in `left_out`.

    Raises AnnotationError, which names `path`, if its layout is unknown, for which only its beginning is read, or,
    during the block, if something in it cannot be understood. `known_keys` are the images that text files without an
    image beside them may belong to.
    """
    try:
        if is_folder(path):
            columns.refuse("a folder of .txt files")
            yield read_text_files(path, left_out, known_keys)
        elif _is_parquet(path):
            yield read_parquet_file(path, columns)
        else:
            with open_text(path) as file:
                yield _recognise(file, columns, left_out)
    except AnnotationError as exc:
        raise _named(path, exc) from exc


def check_layout(path: Path, columns: ColumnNames) -> None:
    """Raise the AnnotationError that `open_rows` would raise for the beginning of `path`; a pipe is left unread."""
    with suppress(OSError):  # opening it names the reason
        if path.is_fifo():
            return
    with open_rows(path, columns, left_out=LeftOut(), known_keys=()):
        pass


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file, opened at its beginning; AnnotationError if it is empty or, during the block, cannot be read."""
    try:
        with open_file_or_pipe(path) as content:
            encoding = encoding_of(content.read(2))
            content.seek(0)
            with io.TextIOWrapper(content, encoding) as file:
                if not _read_start(file).strip():
                    raise AnnotationError(f"{path}: the file is empty")
                yield file
    except UnicodeDecodeError as exc:
        raise AnnotationError(f"{path}: not UTF-8 text; save it as UTF-8 and try again") from exc
    except LongLineError as exc:
        raise AnnotationError(f"{path}: {exc}; put each caption on a line") from exc
    except OSError as exc:
        raise AnnotationError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def _read_start(file: TextIO) -> str:
    """The first characters of `file`, enough to recognise its layout; then the file is at its beginning again."""
    start = file.read(_START_CHARACTERS)
    while start.isspace() and (more := file.read(_START_CHARACTERS)):
        start += more
    file.seek(0)
    return start


def _recognise(file: TextIO, columns: ColumnNames, left_out: LeftOut) -> Iterator[ReferenceRow]:
    """The captions in `file`, of which only the beginning is read at once; AnnotationError if its layout is unknown."""
    start = _read_start(file)
    first_lines = start.lstrip().split("\n", 3)
    if start.lstrip().startswith(("{", "[")):
        is_lines = _is_json_lines(first_lines, columns)
        return read_json_lines(file, columns) if is_lines else _read_json(file, columns, left_out)
    is_token_file = any(map(is_token_line, first_lines[:3]))
    try:
        layout = find_table(start, columns)
    except AnnotationError:
        if not is_token_file:
            raise
        layout = None
    if layout is not None:
        return read_caption_table(file, layout)
    if not is_token_file:
        raise AnnotationError(f"unknown format; expected {FORMATS}")
    columns.refuse("a Flickr token file")
    return read_token_file(file)


def _is_json_lines(first_lines: list[str], columns: ColumnNames) -> bool:
    """Whether the first line is an object by itself, with an image and a caption or with more such lines.

    Raises AnnotationError if it is and has no image or no caption.
    """
    try:
        first = parse_json(first_lines[0])
    except ValueError:
        return False
    has_more = len(first_lines) > 1 and first_lines[1].startswith("{")
    if not isinstance(first, dict) or "images" in first or not (has_more or has_columns(list(first), columns)):
        return False
    find_columns(list(first), columns)
    return True


def _read_json(file: TextIO, columns: ColumnNames, left_out: LeftOut) -> Iterator[ReferenceRow]:
    try:
        content = parse_json(file.read())
    except ValueError as exc:  # a number of more than 4,300 digits is a ValueError
        raise AnnotationError(f"not valid JSON ({exc}); download or export the file again") from exc
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        yield from read_json_array(content, columns)
    else:
        yield from read_images(content if isinstance(content, dict) else {}, columns, left_out)


def _named(path: Path, error: AnnotationError) -> AnnotationError:
    start = f"{path}: "
    return AnnotationError(f"{start}{str(error).removeprefix(start)}")


def _is_parquet(path: Path) -> bool:
    with suppress(OSError):  # opening it as text names the reason
        if path.is_file():  # a pipe can be read only once
            with open_regular(path) as file:
                return file.read(len(PARQUET_START)) == PARQUET_START
    return False
