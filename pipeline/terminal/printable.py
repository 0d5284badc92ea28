"""A terminal gets no control characters from names and texts of files: they could move its cursor, or worse.

Only what is written to a terminal is changed; files and pipes get the names as they are.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

_KEPT = frozenset("\n\t")
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # characters that reorder what is behind them
_ESCAPES = {
    number: f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
    for number in (*range(0x20), *range(0x7F, 0xA0), *_DIRECTIONS)
    if chr(number) not in _KEPT
}


def printable(text: str) -> str:
    """`text` with each control character but tabs and line feeds as Python writes it, such as \\x1b."""
    return text.translate(_ESCAPES)


class StreamAbove(io.TextIOBase):
    """A text stream that writes to the one below it, `stream`, what a subclass makes of each text."""

    encoding = "utf-8"
    errors: str | None = "strict"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def buffer(self) -> BinaryIO:
        """The bytes of the stream below, for a table that is written to stdout."""
        return self._stream.buffer

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        if not self._stream.closed:  # as it may be when this object ends; Python 3.14 would report the error
            self._stream.flush()


class PrintableStream(StreamAbove):
    """A terminal's text stream that gets only printable text, and the carriage returns that redraw a line."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.encoding, self.errors = stream.encoding, stream.errors

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        line = text.strip("\r")
        start = len(text) - len(text.lstrip("\r"))
        end = start + len(line)
        self._stream.write(text[:start] + printable(line) + text[end:])
        return len(text)


@contextmanager
def printable_terminals() -> Iterator[None]:
    """During the block, stdout and stderr get only printable text where they are terminals."""
    stdout, stderr = sys.stdout, sys.stderr
    if stdout.isatty():
        sys.stdout = PrintableStream(stdout)
    if stderr.isatty():
        sys.stderr = PrintableStream(stderr)
    try:
        yield
    finally:
        if isinstance(sys.stdout, PrintableStream):  # not if the traceback of a bug will be JSON
            sys.stdout = stdout
        if isinstance(sys.stderr, PrintableStream):
            sys.stderr = stderr
