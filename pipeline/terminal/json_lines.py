"""`--log-format json`: each message on stdout and stderr is one line that holds one JSON object.

The streams themselves are replaced, so that all output, from any module, becomes JSON. Libraries that are written in C,
such as those of image formats, write to the descriptor 2 instead: a thread turns their lines into objects.
"""

import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from types import TracebackType
from typing import Any, TextIO

from captionmill.pipeline.terminal.printable import StreamAbove

_STDERR = 2
_CONTROLS = {number: f"\\u{number:04x}" for number in range(0x7F, 0xA0)}  # JSON escapes those below 0x20


class JsonLines(StreamAbove):
    """A text stream that writes each message, the text up to a line break at the end of a write, as a JSON object."""

    def __init__(self, stream: TextIO, event: str) -> None:
        """Objects go to `stream`; plain text is an `event` of level info."""
        super().__init__(stream)
        self._event = event
        self._text = ""

    def write(self, text: str) -> int:
        """Collect text; write it as an object once it ends in a line break."""
        self._text += text
        if self._text.endswith("\n"):
            message, self._text = self._text.strip("\n"), ""
            if message:
                self.log("info", self._event, message)
        return len(text)

    def finish(self) -> None:
        """Write the rest, which has not ended in a line break."""
        if self._text:
            self.write("\n")

    def put_back(self) -> None:
        """Give the descriptor of the stream below back, if it was taken."""
        if isinstance(self._stream, _Descriptor):
            self._stream.put_back()

    def log(self, level: str, event: str, message: str, **facts: Any) -> None:
        """Write one object: time, level, event, message, and `facts` by name; a path is its string."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        values = {"time": now, "level": level, "event": event, "message": message} | facts
        self._stream.write(json.dumps(values, ensure_ascii=False, default=os.fspath).translate(_CONTROLS) + "\n")
        self._stream.flush()


def json_errors() -> JsonLines | None:
    """stderr, if it holds JSON; else None."""
    return sys.stderr if isinstance(sys.stderr, JsonLines) else None


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line contains `--log-format json`."""
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def begin_json() -> None:
    """From now on stdout and stderr hold JSON objects: results, notes, and the traceback of a bug."""
    if json_errors() is None:
        stderr = _Descriptor(sys.stderr) if _is_descriptor(sys.stderr) else sys.stderr
        sys.stdout, sys.stderr = JsonLines(sys.stdout, "result"), JsonLines(stderr, "note")
        sys.excepthook = _log_bug


def _is_descriptor(stream: TextIO) -> bool:
    with suppress(OSError, ValueError, AttributeError):  # a stream in memory
        return stream.fileno() == _STDERR
    return False


class _Descriptor(io.TextIOWrapper):
    """The stream that was stderr, while all that is written to the descriptor 2 becomes objects in it."""

    def __init__(self, stderr: TextIO) -> None:
        stderr.flush()
        self._kept = os.dup(_STDERR)
        super().__init__(os.fdopen(self._kept, "wb"), "utf-8", "backslashreplace")
        reading, writing = os.pipe()
        os.dup2(writing, _STDERR)
        os.close(writing)
        self._thread = threading.Thread(target=self._copy, args=[reading], daemon=True)
        self._thread.start()

    def _copy(self, reading: int) -> None:
        stream = JsonLines(self, "note")
        with os.fdopen(reading, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                stream.write(line)
            stream.finish()

    def put_back(self) -> None:
        """Give the descriptor back; what was written to it until now is an object."""
        os.dup2(self._kept, _STDERR)
        self._thread.join(timeout=1)  # a process that was started meanwhile may still hold the other end


@contextmanager
def streams_put_back() -> Iterator[None]:
    """Undo `begin_json` at the end of the block; an exception that leaves the block is still written as JSON."""
    stdout, stderr, hook = sys.stdout, sys.stderr, sys.excepthook
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, JsonLines):
                stream.finish()
        if (stream := json_errors()) is not None and not isinstance(sys.exc_info()[1], Exception):
            stream.put_back()
            sys.stdout, sys.stderr, sys.excepthook = stdout, stderr, hook


def _log_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (stream := json_errors()) is not None:
        lines = traceback.format_exception(kind, error, trace)
        stream.log("critical", "bug", f"{kind.__name__}: {error}", traceback="".join(lines))
