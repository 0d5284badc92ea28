"""What earlier runs into a table wrote beside it, recorded in `.NAME.made/`: what differs, somebody else wrote.

One line per text: the first digits of the SHA-256 of its key and its content, and one of its key.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from captionmill.data.regular import open_own, read_bytes
from captionmill.data.tables.journal import made_dir

_HASH_DIGITS = 16


class WrittenTexts:
    """The texts of one kind that runs into one table wrote, by the keys of their images."""

    def __init__(self, table: Path, kind: str) -> None:
        """Of the table at `table`; `kind` is the name of the file."""
        self._path = made_dir(table) / kind
        self.is_begun = self._path.exists()
        """Whether an earlier run recorded any."""
        self._hashes = set(read_bytes(self._path).split()) if self.is_begun else set()
        self._file: IO[bytes] | None = None

    def has(self, key: str, content: bytes) -> bool:
        """Whether `content` was written for `key`."""
        return _hash(key, content) in self._hashes

    def has_any(self, key: str) -> bool:
        """Whether anything was written for `key`."""
        return _hash(key) in self._hashes

    @contextmanager
    def adding(self) -> Iterator[None]:
        """A block in which `add` may be called."""
        with open_own(self._path, "ab") as file:
            self._file = file
            try:
                yield
            finally:
                self._file = None

    def add(self, key: str, content: bytes) -> None:
        """Record `content`, before it is written: so an interrupted run leaves nothing without a record."""
        if self._file is None:
            raise ValueError("not in a block of `adding`")
        if self.has(key, content):
            return
        self._file.write(b"\n".join((b"", _hash(key), _hash(key, content))))
        self._file.flush()
        self._hashes |= {_hash(key), _hash(key, content)}


def _hash(key: str, content: bytes = b"") -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).hexdigest()[:_HASH_DIGITS].encode()
