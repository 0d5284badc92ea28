"""Atomic file writes: written beside, flushed, renamed.

What is written beside has a random name, so no link that waits there is followed, and two processes that write one file
never mix: the last one wins. Its writer holds a lock on it, by which leftovers of killed processes are recognised.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.regular import open_regular, require_regular

if os.name != "nt":
    import fcntl

_NAME_BYTES = 255  # the limit of all common file systems
_PARTIAL_NAME = re.compile(r"\..+\.[0-9a-f]{16}\.partial", re.DOTALL)
_cleared: set[tuple[int, int]] = set()
"""Device and number of each folder that this process has looked through for leftovers."""


@contextmanager
def replace_atomically(path: Path, *, flushes: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; it replaces `path` when the block ends without an error.

    After an error, the partial file is removed and `path` is unchanged. A killed process can leave one behind,
    `.NAME.X.partial` with 16 hexadecimal digits X: no reader opens it, and the next process that writes into the folder
    removes it. With `flushes`, the file is on the disk when the block ends. Raises OSError if `path` is a device or a
    pipe, as /dev/stdout is.
    """
    if path.exists():
        require_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with errors_named(path):
        remove_leftovers(path.parent)
        descriptor, partial_path = _create_partial(path)
    try:
        with errors_named(path):
            yield partial_path
            if flushes:
                flush_to_disk(partial_path)
            if os.name == "nt":  # which cannot rename an open file
                os.close(descriptor)
                descriptor = -1
            partial_path.replace(path)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        partial_path.unlink(missing_ok=True)
    if flushes:
        flush_to_disk(path.parent)


def _create_partial(path: Path) -> tuple[int, Path]:
    """A new, empty file for the content of `path`, and its descriptor, which holds its lock."""
    while True:
        partial_path = path.with_name(fit_name(f".{path.name}", f".{secrets.token_hex(8)}.partial"))
        descriptor = os.open(partial_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if os.name != "nt":
                with suppress(OSError):  # on storage without locks nothing is taken for a leftover
                    fcntl.flock(descriptor, fcntl.LOCK_SH)  # HDF5 takes the same to read the file under its final name
            if partial_path.exists():  # else it was taken for a leftover before it was locked
                return descriptor, partial_path
        except BaseException:  # Ctrl-C too
            os.close(descriptor)
            partial_path.unlink(missing_ok=True)
            raise
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in `folder`, once in a process: partial files that nobody has locked."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in _cleared:
        return
    _cleared.add((status.st_dev, status.st_ino))
    with suppress(OSError), os.scandir(folder) as entries:  # it may be writable, but not readable
        for entry in entries:
            if _PARTIAL_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_unlocked(Path(entry.path))


def _remove_unlocked(path: Path) -> None:
    if os.name == "nt":  # which does not remove an open file
        path.unlink()
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Name `path` in a system error that names no file, such as that of a full disk, or a partial or a second one."""
    try:
        yield
    except OSError as exc:
        names_partial = _PARTIAL_NAME.fullmatch(Path(str(exc.filename)).name)
        if exc.errno is not None and (exc.filename is None or exc.filename2 is not None or names_partial):
            exc.filename, exc.filename2 = str(path), None
        raise


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


def require_two_files(table: Path | None, page: Path | None, name: str) -> None:
    """Raise InputError if the outputs `table` and `page`, whose parameter is called `name`, are one file."""
    if table is not None and page is not None and table.absolute() == page.absolute():
        raise InputError(f"{page}: cannot be the table and the page at once; name another file as `{name}`")


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; "" if there is no file."""
    try:
        with open_regular(path) as file:
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


def require_space(path: Path, size: int) -> None:
    """Raise OSError, as a full disk does, unless about `size` bytes are free where the file `path` will be."""
    usage = shutil.disk_usage(path.parent)
    if usage.total and usage.free < size:  # some storage does not say how large it is
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_bytes(path: Path, content: bytes, *, flushes: bool = True) -> None:
    """Replace the file at `path` by `content`, as `replace_atomically` does."""
    with replace_atomically(path, flushes=flushes) as partial_path:
        partial_path.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically, replacing any old content; half a surrogate pair is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk (fsync)."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # elsewhere, read-only files too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
