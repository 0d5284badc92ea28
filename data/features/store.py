"""The feature store: one feature vector per image key in HDF5, bound to one `FeatureSpec` for life.

Where the spec keeps several views per image, the vector is their mean; `read_views` returns each.

A store is the file `features.h5` and part files of the same layout in the folder `features.h5.parts/`. Parts come from
an extraction that is running or was interrupted, and from later extractions that are small compared with the main file.
An HDF5 file is never changed in place: each is written beside it and renamed. So a process killed at any moment leaves
a store that opens, and loses only rows that are not yet in a part.

`file.py` describes the layout of each file.
"""

import bisect
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from captionmill.data.errors import MissingRowError, StoreDamageError, StoreError
from captionmill.data.features.file import (
    Block,
    Features,
    Sources,
    StoreFile,
    checksum_rows,
    read_store_file,
    write_store_file,
)
from captionmill.data.features.parts import part_paths, report_foreign_files
from captionmill.data.features.rows import mean_views
from captionmill.data.features.spec import join_engines
from captionmill.data.images.read import ImageSource
from captionmill.data.paths import AnyPath
from captionmill.data.regular import open_regular

Positions = Sequence[int] | npt.NDArray[np.int64]
Column = TypeVar("Column", bound=npt.NDArray[Any])

_BLOCK_ROWS = 4096
_HDF5_START = b"\x89HDF\r\n\x1a\n"
_LISTINGS = 5  # a writer may join parts between listing and reading them


def store_exists(path: Path) -> bool:
    """Whether there is a store at `path`, finished or not."""
    return path.exists() or bool(part_paths(path))


def cache_path_for(table: Path) -> Path:
    """The default path of the cached features of the images in a table of captions."""
    return table.with_suffix(".features.h5")


def is_store_file(path: Path) -> bool:
    """Whether the file at `path` is HDF5: no list of images begins like that."""
    with open_regular(path) as file:
        return file.read(len(_HDF5_START)) == _HDF5_START


def delete_store(path: Path) -> None:
    """Remove the store at `path` and its parts; the caller holds its lock, which stays."""
    path.unlink(missing_ok=True)
    for part in part_paths(path):
        part.unlink()


def replace_store(new: Path, path: Path) -> None:
    """Replace the store `path` by the finished file `new`, a store without parts.

    The parts of the old store are joined into its file first, if it can be read: a kill leaves one of the two, whole.
    """
    parts = part_paths(path)
    if parts:
        with contextlib.suppress(StoreError, OSError):  # damaged, or no room: then it goes as it is
            old = FeatureStore.open(path)
            blocks = old.stored_blocks(old.keys)
            write_store_file(path, old.spec, len(old), blocks, dtype=old.dtype, made_by=old.made_by)
    for part in parts:
        part.unlink()
    new.replace(path)


def describe_damage(keys: Sequence[str]) -> str:
    """What is wrong with the damaged rows of `keys`, of which there is at least one, and what to do."""
    which = f"the row of {keys[0]} is" if len(keys) == 1 else f"{len(keys):,} rows are"
    first = "" if len(keys) == 1 else f", that of {keys[0]} first"
    return f"{which} damaged{first}; run extract again, which makes damaged rows again"


class FeatureStore:
    """A store opened for reading: rows by key, or by position in `keys`. Cheap to open; rows stay on disk."""

    def __init__(self, path: Path, files: Sequence[StoreFile]) -> None:
        """Use `FeatureStore.open`."""
        self.path = path
        self.spec = files[0].spec
        self.dtype = files[0].dtype
        self.made_by = files[0].made_by | join_engines(file.made_by for file in files)
        self.part_count = sum(file.path != path for file in files)
        self.shard = files[0].shard if len(files) == 1 else None
        """Which part of a sharded extraction this is, if it was finished."""
        self._files = files
        self._ambiguous: set[str] = set()  # keys that are twice in one file: damage made one equal its neighbour
        keys = files[0].keys
        if len(files) == 1 and all(map(str.__lt__, keys, keys[1:])):  # a finished store: nothing to look up
            self.keys = keys
            self._file_numbers = np.zeros(len(keys), dtype=np.int32)
            self._file_rows = np.arange(len(keys), dtype=np.int64)
            return
        places: dict[str, tuple[int, int]] = {}
        twice: dict[str, int] = {}
        for number, file in enumerate(files):
            for key in file.removed:
                places.pop(key, None)
            if len(set(file.keys)) < len(file.keys):
                twice |= {key: number for key, count in Counter(file.keys).items() if count > 1}
            places.update((key, (number, row)) for row, key in enumerate(file.keys))
        self.keys = sorted(places)
        self._ambiguous = {key for key, number in twice.items() if key in places and places[key][0] == number}
        self._file_numbers = np.fromiter((places[key][0] for key in self.keys), dtype=np.int32, count=len(self.keys))
        self._file_rows = np.fromiter((places[key][1] for key in self.keys), dtype=np.int64, count=len(self.keys))

    @classmethod
    def open(cls, path: AnyPath) -> "FeatureStore":
        """The store at `path`, with the rows of an interrupted extraction.

        Raises StoreError if there is none, StoreAccessError if it cannot be opened now, StoreDamageError if a file of
        it is damaged, SpecMismatchError if its parts do not belong together.
        """
        path = Path(path)
        files: list[StoreFile] = []
        for attempt in range(_LISTINGS):
            parts = part_paths(path)  # listed first: a part joined after that is in the main file, or gone
            paths = [*([path] if path.exists() else []), *parts]
            if not paths:
                report_foreign_files(path)
                raise StoreError(f"{path}: no such feature store; `captionmill extract` makes one")
            try:
                files = [read_store_file(file_path) for file_path in paths]
                if parts == part_paths(path):
                    break
            except StoreError:
                if attempt + 1 == _LISTINGS or all(file_path.exists() for file_path in paths):
                    raise
        report_foreign_files(path)
        for file in files[1:]:
            files[0].spec.require(file.spec, mine=str(files[0].path), others=str(file.path))
        return cls(path, files)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, including parts."""
        return sum(file.path.stat().st_size for file in self._files)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a path, which the other process opens."""
        return FeatureStore.open, (self.path,)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        """Whether there is a row for `key`."""
        place = bisect.bisect_left(self.keys, key) if isinstance(key, str) else len(self.keys)
        return place < len(self.keys) and self.keys[place] == key

    def __getitem__(self, key: str) -> Features:
        """The row of one image, [D]; MissingRowError, a KeyError, if there is none, StoreDamageError as `read`."""
        row: Features = self.read([self.position(key)])[0]
        return row

    def position(self, key: str) -> int:
        """The position of `key` in `keys`; MissingRowError, a KeyError, if it has no row."""
        place = bisect.bisect_left(self.keys, key)
        if place == len(self.keys) or self.keys[place] != key:
            raise MissingRowError(f"{self.path}: no row for {key}; `captionmill extract` makes one")
        return place

    def read(self, positions: Positions) -> Features:
        """The rows at `positions`, in that order, in the dtype of the store: [len(positions), D].

        Raises StoreDamageError if one of them differs from its checksum; `verify` finds them all.
        """
        return mean_views(self._read_checked(positions), self.spec.view_count)

    def read_views(self, positions: Positions) -> Features:
        """As `read`, but each view of the images as stored: [len(positions), V, D]."""
        return self._read_checked(positions).reshape(len(positions), self.spec.view_count, self.spec.feature_dim)

    def _read_checked(self, positions: Positions) -> Features:
        rows = self._read_unchecked(positions)
        if damaged := self._find_damaged(positions, rows):
            raise StoreDamageError(f"{self.path}: {describe_damage(damaged)}")
        return rows

    def _read_unchecked(self, positions: Positions) -> Features:
        """The rows at `positions` as stored, [len(positions), VD]."""
        rows = np.empty((len(positions), self.spec.row_length), dtype=self.dtype)
        return self._gather(positions, [file.take_rows for file in self._files], rows)

    def _find_damaged(self, positions: Positions, rows: Features) -> list[str]:
        """The keys of those rows at `positions` that differ from their checksums."""
        keys = [self.keys[position] for position in positions]
        right = checksum_rows(keys, rows, self._sources(positions)) == self.row_checksums(positions)
        if right.all() and not self._ambiguous:
            return []
        return [key for key, is_right in zip(keys, right, strict=True) if not is_right or key in self._ambiguous]

    def sources(self) -> Sources:
        """The source of each row, in the order of `keys`: [N, 3], the fields of `ImageSource`."""
        return self._sources(np.arange(len(self)))

    def source(self, key: str) -> ImageSource:
        """The source of the row of `key`; KeyError if there is none."""
        return ImageSource(*self._sources([self.position(key)])[0].tolist())

    def blocks(self, block_rows: int = _BLOCK_ROWS) -> Iterator[tuple[list[str], Features]]:
        """All rows in key order, as (keys, rows [block_rows, D]); the last block is shorter. Errors as `read`."""
        for start in range(0, len(self), block_rows):
            stop = min(start + block_rows, len(self))
            yield self.keys[start:stop], self.read(np.arange(start, stop))

    def sound_blocks(
        self, positions: Positions | None, block_rows: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], Features, list[str]]]:
        """The rows at `positions`, or all, that are not damaged, block by block in that order.

        Each block is the positions of these [B], the rows [B, D] and the keys of the damaged rows between them.
        """
        wanted = np.arange(len(self)) if positions is None else np.asarray(positions, dtype=np.int64)
        for start in range(0, len(wanted), block_rows):
            block = wanted[start : start + block_rows]
            rows = self._read_unchecked(block)
            if damaged := self._find_damaged(block, rows):
                is_sound = np.array([self.keys[position] not in damaged for position in block.tolist()])
                block, rows = block[is_sound], rows[is_sound]
            yield block, mean_views(rows, self.spec.view_count), damaged

    def digest(self) -> bytes:
        """SHA-256 over the spec, the keys and the rows' checksums: equal for stores with the same content."""
        digest = hashlib.sha256(json.dumps(self.spec.to_json()).encode())
        checksums = self.row_checksums(np.arange(len(self))).tolist()
        for key, checksum in zip(self.keys, checksums, strict=True):
            digest.update(f"{key}\0{checksum}\n".encode())
        return digest.digest()

    def verify(self, keys: Iterable[str] | None = None) -> list[str]:
        """The sorted keys of damaged rows, which differ from their checksums: of all, or of those of `keys`."""
        if keys is None:
            positions = np.arange(len(self))
        else:
            positions = np.array(sorted(self.position(key) for key in keys if key in self), dtype=np.int64)
        damaged: set[str] = set()
        for start in range(0, len(positions), _BLOCK_ROWS):
            block = positions[start : start + _BLOCK_ROWS]
            damaged.update(self._find_damaged(block, self._read_unchecked(block)))
        return sorted(damaged)

    def stored_blocks(self, keys: Sequence[str]) -> Iterator[Block]:
        """The rows of `keys` as stored, with their checksums, so that a damaged row is still recognised later."""
        for start in range(0, len(keys), _BLOCK_ROWS):
            block_keys = list(keys[start : start + _BLOCK_ROWS])
            positions = [self.position(key) for key in block_keys]
            yield block_keys, self._read_unchecked(positions), self.row_checksums(positions), self._sources(positions)

    def _sources(self, positions: Positions) -> Sources:
        sources = np.empty((len(positions), 3), dtype=np.uint64)
        return self._gather(positions, [file.sources.__getitem__ for file in self._files], sources)

    def row_checksums(self, positions: Positions) -> npt.NDArray[np.uint32]:
        """The checksums of the rows at `positions`; each covers the key, the features and the source."""
        return self._gather(
            positions, [file.checksums.__getitem__ for file in self._files], np.empty(len(positions), dtype=np.uint32)
        )

    def _gather(self, positions: Positions, columns: Sequence[Callable[[Any], Column]], gathered: Column) -> Column:
        """`gathered`, filled with the entries at `positions`, each from its file's column: row numbers -> entries."""
        wanted = np.asarray(positions, dtype=np.int64)
        file_numbers, file_rows = self._file_numbers[wanted], self._file_rows[wanted]
        for number in np.unique(file_numbers):
            here = file_numbers == number
            gathered[here] = columns[number](file_rows[here])
        return gathered
