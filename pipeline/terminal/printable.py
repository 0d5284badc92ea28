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


class PrintableStream(io.TextIOBase):
    """A terminal's text stream that gets only printable text, and the carriage returns that redraw a line."""

    encoding = ""
    errors: str | None = None

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.encoding, self.errors = stream, stream.encoding, stream.errors

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return True

    @property
    def buffer(self) -> BinaryIO:
        """The bytes of the stream below."""
        return self._stream.buffer

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._stream.flush()

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
