"""`--log-format json`: each message on stdout and stderr is one line that holds one JSON object.

It takes the place of the streams themselves, so that nothing that is said can miss it, whoever says it.
"""

import io
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from types import TracebackType
from typing import Any, TextIO


class JsonLines(io.TextIOBase):
    """A text stream whose every message, the text up to a line break that ends a write, becomes a JSON object."""

    def __init__(self, stream: TextIO, event: str) -> None:
        """Objects go to `stream`; plain text is an `event` of level info."""
        self._stream = stream
        self._event = event
        self._text = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As click wants to know."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """As click wants to know."""
        return "strict"

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._stream.flush()

    def write(self, text: str) -> int:
        """Take text in; say it once it ends in a line break."""
        self._text += text
        if self._text.endswith("\n"):
            message, self._text = self._text.strip("\n"), ""
            if message:
                self.say("info", self._event, message)
        return len(text)

    def finish(self) -> None:
        """Say what has not ended in a line break."""
        if self._text:
            self.write("\n")

    def say(self, level: str, event: str, message: str, **facts: Any) -> None:
        """One object: when, how serious, what kind, in words, and facts by name."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        values = {"time": now, "level": level, "event": event, "message": message} | facts
        self._stream.write(json.dumps(values, ensure_ascii=False) + "\n")
        self._stream.flush()


def json_errors() -> JsonLines | None:
    """stderr, if it is to hold JSON."""
    return sys.stderr if isinstance(sys.stderr, JsonLines) else None


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line says `--log-format json`."""
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def begin_json() -> None:
    """From now on stdout and stderr hold JSON objects: results, notes, and the traceback of a bug."""
    if json_errors() is None:
        sys.stdout, sys.stderr = JsonLines(sys.stdout, "result"), JsonLines(sys.stderr, "note")
        sys.excepthook = _say_bug


@contextmanager
def streams_put_back() -> Iterator[None]:
    """What `begin_json` does inside ends with it; a bug that is on its way out is still said in JSON."""
    stdout, stderr, hook = sys.stdout, sys.stderr, sys.excepthook
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, JsonLines):
                stream.finish()
        if json_errors() is not None and not isinstance(sys.exc_info()[1], Exception):
            sys.stdout, sys.stderr, sys.excepthook = stdout, stderr, hook


def _say_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (stream := json_errors()) is not None:
        lines = traceback.format_exception(kind, error, trace)
        stream.say("critical", "bug", f"{kind.__name__}: {error}", traceback="".join(lines))
