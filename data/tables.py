"""The tables that people open in a spreadsheet: failures.csv, scores and others. UTF-8, quoted where needed."""

import csv
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from captionmill.data.atomic import write_text


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> None:
    """Write failures.csv (key, reason) in place of what was there."""
    write_table(path, pd.DataFrame(list(failures), columns=["key", "reason"]))


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write any table as UTF-8 CSV, four decimals, in place of what was there."""
    text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    if "\r" in text:  # the csv module leaves a lone carriage return unquoted, and readers take it for a line's end
        text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_text(path, text)
