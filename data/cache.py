"""What can be made again, kept in folders of the user's cache: each entry a folder with the SHA-256 of its files.

An entry is written aside and renamed, so that two processes may make it at once. A damaged one is removed. Where the
cache cannot be read or written there is none: nothing depends on an entry.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.files import digest_of_file
from captionmill.data.foreign import WRONG_VALUES, parse_json
from captionmill.data.paths import cache_dir

_SUMS_NAME = "sha256.json"
_ABANDONED_S = 86_400  # an entry that was begun so long ago is not being written any more

_logger = logging.getLogger(__name__)


def key_of(*parts: object) -> str:
    """The key of an entry that is made from `parts`, which are JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Cache:
    """Entries in one folder; the least recently used ones are removed when they are too large together."""

    name: str
    """Its folder in the user's cache folder."""
    most_bytes: int

    @property
    def folder(self) -> Path:
        """Its folder; OSError for a user without a home."""
        return cache_dir(self.name)

    def size(self) -> int:
        """The bytes of all entries; 0 where the cache cannot be read."""
        try:
            return sum(path.stat().st_size for path in self.folder.glob("*/*"))
        except OSError:
            return 0

    def find(self, key: str) -> Path | None:
        """The folder of the entry `key`; None if there is none or it is damaged."""
        try:
            entry = self.folder / key
            if not entry.is_dir():
                return None
            if _is_whole(entry):
                with suppress(OSError):  # a cache that may only be read
                    os.utime(entry)
                return entry
            _remove(entry)
        except OSError as exc:
            _logger.info("%s: cannot be read (%s)", self.name, exc)
        return None

    def keep(self, key: str, fill: Callable[[Path], None]) -> Path | None:
        """The folder of the entry `key`, whose files `fill` writes; None if it cannot be kept."""
        entry = None
        try:
            entry = self.folder / key
            with folder_aside(entry) as aside:
                fill(aside)
                sums = {path.name: digest_of_file(path) for path in sorted(aside.iterdir())}
                (aside / _SUMS_NAME).write_text(json.dumps(sums), encoding="utf-8")
            self._trim(entry)
        except OSError as exc:  # such as a full disk
            _logger.info("%s: cannot be written (%s)", self.name, exc)
        return entry if entry is not None and entry.is_dir() else None

    def _trim(self, newest: Path) -> None:
        """Remove the entries that were used longest ago until all fit; `newest` stays."""
        used: list[tuple[int, int, Path]] = []
        for entry in newest.parent.iterdir():
            with suppress(OSError):  # removed by another process
                if not entry.name.startswith("."):
                    used.append((entry.stat().st_mtime_ns, sum(path.stat().st_size for path in entry.iterdir()), entry))
        total = sum(size for _, size, _ in used)
        for _, size, entry in sorted(used):
            if total > self.most_bytes and entry != newest:
                _remove(entry)
                total -= size


NETWORKS = Cache("networks", 1_000_000_000)
"""Networks that were converted for a CPU; a ResNet-50 in float32 takes 94 MB."""


@contextmanager
def folder_aside(entry: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `entry` when the block ends without an error.

    If another process was faster, its entry stays. What killed processes left beside it long ago is removed. Raises
    OSError if it cannot be written.
    """
    aside = _name_aside(entry)
    aside.mkdir(parents=True)
    _remove_abandoned(entry.parent)
    try:
        yield aside
        try:
            aside.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _name_aside(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.{secrets.token_hex(8)}")


def _remove_abandoned(folder: Path) -> None:
    for entry in list(folder.glob(".*")):
        with suppress(OSError):  # removed by another process
            if time.time() - entry.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(entry, ignore_errors=True)


def _is_whole(entry: Path) -> bool:
    """Whether the files of `entry` are those that were written."""
    try:
        sums = parse_json((entry / _SUMS_NAME).read_bytes())
        return all(digest_of_file(entry / name) == digest for name, digest in sums.items())
    except (FileNotFoundError, *WRONG_VALUES):
        return False


def _remove(entry: Path) -> None:
    """Remove an entry; no process finds half of it."""
    aside = _name_aside(entry)
    with suppress(OSError):
        entry.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
