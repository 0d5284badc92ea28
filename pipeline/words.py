"""Formats counts, rates, times and errors for people."""

from collections.abc import Sequence

_SHOWN = 10


def show_count(count: int, noun: str) -> str:
    """ "1 image", "8,091 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def show_rate(rate: float, noun: str) -> str:
    """ "64 images/s", "8.1 images/s"."""
    return f"{rate:,.0f} {noun}/s" if rate >= 10 else f"{rate:.1f} {noun}/s"


def show_duration(duration_s: float) -> str:
    """ "8.1 s", "3 min 20 s"."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    return f"{int(duration_s // 60)} min {int(duration_s % 60)} s"


def show_time_left(duration_s: float) -> str:
    """ "8 s left", "4 min left", "1 h 20 min left", "2 d 3 h left": no finer than such an estimate allows."""
    minutes = round(duration_s / 60)
    if duration_s < 60:
        return f"{max(1, round(duration_s))} s left"
    if minutes < 60:
        return f"{minutes} min left"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min left"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h left"


def show_error(error: Exception) -> str:
    """`error` in one line; one of the system with the file that it is about, where it names one."""
    if not isinstance(error, OSError):
        return str(error)
    return (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))


def show_list(lines: Sequence[str]) -> str:
    """The first ten lines, indented, and the number of further ones."""
    shown = [f"  {line}" for line in lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        shown.append(f"  ... and {len(lines) - _SHOWN:,} more")
    return "\n".join(shown)
