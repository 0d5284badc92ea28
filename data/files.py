"""Atomic file writes: written beside, flushed, renamed."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captionmill.data.errors import InputError

_NAME_BYTES = 255  # the limit of all common file systems


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it replaces `path` when the block ends without an error.

    After an error, the partial file is removed and `path` is unchanged. A killed process can leave `.NAME.partial`
    behind: no reader opens it, and the next write replaces it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = partial_path_of(path)
    try:
        with errors_named(path):
            yield partial_path
            flush_to_disk(partial_path)
            partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)
    flush_to_disk(path.parent)


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Add `path` to a system error that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as exc:
        if exc.errno is not None and exc.filename is None:
            exc.filename = str(path)
        raise


def partial_path_of(path: Path) -> Path:
    """The partial file of `path`: `.NAME.partial`, with NAME shortened if it is too long."""
    return path.with_name(fit_name(f".{path.name}", ".partial"))


def fit_name(start: str, ending: str) -> str:
    """The file name `start` + `ending`, with `start` shortened if the name is too long."""
    while start and len(os.fsencode(start + ending)) > _NAME_BYTES:
        start = start[:-1]
    return start + ending


def require_other_file(output: Path, *inputs: Path | None) -> None:
    """Raise InputError if `output` is one of the `inputs`, or any image: writing it would destroy that file."""
    from captionmill.data.images.read import has_image_header  # imports Pillow and numpy, which a help does not need

    for path in inputs:
        if path is not None and output.exists() and path.exists() and output.samefile(path):
            raise InputError(f"{output}: is an input of this command and would be overwritten; name another output")
    if has_image_header(output):
        raise InputError(f"{output}: is an image and would be overwritten; name another output")


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; "" if there is no file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Time, size and number of a file, of which one differs after a change; None if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically, replacing any old content; half a surrogate pair is escaped."""
    with replace_atomically(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk (fsync)."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # elsewhere, read-only files too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
