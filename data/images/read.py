"""Reads the bytes of an image and records their hash, so that a changed image does not keep its old row."""

import hashlib
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import decode_image, is_image_header
from captionmill.data.images.formats.kinds import HEADER_BYTES
from captionmill.data.images.memory import BUDGET
from captionmill.data.regular import open_regular
from captionmill.data.urls import read_url


class ImageSource(NamedTuple):
    """The state of an image file when it was read."""

    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, nanoseconds since 1970; 0 if unknown, as it is before 1970 and after 2554."""
    content_hash: int
    """The first 8 bytes of the SHA-256 of the content, little-endian."""


UNKNOWN_SOURCE = ImageSource(0, 0, 0)
FILE_LIMIT = 4_000_000_000
"""Bytes; an image of the most pixels that are decoded, three float32 numbers each, has fewer."""
_LATEST_NS = 2**64 - 1  # what a store can hold


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file that may turn out to be unreadable."""

    key: str
    """Relative POSIX path, or the line of a list; always valid UTF-8."""
    path: Path | str
    """The file, or its URL; for a member of a tar, the tar."""
    offset: int | None = None
    """Where the member begins in its tar, bytes."""
    size: int | None = None
    """Bytes of the member, or of a remote file if its server reports them."""
    modified_ns: int = 0
    """Time of the last change from a tar or a server, nanoseconds since 1970; 0 for local files and if unknown."""
    content: bytes | None = None
    """The bytes of an image that is in memory; `path` is not opened then."""
    problem: str = ""
    """Why it cannot be read: a folder that cannot be listed, or a damaged tar. Its content is not known."""


def known_ns(time_ns: int) -> int:
    """A time in nanoseconds since 1970; 0, unknown, if a store cannot hold it."""
    return time_ns if 0 <= time_ns <= _LATEST_NS else 0


def seconds_to_ns(time_s: float) -> int:
    """A time in seconds since 1970 in nanoseconds; 0, unknown, if a store cannot hold it or it is not finite."""
    return known_ns(int(time_s * 1_000_000_000)) if 0 <= time_s < _LATEST_NS else 0


def read_image(image: ImageFile) -> tuple[bytes, ImageSource]:
    """The bytes of `image` and their source; ImageError if they cannot be read or are more than FILE_LIMIT.

    Waits for the memory of a large file, of the budget of all threads.
    """
    if image.problem:
        raise ImageError(image.problem)
    _require_file_size(image.size or 0)
    modified_ns = image.modified_ns
    if image.content is not None:
        data = image.content
    elif isinstance(image.path, str):
        start, size = image.offset, image.size
        data = read_url(image.path, start, None if start is None or size is None else start + size)
    else:
        data, modified_ns = _read_file(image.path, image)
    if image.offset is not None and len(data) < (image.size or 0):
        raise ImageError("the tar ends in the middle of it")
    return data, ImageSource(len(data), modified_ns, hash_content(data))


def _read_file(path: Path, image: ImageFile) -> tuple[bytes, int]:
    """The bytes of a local image or of a member of a local tar, and the time of its last change in nanoseconds."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise ImageError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        size = status.st_size if image.offset is None or image.size is None else image.size
        _require_file_size(size)
        BUDGET.take_file(size)
        with open_regular(path) as file:  # a buffered file: Linux reads at most 2 GB at once
            file.seek(image.offset or 0)
            # no more than its size: files that the system makes up, as in /proc, may have no end
            return file.read(size), known_ns(status.st_mtime_ns) if image.offset is None else image.modified_ns
    except OSError as exc:
        raise ImageError(exc.strerror.lower() if exc.strerror else str(exc)) from exc
    except ValueError as exc:  # a null byte in the path, which Python 3.14 calls a null character
        raise ImageError("embedded null byte" if "\0" in str(image.path) else str(exc)) from exc
    except MemoryError as exc:
        raise ImageError("not enough memory to read it") from exc


def _require_file_size(size: int) -> None:
    if size > FILE_LIMIT:
        raise ImageError(f"{size:,} bytes, over the limit of {FILE_LIMIT:,} bytes")


def has_image_header(path: Path) -> bool:
    """Whether the file at `path` begins as an image does; False for one that cannot be read."""
    with suppress(OSError):
        if path.is_file():  # opening a pipe would wait forever
            with open_regular(path) as file:
                return is_image_header(file.read(HEADER_BYTES))
    return False


def load_image(location: Path | str) -> Image.Image:
    """The image in a file or at a URL, as `decode_image` returns it; ImageError if it cannot be read or decoded."""
    name = str(location)
    return decode_image(read_image(ImageFile(name, location))[0], name=name)


def is_unchanged(image: ImageFile, source: ImageSource) -> bool:
    """Whether `image` still has the content of `source`; it is read and hashed only if its time has changed.

    True for UNKNOWN_SOURCE, False for a file that is gone. A remote file counts as unchanged if its server reports
    neither size nor time; any other file whose time is unknown is read.
    """
    if source == UNKNOWN_SOURCE:
        return True
    size, modified_ns = image.size, image.modified_ns
    if isinstance(image.path, Path) and image.offset is None:
        try:
            status = image.path.stat()
        except (OSError, ValueError):
            return False
        size, modified_ns = status.st_size, known_ns(status.st_mtime_ns)
    if size is not None and size != source.size:
        return False
    if modified_ns == source.modified_ns and (modified_ns or isinstance(image.path, str)):
        return True
    try:
        return read_image(image)[1].content_hash == source.content_hash
    except ImageError:
        return False


def hash_content(data: bytes) -> int:
    """The `content_hash` of a file that holds `data`."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
