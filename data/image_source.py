"""Which content of a file a row was made from: a changed picture must not get the caption of its old self."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from captionmill.data.errors import ImageError


class ImageSource(NamedTuple):
    """An image file as it was when it was read."""

    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, nanoseconds since 1970."""
    content_hash: int
    """The first 8 bytes of the SHA-256 of the content, little-endian."""


UNKNOWN_SOURCE = ImageSource(0, 0, 0)


def read_source(path: Path) -> ImageSource:
    """Size, time and hash of the file at `path`; ImageError if it cannot be read."""
    try:
        status = path.stat()
        return ImageSource(status.st_size, max(0, status.st_mtime_ns), _hash_content(path))
    except OSError as exc:
        raise ImageError(exc.strerror or str(exc)) from exc


def is_unchanged(path: Path, source: ImageSource) -> bool:
    """Whether `path` still holds what `source` was read from. Only a file of another time is read, to compare the hash.

    True for UNKNOWN_SOURCE: what is not known cannot have changed. False for a file that is gone.
    """
    if source == UNKNOWN_SOURCE:
        return True
    try:
        status = path.stat()
        if status.st_size != source.size:
            return False
        return max(0, status.st_mtime_ns) == source.modified_ns or _hash_content(path) == source.content_hash
    except OSError:
        return False


def _hash_content(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:8], "little")
