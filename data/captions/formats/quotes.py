"""Splits the lines of a CSV or TSV into rows, with one rule for what a quote is.

A quote that begins a cell opens a quoted cell if a closing quote follows: one that is not doubled, and after which the
cell ends (a separator or the end of the line). Line breaks and separators between the two belong to the cell. Any other
quote is text: in `"Go" sign` and in `"Stop sign`, whose next quote, perhaps many rows below, closes nothing.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from captionmill.data.foreign import read_line

_BODY = re.compile(r'[^"]*(?:""[^"]*)*')
_LONGEST_CELL = 1_000_000  # characters; a quote that is not closed within them is text


@dataclass(frozen=True)
class TableRow:
    """One row of a table."""

    line: int
    """The number of its first line, from 1."""
    cells: Sequence[str]
    lines: Sequence[str] = ()
    """Its lines as they are in the file; () if it holds no quote, and so is one line."""
    starts: Sequence[int] = ()
    """For each cell, the index in `lines` of the line on which it begins; the end of the last cell follows."""
    stray: Sequence[int] = ()
    """The positions of cells that begin with a quote which is text."""

    def line_of(self, cell: int) -> int | None:
        """The index in `lines` of the line that holds the whole cell; None if it spans lines or is not there."""
        if cell >= len(self.cells) or self.starts[cell] != self.starts[cell + 1]:
            return None
        return self.starts[cell]


@dataclass
class _Lines:
    """The lines of a file, of which some can be put back."""

    file: TextIO
    count: int = 0
    """How many were taken."""
    ahead: deque[str] = field(default_factory=deque)

    def take(self) -> str | None:
        """The next line without its end; None at the end of the file."""
        line = self.ahead.popleft() if self.ahead else read_line(self.file)
        if not line:
            return None
        self.count += 1
        return line.removesuffix("\n")

    def put_back(self, lines: Sequence[str]) -> None:
        self.count -= len(lines)
        self.ahead.extendleft(f"{line}\n" for line in reversed(lines))


class RowReader:
    """Splits lines at one separator."""

    def __init__(self, mark: str) -> None:
        """For the separator `mark`; after a bar and a space a quote is always text, as in Flickr30k."""
        self._mark = mark
        space = "" if mark == "|" else " *"
        self._opening = re.compile(f'{space}"')
        self._closed = re.compile(f"[ {'' if mark == chr(9) else chr(9)}]*(?={re.escape(mark)}|$)")

    def read(self, file: TextIO) -> Iterator[TableRow]:
        """The rows from the current line of `file` on, empty ones included; other uses may move in it meanwhile."""
        lines = _Lines(file)
        while (text := lines.take()) is not None:
            if '"' in text:
                yield self._read_quoted(text, lines)
            else:
                yield TableRow(lines.count, text.split(self._mark))

    def split(self, line: str) -> TableRow:
        """The row that a single line makes by itself."""
        return self._read_quoted(line, None)

    def _read_quoted(self, text: str, lines: _Lines | None) -> TableRow:
        taken, cells, starts, stray = [text], list[str](), [0], list[int]()
        first = lines.count if lines else 1
        position = 0
        while True:
            opening = self._opening.match(text, position)
            quoted = self._quoted_cell(text, opening.end(), lines) if opening else None
            if quoted is not None:
                cell, more, end = quoted
                taken += more
                text = taken[-1]
            else:
                if opening:
                    stray.append(len(cells))
                end = text.find(self._mark, position)
                end = len(text) if end < 0 else end
                cell = text[position:end]
            cells.append(cell)
            starts.append(len(taken) - 1)
            if end >= len(text):
                return TableRow(first, cells, taken, starts, stray)
            position = end + 1

    def _quoted_cell(self, text: str, position: int, lines: _Lines | None) -> tuple[str, list[str], int] | None:
        """The cell whose text begins at `position`, the further lines that it takes, and where it ends in the last one.

        None if no closing quote follows; then no line is taken.
        """
        more: list[str] = []
        parts: list[str] = []
        length = 0
        while True:
            body = _BODY.match(text, position)
            end = body.end() if body else position
            parts.append(text[position:end])
            length += end - position
            if end < len(text):
                closed = self._closed.match(text, end + 1)
                if closed:
                    return "\n".join(parts).replace('""', '"'), more, closed.end()
                break
            following = lines.take() if lines and length <= _LONGEST_CELL else None
            if following is None:
                break
            more.append(following)
            text, position = following, 0
        if lines:
            lines.put_back(more)
        return None
