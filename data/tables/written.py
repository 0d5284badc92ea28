"""What earlier runs into a table wrote beside it, recorded in `.NAME.made/`: what differs, somebody else wrote.

Two lines per text: the first digits of the SHA-256 of its key, and of its key and its content. Of each key at least the
last 16 texts are kept: an interrupted run may have recorded a text and left an earlier one in its place.

Runs into other tables may write the same files. So there is a second record, `KIND.places`, with the hash of where a
text was written and of the text: what another table's record has there, no person wrote.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, lru_cache
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
        self._places = self._path.with_name(f"{kind}.places")
        self._file: IO[bytes] | None = None
        self._places_file: IO[bytes] | None = None

    def has(self, key: str, content: bytes) -> bool:
        """Whether `content` was written for `key`."""
        return _hash(key, content) in self._hashes

    def has_any(self, key: str) -> bool:
        """Whether anything was written for `key`."""
        return _hash(key) in self._hashes

    def is_of_another_table(self, place: Path, content: bytes, part: str = "") -> bool:
        """Whether a run into another table wrote `content` to the file `place`, or to the `part` of it.

        Other tables are those in the same folder, and those of the same name in the folders beside it.
        """
        return _place_hash(place, part, content) in self._of_others

    @cached_property
    def _of_others(self) -> set[bytes]:
        """What runs into other tables wrote, and where."""
        made, folder = self._path.parent, self._path.parent.absolute().parent
        name = self._places.name
        hashes = set[bytes]()
        for path in [*folder.glob(f".*.made/{name}"), *folder.parent.glob(f"*/{made.name}/{name}")]:
            if path.resolve() != self._places.resolve():
                with suppress(OSError):  # of another user
                    hashes.update(read_bytes(path).split())
        return hashes

    @contextmanager
    def adding(self) -> Iterator[None]:
        """A block in which `add` may be called."""
        with ExitStack() as stack:
            self._file = stack.enter_context(open_own(self._path, "ab"))
            self._places_file = stack.enter_context(open_own(self._places, "ab"))
            try:
                yield
            finally:
                self._file = self._places_file = None
        self._forget_old()

    def add(self, key: str, content: bytes, place: Path | None = None, part: str = "") -> None:
        """Record `content`, before it is written to the file `place`, or to the `part` of it.

        So an interrupted run leaves nothing without a record.
        """
        if self._file is None or self._places_file is None:
            raise ValueError("not in a block of `adding`")
        if self.has(key, content):
            return
        if place is not None:
            self._places_file.write(b"\n%s" % _place_hash(place, part, content))
            self._places_file.flush()
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
        places = read_bytes(self._places).split()
        with replace_atomically(self._places) as partial_path:
            partial_path.write_bytes(b"".join(b"\n%s" % place for place in places[-_KEPT * len(texts) :]))


def _hash(key: str, content: bytes = b"") -> bytes:
    return _digits(key.encode() + b"\0" + content)


def _place_hash(place: Path, part: str, content: bytes) -> bytes:
    """That of `content` at the `part` of the file `place`, whatever links lead to its folder."""
    name = Path(_real_folder(place.parent), place.name)
    return _digits(b"\0".join((os.fsencode(name), part.encode(), content)))


@lru_cache(1024)
def _real_folder(folder: Path) -> str:
    return os.path.realpath(folder)


def _digits(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_HASH_DIGITS].encode()
