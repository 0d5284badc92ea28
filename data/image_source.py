"""Which content of a file a row was made from: a changed picture must not get the caption of its old self."""

import hashlib
from typing import NamedTuple


class ImageSource(NamedTuple):
    """An image as it was when it was read."""

    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, nanoseconds since 1970; 0 where nobody knows."""
    content_hash: int
    """The first 8 bytes of the SHA-256 of the content, little-endian."""


UNKNOWN_SOURCE = ImageSource(0, 0, 0)


def hash_content(data: bytes) -> int:
    """The `content_hash` of a file that holds `data`."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
