"""Lock files: of several processes only one works on an output.

The system's own locks (flock) are freed when their holder dies, however it dies. Some storage has none, such as Lustre
or NFS mounted without them: there, a file beside the lock names the holder by process and machine instead. It is
removed by its holder, and by the next process of the same machine if its holder was killed; that of another machine
cannot be looked at, so a person has to delete it.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from captionmill.data.errors import CaptionmillError
from captionmill.data.regular import refuse_link

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
"""What storage without locks answers."""
_HOLDER_SUFFIX = ".holder"
"""Added to the name of a lock file: the file that stands for it on storage without locks."""


@contextmanager
def hold_lock(path: Path, otherwise: CaptionmillError) -> Iterator[None]:
    """Hold the lock file `path`, in an existing folder, for a block; raise `otherwise` if another process holds it.

    Raises an error of the same class if the file cannot be made.
    """
    try:
        lock = _acquire(path, otherwise)
    except OSError as exc:
        raise type(otherwise)(f"{path}: cannot be locked ({exc.strerror})") from exc
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, otherwise: CaptionmillError) -> filelock.BaseFileLock:
    refuse_link(path)
    lock: filelock.BaseFileLock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
        return lock
    except filelock.Timeout as exc:
        raise otherwise from exc
    except OSError as exc:
        if exc.errno not in NO_LOCKS:
            raise
    holder_path = path.with_name(path.name + _HOLDER_SUFFIX)
    lock = filelock.SoftFileLock(holder_path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as exc:
        raise type(otherwise)(
            f"{otherwise}; this storage has no locks: if that process was killed on another machine, delete "
            f"{holder_path}"
        ) from exc
    return lock
