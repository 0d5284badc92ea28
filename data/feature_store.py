"""The feature store: one row of numbers an image in HDF5, by key, bound to one `FeatureSpec` for life.

A store is the file `features.h5` and, while an extraction is under way or was interrupted, part files of the same
layout in the folder `features.h5.parts/`. No HDF5 file is ever changed once it has its name: a part is written aside
and renamed, and at the end all parts and the old file become one new file, which takes the old one's place in one
rename. So a process killed at any instant leaves a store that opens, and loses only rows not yet in a part.

Layout of each file: attributes `format`, `format_version`, `spec` (JSON), `made_by` (JSON); datasets `keys` (N UTF-8
strings, sorted), `features` (N x D, little-endian float16 or float32, contiguous), `checksums` (N x uint32: CRC-32 of
the key's UTF-8 bytes, a zero byte and the row's bytes), `sources` (N x 3 uint64: the fields of `ImageSource`).
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from captionmill.data.errors import StoreError
from captionmill.data.feature_spec import FeatureSpec
from captionmill.data.image_source import ImageSource

StoredDtype = Literal["float16", "float32"]
Features = npt.NDArray[np.floating[Any]]
Sources = npt.NDArray[np.uint64]

FORMAT = "captionmill-features"
FORMAT_VERSION = 1
_BLOCK_ROWS = 4096


def parts_dir(path: Path) -> Path:
    """The folder of part files that belongs to the store at `path`."""
    return path.with_name(f"{path.name}.parts")


def store_exists(path: Path) -> bool:
    """Whether there is a store at `path`, finished or not."""
    return path.exists() or any(parts_dir(path).glob("part-*.h5"))


def delete_store(path: Path) -> None:
    """Remove the store at `path`, parts and all."""
    path.unlink(missing_ok=True)
    shutil.rmtree(parts_dir(path), ignore_errors=True)


Block = tuple[list[str], Features, npt.NDArray[np.uint32], Sources]
"""Keys, their rows [N, D], checksums [N] and sources [N, 3], as they stand in a file."""


@dataclass(frozen=True)
class _StoreFile:
    """One HDF5 file of a store. The rows are mapped, not read, and no HDF5 handle stays open: safe under fork."""

    path: Path
    spec: FeatureSpec
    made_by: dict[str, str]
    keys: list[str]
    rows: Features  # [N, D]
    checksums: npt.NDArray[np.uint32]  # [N]
    sources: Sources  # [N, 3]


class FeatureStore:
    """A store opened for reading: rows by key, or by position in `keys`. Cheap to open, flat in memory."""

    def __init__(self, path: Path, files: Sequence[_StoreFile]) -> None:
        """Use `FeatureStore.open`."""
        self.path = path
        self.spec = files[0].spec
        self.dtype: StoredDtype = "float16" if files[0].rows.dtype.itemsize == 2 else "float32"
        self.made_by = files[0].made_by
        self.part_count = sum(file.path != path for file in files)
        self._files = files
        places = {key: (number, row) for number, file in enumerate(files) for row, key in enumerate(file.keys)}
        self.keys = sorted(places)
        self._positions = {key: position for position, key in enumerate(self.keys)}
        self._file_numbers = np.fromiter((places[key][0] for key in self.keys), dtype=np.int32, count=len(self.keys))
        self._file_rows = np.fromiter((places[key][1] for key in self.keys), dtype=np.int64, count=len(self.keys))

    @classmethod
    def open(cls, path: Path) -> "FeatureStore":
        """The store at `path`, the rows of an interrupted extraction included.

        Raises StoreError if there is none or it cannot be read, SpecMismatchError if its parts do not belong together.
        """
        path = Path(path)
        paths = [path] if path.exists() else []
        paths += sorted(parts_dir(path).glob("part-*.h5"))
        if not paths:
            raise StoreError(
                f"{path}: no such feature store; make it with `captionmill extract IMAGES --output {path}`"
            )
        files = [_read_file(file_path) for file_path in paths]
        for file in files[1:]:
            files[0].spec.require(file.spec, mine=str(files[0].path), others=str(file.path))
        return cls(path, files)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, parts included."""
        return sum(file.path.stat().st_size for file in self._files)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as a path."""
        return FeatureStore.open, (self.path,)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        """Whether there is a row for `key`."""
        return key in self._positions

    def __getitem__(self, key: str) -> Features:
        """The row of one image, [D]; KeyError if there is none."""
        row: Features = self.read([self._positions[key]])[0]
        return row

    def position(self, key: str) -> int:
        """Where `key` stands in `keys`; KeyError if it has no row."""
        return self._positions[key]

    def read(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> Features:
        """The rows at `positions`, in that order, as stored: [len(positions), D]."""
        wanted = np.asarray(positions, dtype=np.int64)
        rows = np.empty((len(wanted), self.spec.feature_dim), dtype=self.dtype)
        file_numbers, file_rows = self._file_numbers[wanted], self._file_rows[wanted]
        for number in np.unique(file_numbers):
            here = file_numbers == number
            rows[here] = self._files[number].rows[file_rows[here]]
        return rows

    def source(self, key: str) -> ImageSource:
        """What the row of `key` was read from; KeyError if there is none."""
        return ImageSource(*self._sources([self._positions[key]])[0].tolist())

    def blocks(self, block_rows: int = _BLOCK_ROWS) -> Iterator[tuple[list[str], Features]]:
        """All rows in key order, as (keys, rows [block_rows, D]); the last block is shorter."""
        for start in range(0, len(self), block_rows):
            stop = min(start + block_rows, len(self))
            yield self.keys[start:stop], self.read(np.arange(start, stop))

    def digest(self) -> bytes:
        """SHA-256 over the spec, the keys and the rows' checksums: equal for stores of equal content."""
        digest = hashlib.sha256(json.dumps(self.spec.to_json()).encode())
        for key, checksum in zip(self.keys, self._row_checksums(range(len(self))), strict=True):
            digest.update(f"{key}\0{checksum}\n".encode())
        return digest.digest()

    def verify(self) -> list[str]:
        """The keys of rows whose bytes are not those that were written."""
        damaged, start = [], 0
        for keys, rows in self.blocks():
            right = checksum_rows(keys, rows) == self._row_checksums(range(start, start + len(keys)))
            damaged += [keys[place] for place in np.flatnonzero(~right)]
            start += len(keys)
        return damaged

    def _sources(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> Sources:
        places = zip(self._file_numbers[positions], self._file_rows[positions], strict=True)
        return np.array([self._files[number].sources[row] for number, row in places], dtype=np.uint64).reshape(-1, 3)

    def stored_blocks(self, keys: Sequence[str]) -> Iterator[Block]:
        """The rows of `keys` as they stand in the files, checksums included: a damaged row stays known as damaged."""
        for start in range(0, len(keys), _BLOCK_ROWS):
            block_keys = list(keys[start : start + _BLOCK_ROWS])
            positions = [self._positions[key] for key in block_keys]
            yield block_keys, self.read(positions), self._row_checksums(positions), self._sources(positions)

    def _row_checksums(self, positions: Sequence[int]) -> npt.NDArray[np.uint32]:
        places = zip(self._file_numbers[positions], self._file_rows[positions], strict=True)
        return np.fromiter((self._files[number].checksums[row] for number, row in places), np.uint32, len(positions))


def checksum_rows(keys: Sequence[str], rows: Features) -> npt.NDArray[np.uint32]:
    """CRC-32 of each key and its row, [N]."""
    return np.fromiter(
        (zlib.crc32(row.tobytes(), zlib.crc32(key.encode() + b"\0")) for key, row in zip(keys, rows, strict=True)),
        dtype=np.uint32,
        count=len(keys),
    )


def _read_file(path: Path) -> _StoreFile:
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise StoreError(f"{path}: an HDF5 file, but not a captionmill feature store")
            if file.attrs["format_version"] != FORMAT_VERSION:
                version = file.attrs["format_version"]
                raise StoreError(f"{path}: format version {version}, and this captionmill reads {FORMAT_VERSION}")
            spec = FeatureSpec.from_json(json.loads(file.attrs["spec"]))
            made_by = json.loads(file.attrs["made_by"])
            keys = list(file["keys"].asstr()[:])
            rows, checksums, sources = file["features"], file["checksums"][:], file["sources"][:]
            if rows.shape != (len(keys), spec.feature_dim) or checksums.shape != (len(keys),):
                raise StoreError(f"{path}: {len(keys)} keys but features of shape {rows.shape}; extract it again")
            if (offset := rows.id.get_offset()) is None:  # another tool wrote it anew in chunks
                return _StoreFile(path, spec, made_by, keys, rows[:], checksums, sources)
            mapped = np.memmap(path, mode="r", dtype=rows.dtype, shape=rows.shape, offset=offset)
            return _StoreFile(path, spec, made_by, keys, mapped, checksums, sources)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as exc:
        if isinstance(exc, StoreError):
            raise
        raise StoreError(f"{path}: not a readable feature store ({_first_words(exc)}); extract it again") from exc


def _first_words(exc: BaseException) -> str:
    """HDF5's reason without its pages of particulars."""
    return " ".join(str(exc).split())[:120]
