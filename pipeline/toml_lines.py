"""On which line of a TOML text a table or a key stands: tomllib tells no positions of what it has read."""

import tomllib
from collections.abc import Sequence


def find_line(text: str, names: Sequence[str]) -> int | None:
    """The line, from 1, where the key or table at `names` begins in the valid TOML `text`; None if it is not there.

    However it is written, quoted, dotted or inline: the text up to and including that statement is the first that
    parses and has it. The statement begins on the line after the longest shorter text that parses.
    """
    lines = text.splitlines(keepends=True)
    begins = 0
    for count in range(1, len(lines) + 1):
        try:
            values = tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:  # in the middle of a value of several lines
            continue
        if _has(values, names):
            return begins + 1
        begins = count
    return None


def _has(values: object, names: Sequence[str]) -> bool:
    for name in names:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True
