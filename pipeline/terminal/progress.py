"""Progress and log records on stderr: bars on a terminal, plain lines in a log, objects in JSON."""

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import click

from captionmill.pipeline import words
from captionmill.pipeline.terminal.json_lines import json_errors
from captionmill.pipeline.terminal.names import as_typed

_LEAST_MEASURED_S = 1.0  # a rate over less time is unreliable
_COUNTED = {"extract": "images", "caption": "images", "export": "rows"}  # by label: what is counted
_LEAST_BAR, _MOST_BAR = 8, 36  # characters


@dataclass(frozen=True)
class Intervals:
    """Seconds between two reports of one step."""

    drawings_s: float = 0.1
    """On a terminal."""
    lines_s: float = 30.0
    """In a log."""
    objects_s: float = 5.0
    """In JSON."""


class ProgressBars:
    """Shows progress on stderr: on a terminal a bar for each label that a stage reports; in a log, a line or object now
    and then.

    The line of a label with notes is removed at its end, as the stage's results show the same better.
    """

    def __init__(
        self, *, quiet: bool, intervals: Intervals = Intervals(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`quiet` shows nothing; `clock` gives the time in seconds."""
        self._quiet, self._intervals, self._clock = quiet, intervals, clock
        self._label = ""
        self._line = ""  # on the screen now
        self._bar_width = _MOST_BAR
        self._has_notes = False
        self._started = (0.0, 0)  # when, and with how much done
        self._drawn_at = 0.0
        self._reported_at = self._clock()

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
        now = self._clock()
        is_new = label != self._label
        if is_new:
            self._end(stays=not self._has_notes)
            self._label, self._bar_width, self._started = label, _MOST_BAR, (now, done)
        measured_s, advanced = now - self._started[0], done - self._started[1]
        rate = advanced / measured_s if advanced > 0 and measured_s >= _LEAST_MEASURED_S else None
        if left_s is None and advanced > 0 and done < total:
            left_s = measured_s / advanced * (total - done)
        facts = note.split(", ") if note else [f"{done:,} of {total:,}", *self._show_rate(rate)]
        left = [words.show_time_left(left_s)] if left_s else []
        self._has_notes = bool(note)
        if (stream := json_errors()) is not None:
            if done >= total or now - self._reported_at > self._intervals.objects_s:
                self._reported_at = now
                measured = {"rate": rate and round(rate, 3), "left_s": left_s and round(left_s, 1)}
                message = f"{label}: {', '.join(facts + left)}"
                stream.log("info", "progress", message, label=label, done=done, total=total, **measured)
        elif sys.stderr.isatty():
            if is_new or done >= total or now - self._drawn_at >= self._intervals.drawings_s:
                self._drawn_at = now
                self._write(label, done / total if total else 1.0, facts, left)
            if done >= total and not note:
                self._end(stays=True)
        elif now - self._reported_at > self._intervals.lines_s:
            counted = [f"{done:,} of {total:,}"] if note else []
            click.echo(f"{label}: {', '.join(counted + facts + left)}", err=True)
            self._reported_at = now

    def _show_rate(self, rate: float | None) -> list[str]:
        return [words.show_rate(rate, _COUNTED[self._label])] if rate and self._label in _COUNTED else []

    def clear(self) -> None:
        """Remove the line that is on the terminal, so that another can be written there."""
        if self._line:
            click.echo(f"\r{' ' * len(self._line)}\r", nl=False, err=True)
            self._line = ""

    def _write(self, label: str, share: float, facts: list[str], left: list[str]) -> None:
        """Draw the line; on a narrow terminal first the bar is shortened or left out, then facts, then it is cut."""
        columns = _terminal_columns() - 1  # a character in the last column makes some terminals begin a new line
        percent = f"{int(100 * share):3}%"
        room = columns - len(f"{label}  []  {percent}  {', '.join(facts + left)}")
        self._bar_width = min(self._bar_width, room)  # it never grows again for a label, as that would flicker
        filled = int(self._bar_width * share)
        bar = f"  [{'#' * filled}{'-' * (self._bar_width - filled)}]" if self._bar_width >= _LEAST_BAR else ""
        start = f"{label}{bar}  {percent}  "
        while facts and len(start + ", ".join(facts + left)) > columns:
            facts = facts[:-1]
        line = (start + ", ".join(facts + left))[:columns]
        click.echo("\r" + line.ljust(len(self._line)), nl=False, err=True)
        self._line = line

    def _end(self, *, stays: bool) -> None:
        """Finish the label whose line is on the terminal."""
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
    """Writes log records as plain lines on stderr; a bar on a terminal is removed first and drawn again below."""

    progress: ProgressBars | None = None

    def __init__(self, command: click.Command | None = None) -> None:
        """Names of parameters are shown as they are typed for `command`."""
        super().__init__()
        self._command = command

    def emit(self, record: logging.LogRecord) -> None:
        message = as_typed(record.getMessage(), self._command)
        if (stream := json_errors()) is not None:
            stream.log(record.levelname.lower(), "log", message, logger=record.name)
            return
        if self.progress is not None:
            self.progress.clear()
        level = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
        click.echo(level + message, err=True)
