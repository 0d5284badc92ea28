"""A file that one process at a time holds locked; the system frees the lock of a process that dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from captionmill.data.errors import CaptionmillError


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
