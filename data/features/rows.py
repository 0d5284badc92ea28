"""Reads rows of a file that never changes, in constant memory; safe with threads and forks."""

import io
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from captionmill.data.errors import StoreAccessError, StoreError
from captionmill.data.hdf5.files import why_not_now

Rows = npt.NDArray[Any]


def mean_views(rows: Rows, view_count: int) -> Rows:
    """The mean of the views of each image: [N, VD] -> [N, D] of the same dtype."""
    if view_count == 1:
        return rows
    views = rows.reshape(len(rows), view_count, -1)
    return np.asarray(views.mean(axis=1, dtype=np.float32).astype(rows.dtype))


class RowFile:
    """A matrix [N, D] that is stored contiguously in a file."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row_length: int, offset: int, *, keep_open: bool) -> None:
        """Rows of `row_length` numbers, starting `offset` bytes into the file at `path`.

        `keep_open` is for a file that may be replaced: the rows stay those of the present file. A file that is not kept
        open uses no descriptor, and a store may have thousands of files. Windows cannot replace an open file, so none
        is kept open there.
        """
        self._path, self._dtype, self._row_length, self._offset = path, dtype, row_length, offset
        self._file: io.FileIO | None = None
        if keep_open and os.name != "nt":
            self._file = io.FileIO(path)
            weakref.finalize(self, self._file.close)

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        """The rows at the positions `rows`, in that order, [M, D].

        Raises StoreError if the file became shorter, StoreAccessError if it cannot be read now.
        """
        taken = np.empty((len(rows), self._row_length), self._dtype)
        row_bytes = self._row_length * self._dtype.itemsize
        bounds = np.flatnonzero(np.diff(rows, prepend=-2, append=-2) != 1)  # where a run of consecutive rows begins
        try:
            with self._opened() as descriptor:
                for start, stop in pairwise(bounds):
                    buffer = taken[start:stop].reshape(-1).view(np.uint8)
                    if not _read_at(descriptor, buffer, self._offset + int(rows[start]) * row_bytes):
                        raise StoreError(f"{self._path}: became shorter since it was opened; copy it again")
        except OSError as exc:
            raise StoreAccessError(f"{self._path}: {why_not_now(exc) or exc.strerror}") from exc
        return taken

    @contextmanager
    def _opened(self) -> Iterator[int]:
        if self._file is not None:
            yield self._file.fileno()
            return
        try:
            file = io.FileIO(self._path)
        except FileNotFoundError as exc:
            raise StoreError(f"{self._path}: another process joined it into its store; open the store again") from exc
        with file:
            yield file.fileno()


def _read_at(descriptor: int, buffer: npt.NDArray[np.uint8], offset: int) -> bool:
    """Fill `buffer` from `offset` without moving a shared file position; False if the file ends too early."""
    done = 0
    while done < len(buffer):
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [buffer[done:].data], offset + done)
        else:  # on Windows, where no descriptor is shared
            os.lseek(descriptor, offset + done, os.SEEK_SET)
            piece = os.read(descriptor, len(buffer) - done)
            count = len(piece)
            buffer[done : done + count] = np.frombuffer(piece, np.uint8)
        if not count:
            return False
        done += count
    return True
