"""What earlier runs into a table wrote beside it, recorded in `.NAME.made/`: what differs, somebody else wrote.

Two lines per text: the first digits of the SHA-256 of its key, and of its key and its content. Of each key at least the
last 16 texts are kept: an interrupted run may have recorded a text and left an earlier one in its place.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from captionmill.data.files import replace_atomically
from captionmill.data.regular import open_own, read_bytes
from captionmill.data.tables.journal import made_dir

_HASH_DIGITS = 16
_KEPT = 16


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
        self._forget_old()

    def add(self, key: str, content: bytes) -> None:
        """Record `content`, before it is written: so an interrupted run leaves nothing without a record."""
        if self._file is None:
            raise ValueError("not in a block of `adding`")
        if self.has(key, content):
            return
        self._file.write(b"\n".join((b"", _hash(key), _hash(key, content))))
        self._file.flush()
        self._hashes |= {_hash(key), _hash(key, content)}

    def _forget_old(self) -> None:
        """Keep of each key the last texts, if there are twice as many."""
        lines = read_bytes(self._path).split()
        texts: dict[bytes, list[bytes]] = defaultdict(list)
        for key, text in zip(lines[::2], lines[1::2], strict=False):
            texts[key].append(text)
        if len(lines) % 2 or max(map(len, texts.values()), default=0) <= 2 * _KEPT:
            return
        with replace_atomically(self._path) as partial_path, partial_path.open("wb") as file:
            for key, written in texts.items():
                file.writelines(b"\n%s\n%s" % (key, text) for text in written[-_KEPT:])


def _hash(key: str, content: bytes = b"") -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).hexdigest()[:_HASH_DIGITS].encode()
