"""Tables for spreadsheets: UTF-8 CSV, with a guard on cells that a spreadsheet would run as formulas."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.files import write_text

if TYPE_CHECKING:
    import pandas as pd

_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def guard_formula(cell: str) -> str:
    """The text, with a ' in front if a spreadsheet could read it as a formula.

    This applies if it begins with one of = + - @, a tab or a line break (OWASP, "CSV Injection"), or with a '; so
    `unguard_formula` restores every text.
    """
    return f"'{cell}" if cell.startswith(_STARTS) else cell


def unguard_formula(cell: str) -> str:
    """The text that `guard_formula` was given; a ' that it does not put there belongs to the text: 'twas."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_STARTS) else cell


def encoding_of(start: bytes) -> str:
    """The encoding of a text that begins with `start`: UTF-16 by its mark, as Excel saves "Unicode Text", or UTF-8."""
    return "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def csv_line(cells: Iterable[str]) -> bytes:
    """One record as in RFC 4180, except that it ends with only a line feed, which every CSV reader accepts."""
    quoted = ['"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell for cell in cells]
    return (",".join(quoted) + "\n").encode("utf-8", "backslashreplace")


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> None:
    """Write failures.csv (key, reason), replacing any old one."""
    import pandas as pd

    write_table(path, pd.DataFrame(list(failures), columns=["key", "reason"]))


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Write a table as UTF-8 CSV with four decimals, replacing any old one."""
    text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    if "\r" in text:  # csv leaves a single carriage return unquoted, and readers take it for a line end
        text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_text(path, text)
