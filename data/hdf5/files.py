"""Opens HDF5 files for reading, and separates files that cannot be opened now from damaged ones.

HDF5 reports both in one exception. A number of the system (`errno`) in it means that the file was not judged: another
program holds it, permissions are missing, the storage does not answer. Without one, HDF5 has read the file and did not
understand it.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from captionmill.data.hdf5.check import REFERENCE, check_attributes, check_references
from captionmill.data.locks import NO_LOCKS
from captionmill.data.regular import open_regular, require_content

_BUSY = (errno.EAGAIN, errno.EACCES)  # where flock is made of fcntl's locks, as on NFS, it may answer EACCES
_OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW)  # a damaged file makes HDF5 read at places that no file has
_REMEDIES = {
    errno.EACCES: "get permission to read it",
    errno.EPERM: "get permission to read it",
    errno.EMFILE: "close files, or allow more at once (ulimit -n)",
    errno.ENFILE: "close files of other programs",
    errno.EISDIR: "it is a folder; remove or rename it",
    errno.EIO: "check the disk, and copy the file from a backup if it stays like this",
    errno.ESTALE: "the storage has lost it; mount it again",
}
_NOT_DAMAGED = {
    "already open for write": "a program that wrote to it was killed; run h5clear -s on it",
    "memory allocation failed": "not enough memory to read it; close other programs and run again",
    "required filter": "another program compressed it with a filter that is not installed here; install hdf5plugin",
}


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The HDF5 file at `path`, open for reading during the block; its attributes can be read.

    HDF5 takes a shared lock, so that no other program may write meanwhile. Where the storage has no locks, the file is
    read without: files of a store are never changed, only replaced.
    """
    require_content(path)
    try:
        file = h5py.File(path, "r")
    except OSError as exc:
        if exc.errno not in NO_LOCKS:
            raise
        file = h5py.File(path, "r", locking=False)
    with file:
        with open_regular(path) as plain:
            check_attributes(plain, h5py.h5o.get_info(file.id).addr, path.stat().st_size)
        yield file


def why_not_now(exc: BaseException) -> str:
    """The reason in `exc` why an HDF5 file cannot be opened or read now, and what to do; "" if the file is damaged."""
    text = "memory allocation failed" if isinstance(exc, MemoryError) else str(exc)
    for sign, remedy in _NOT_DAMAGED.items():
        if sign in text:
            return remedy
    number = _errno_of(exc)
    if number is None or number in _OF_CONTENT:
        return ""
    if number == errno.ENXIO and isinstance(exc, OSError):
        return f"{exc.strerror}; remove it, or name a feature store"
    reason = os.strerror(number)
    if "unable to lock file" in text and number in _BUSY:
        return (
            "another program has it open for writing; close it there, such as in a notebook that called h5py.File with "
            'mode "a", and run again'
        )
    if "unable to lock file" in text and number in NO_LOCKS:
        return f"its storage has no locks ({reason}); unset HDF5_USE_FILE_LOCKING, which demands them"
    remedy = _REMEDIES.get(number, "run again when the storage answers")
    return f"cannot be opened now ({reason.lower()}): {remedy}"


def _errno_of(exc: BaseException) -> int | None:
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno
    found = re.search(r"\berrno = (\d+)", str(exc))
    return int(found[1]) if found else None


def read_texts(dataset: h5py.Dataset, path: Path) -> list[str]:
    """All texts of a `dataset` of the file at `path`; ValueError for references that HDF5 cannot be trusted with."""
    size = path.stat().st_size
    count, offset = len(dataset), dataset.id.get_offset()
    if count * REFERENCE.itemsize > size:
        raise ValueError(f"{count} texts in {size} bytes")
    if offset is not None:
        with open_regular(path) as file:
            file.seek(offset)
            check_references(file, np.frombuffer(file.read(count * REFERENCE.itemsize), REFERENCE), size)
    return list(dataset.asstr(errors="backslashreplace")[:])
