"""Parquet files, by pyarrow, which an installation may lack."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captionmill.data.errors import CaptionmillError, one_line
from captionmill.data.foreign import WRONG_VALUES
from captionmill.data.optional import require

PARQUET_START = b"PAR1"
"""The first bytes of each file."""


def require_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet; InputError with the command that installs them if they are missing."""
    arrow = require("pyarrow", extra="parquet", needed_by="Parquet")
    return arrow, require("pyarrow.parquet", extra="parquet", needed_by="Parquet")


@contextmanager
def open_parquet(path: Path, kind: type[CaptionmillError], remedy: str) -> Iterator[Any]:
    """Pyarrow's ParquetFile of `path`, open during the block; `kind`, which ends in `remedy`, if it is damaged."""
    arrow, parquet = require_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except CaptionmillError:
        raise
    except (arrow.ArrowException, OSError, *WRONG_VALUES) as exc:
        raise kind(f"{path}: damaged Parquet ({one_line(exc)}); {remedy}") from exc
