"""The tables that people open in a spreadsheet: UTF-8 CSV, with cells that a spreadsheet would run guarded."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.files import write_text

if TYPE_CHECKING:
    import pandas as pd

_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def guard_formula(cell: str) -> str:
    """The text with a ' in front if a spreadsheet could take it for a formula.

    That is if it begins with one of = + - @, a tab or a line break (OWASP, "CSV Injection"), or with a ' already: so
    `unguard_formula` gives back what was given.
    """
    return f"'{cell}" if cell.startswith(_STARTS) else cell


def unguard_formula(cell: str) -> str:
    """The text that `guard_formula` was given."""
    return cell.removeprefix("'")


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> None:
    """Write failures.csv (key, reason) in place of what was there."""
    import pandas as pd

    write_table(path, pd.DataFrame(list(failures), columns=["key", "reason"]))


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Write any table as UTF-8 CSV, four decimals, in place of what was there."""
    text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    if "\r" in text:  # the csv module leaves a lone carriage return unquoted, and readers take it for a line's end
        text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_text(path, text)
