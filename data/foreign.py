"""Values from files that somebody else may have written: every damage is one of the errors that readers expect."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import IO, Any, AnyStr, TypeVar, cast

_Made = TypeVar("_Made")

WRONG_VALUES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What reading values of other types, names or sizes raises; a UnicodeDecodeError is a ValueError."""
LONGEST_LINE = 10_000_000  # characters or bytes
_LARGEST_DECIMAL = 1e100


class LongLineError(ValueError):
    """A line of a text is longer than LONGEST_LINE."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError if it is not valid, nested too deeply, or has a number that is too long."""
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def finite_number(value: object) -> float:
    """`value` as a float; TypeError if it is not a number, ValueError or OverflowError if it is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:40]!r} is no number")
    if not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    return float(value)


def whole_number(text: str) -> int:
    """The whole number that `text` shows; ValueError for anything else, or a number of more than 64 bits."""
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text[:40]} is too large")
    return number


def decimal_number(text: str) -> float:
    """The number that `text` shows, or NaN; ValueError for anything else, or one of which sums could be infinite."""
    number = float(text)
    if abs(number) > _LARGEST_DECIMAL:
        raise ValueError(f"{text[:40]} is too large")
    return number


def record_of(kind: Callable[..., _Made], values: Any) -> _Made:
    """The dataclass `kind` with the fields `values`; TypeError if one is missing, unknown or of another type."""
    record = kind(**values)
    for field in dataclasses.fields(cast(Any, record)):
        if type(value := getattr(record, field.name)) is not field.type:
            raise TypeError(f"{field.name} is {value!r}")
    return record


def text_of(value: object) -> str:
    """`value`, which must be a string; else TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    return value


def read_line(file: IO[AnyStr]) -> AnyStr:
    """The next line of `file`, empty at its end; LongLineError for a longer one, before all of it is read."""
    line = file.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise LongLineError(f"a line has more than {LONGEST_LINE:,} characters")
    return line


def short_lines(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """The lines of `file`, each as `read_line`."""
    while line := read_line(file):
        yield line
