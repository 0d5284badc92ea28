"""Files that appear whole or not at all (written aside, flushed, renamed), and locks that one process holds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from captionmill.data.errors import CaptionmillError, InputError

_NAME_BYTES = 255  # at most, on all common file systems


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block ends without an error.

    An error removes what was written and leaves `path` as it was. A kill can leave the file beside it
    (`.NAME.partial`), which no reader looks at and the next write replaces.
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
    """Let an error of the system that names no file, as of a full disk, name `path`."""
    try:
        yield
    except OSError as exc:
        if exc.errno is not None and exc.filename is None:
            exc.filename = str(path)
        raise


def partial_path_of(path: Path) -> Path:
    """Where `path` is written before it takes its place: `.NAME.partial`, NAME cut short where it is too long."""
    return path.with_name(fit_name(f".{path.name}", ".partial"))


def fit_name(start: str, ending: str) -> str:
    """The name of a file that begins and ends so; `start` is cut short where that is too long."""
    while start and len(os.fsencode(start + ending)) > _NAME_BYTES:
        start = start[:-1]
    return start + ending


def require_other_file(output: Path, *inputs: Path | None) -> None:
    """Raise InputError if `output` is one of the `inputs`, which writing it would destroy."""
    for path in inputs:
        if path is not None and output.exists() and path.exists() and output.samefile(path):
            raise InputError(f"{output}: is an input of this command and would be overwritten; name another output")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in place of whatever `path` held."""
    with replace_atomically(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8", newline="")


def flush_to_disk(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # elsewhere of read-only files too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path, otherwise: CaptionmillError) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that is there, for a block; raise `otherwise` if another process does."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as exc:
        raise otherwise from exc
    try:
        yield
    finally:
        lock.release()
