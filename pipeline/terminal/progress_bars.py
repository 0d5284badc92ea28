"""Progress and log records on stderr: bars on a terminal, plain lines in a log."""

import logging
import os
import sys
import time

import click

from captionmill.pipeline import summaries

SECONDS_BETWEEN_LINES = 30
_SECONDS_BETWEEN_DRAWINGS = 0.1
_LEAST_BAR, _MOST_BAR = 8, 36  # characters


class ProgressBars:
    """On a terminal a bar for each label that a stage reports; in a log, a plain line now and then. On stderr.

    The line of a label that has notes makes way for what comes after it: the stage's results say it better.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._label = ""
        self._line = ""  # on the screen now
        self._bar_width = _MOST_BAR
        self._has_notes = False
        self._started = (0.0, 0)  # when, and with how much done
        self._drawn_at = 0.0
        self._said_at = time.monotonic()

    def __enter__(self) -> "ProgressBars":
        for handler in logging.getLogger("captionmill").handlers:
            if isinstance(handler, EchoHandler):
                handler.progress = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(stays=kind is not None or not self._has_notes)

    def __call__(self, label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        if sys.stderr.isatty():
            self._draw(label, done, total, note, left_s, now)
        elif now - self._said_at > SECONDS_BETWEEN_LINES:
            left = summaries.show_time_left(left_s) if left_s else ""
            click.echo(f"{label}: " + ", ".join(filter(None, [f"{done:,} of {total:,}", note, left])), err=True)
            self._said_at = now

    def clear(self) -> None:
        """Take away the line that is on the terminal, so that another can be written there."""
        if self._line:
            click.echo(f"\r{' ' * len(self._line)}\r", nl=False, err=True)
            self._line = ""

    def _draw(self, label: str, done: int, total: int, note: str, left_s: float | None, now: float) -> None:
        if label != self._label:
            self._end(stays=not self._has_notes)
            self._label, self._bar_width, self._started = label, _MOST_BAR, (now, done)
        elif done < total and now - self._drawn_at < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._has_notes, self._drawn_at = bool(note), now
        if left_s is None and self._started[1] < done < total:
            left_s = (now - self._started[0]) / (done - self._started[1]) * (total - done)
        facts = (note or f"{done:,} of {total:,}").split(", ")
        self._write(label, done / total if total else 1.0, facts, [summaries.show_time_left(left_s)] if left_s else [])
        if done >= total and not self._has_notes:
            self._end(stays=True)

    def _write(self, label: str, share: float, facts: list[str], left: list[str]) -> None:
        """Where the terminal is narrow, the bar gets shorter and goes, then the last facts go, then it is cut."""
        columns = _terminal_columns() - 1  # a character in the last one makes some terminals begin a new line
        percent = f"{int(100 * share):3}%"
        room = columns - len(f"{label}  []  {percent}  {', '.join(facts + left)}")
        self._bar_width = min(self._bar_width, room)  # it never grows again for a label, since that would flicker
        filled = int(self._bar_width * share)
        bar = f"  [{'#' * filled}{'-' * (self._bar_width - filled)}]" if self._bar_width >= _LEAST_BAR else ""
        start = f"{label}{bar}  {percent}  "
        while facts and len(start + ", ".join(facts + left)) > columns:
            facts = facts[:-1]
        line = (start + ", ".join(facts + left))[:columns]
        click.echo("\r" + line.ljust(len(self._line)), nl=False, err=True)
        self._line = line

    def _end(self, *, stays: bool) -> None:
        """Be done with the label whose line is on the terminal."""
        if self._line and stays:
            click.echo(err=True)
            self._line = ""
        self.clear()
        self._label, self._has_notes = "", False


def _terminal_columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some terminals do not know
    except OSError:
        return 80


class EchoHandler(logging.Handler):
    """Log records as plain lines on stderr, in place of a bar that is on a terminal now and drawn again below."""

    progress: ProgressBars | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.progress is not None:
            self.progress.clear()
        click.echo(f"{record.levelname.capitalize()}: {record.getMessage()}", err=True)
