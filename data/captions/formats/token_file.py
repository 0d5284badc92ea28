"""Captions in a Flickr token file: one line per caption, name.jpg#0<TAB>caption."""

import re
from collections.abc import Iterator
from typing import TextIO

from captionmill.data.captions.formats.rows import ReferenceRow
from captionmill.data.errors import AnnotationError
from captionmill.data.foreign import short_lines

_LINE = re.compile(r"(?P<image>.*?)#\d+[ \t]*\t(?P<caption>.*)")


def is_token_line(line: str) -> bool:
    """Whether `line` is of the form name.jpg#0<TAB>caption."""
    return _LINE.fullmatch(line) is not None


def read_token_file(file: TextIO) -> Iterator[ReferenceRow]:
    """The captions of `file`; AnnotationError for a line of another form."""
    for number, line in enumerate((line.removesuffix("\n") for line in short_lines(file)), start=1):
        if match := _LINE.fullmatch(line):
            yield ReferenceRow(f"line {number}", match["image"], match["caption"])
        elif line.strip():
            raise AnnotationError(f"line {number} is not of the form name.jpg#0<TAB>caption: {line[:60]!r}")
