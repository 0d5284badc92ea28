"""One file of a feature store: its layout, reading and writing. A file is never changed after it has its final name.

Layout of each file: attributes `format`, `format_version`, `spec` (JSON), `made_by` (JSON), and for a finished shard
`shard` (JSON); datasets `keys` (N UTF-8 strings, sorted), `features` (N x D, with V views per image N x VD,
little-endian float16 or float32, contiguous), `checksums` (N x uint32: CRC-32 of the key's UTF-8 bytes, a zero byte,
the row's bytes and the source's bytes), `sources` (N x 3 uint64: the fields of `ImageSource`), and in a part `removed`
(UTF-8 strings): keys whose rows in earlier files no longer count. If a key is in several files, the last part in the
order of names counts. Behind the end of HDF5 is a checksum of its bookkeeping (`data/hdf5/check.py`), which files of
earlier versions lack.
"""

import functools
import json
import os
import re
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.spawn import get_executable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from captionmill.data.errors import StoreAccessError, StoreDamageError, StoreError, one_line
from captionmill.data.features.parts import PART_PREFIX
from captionmill.data.features.rows import RowFile
from captionmill.data.features.shard import Shard
from captionmill.data.features.spec import FeatureSpec, StoredDtype
from captionmill.data.files import replace_atomically, require_space, stamp_of
from captionmill.data.foreign import parse_json, text_of
from captionmill.data.hdf5.check import is_sealed, seal_file
from captionmill.data.hdf5.files import open_hdf5, read_texts, why_not_now
from captionmill.data.hdf5.layout import has_dataset, open_dataset
from captionmill.data.images.read import UNKNOWN_SOURCE
from captionmill.data.regular import open_regular

Features = npt.NDArray[np.floating[Any]]
Sources = npt.NDArray[np.uint64]

FORMAT = "captionmill-features"
FORMAT_VERSION, VIEWS_VERSION = 2, 3
"""Of files with one view per image, which earlier versions read too, and of files with several."""
_UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError)

_SAFE_MEMORY = 4 << 30  # bytes, of addresses; Python, NumPy and HDF5 take a half of it on a machine of many cores
_SAFE_S, _SAFE_RATE = 60.0, 20e6  # seconds; bytes per second
_OPEN_EACH = """
import contextlib, sys
from captionmill.data.features.file import open_each
with contextlib.suppress(ImportError):
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for is_open in open_each(sys.argv[2:]):
    print(flush=True)
"""

_BYTES_BESIDE_A_ROW, _BYTES_BESIDE_ROWS = 100, 65_536  # at most, of names of usual lengths and of HDF5's bookkeeping

Block = tuple[list[str], Features, npt.NDArray[np.uint32], Sources]
"""Keys, their rows [N, VD], checksums [N] and sources [N, 3], as stored in a file."""


@dataclass(frozen=True)
class StoreFile:
    """One HDF5 file of a store. No HDF5 handle stays open and no row is in memory: safe to fork."""

    path: Path
    spec: FeatureSpec
    made_by: dict[str, str]
    keys: list[str]
    dtype: StoredDtype
    take_rows: Callable[[npt.NDArray[np.int64]], Features]  # numbers [M] -> [M, VD]
    checksums: npt.NDArray[np.uint32]  # [N]
    sources: Sources  # [N, 3]
    removed: list[str]
    shard: Shard | None


def write_store_file(
    path: Path,
    spec: FeatureSpec,
    row_count: int,
    blocks: Iterable[Block],
    *,
    dtype: StoredDtype,
    made_by: dict[str, str],
    removed: Sequence[str] = (),
    shard: Shard | None = None,
) -> None:
    """Write one file of a store atomically; `blocks` must be in the order of their keys.

    Raises StoreError if the disk is full or there is no permission.
    """
    row_bytes = spec.row_length * np.dtype(dtype).itemsize + _BYTES_BESIDE_A_ROW
    try:
        with replace_atomically(path) as partial_path:
            require_space(partial_path, row_count * row_bytes + _BYTES_BESIDE_ROWS)
            with _create(partial_path) as file:
                file.attrs["format"] = FORMAT
                file.attrs["format_version"] = FORMAT_VERSION if spec.view_count == 1 else VIEWS_VERSION
                file.attrs["spec"] = json.dumps(spec.to_json())
                file.attrs["made_by"] = json.dumps(made_by)
                if shard is not None:
                    file.attrs["shard"] = json.dumps(asdict(shard))
                if removed:
                    file.create_dataset("removed", data=list(removed), dtype=h5py.string_dtype("utf-8"))
                all_keys = file.create_dataset("keys", (row_count,), dtype=h5py.string_dtype("utf-8"))
                all_rows = file.create_dataset("features", (row_count, spec.row_length), dtype=dtype)
                all_checksums = file.create_dataset("checksums", (row_count,), dtype="<u4")
                all_sources = file.create_dataset("sources", (row_count, len(UNKNOWN_SOURCE)), dtype="<u8")
                start = 0
                for keys, rows, checksums, sources in blocks:
                    block = slice(start, start + len(keys))
                    all_keys[block], all_rows[block] = keys, rows
                    all_checksums[block], all_sources[block] = checksums, sources
                    start += len(keys)
                numbers = [_place_of(dataset) for dataset in (all_rows, all_checksums, all_sources)]
                texts = [_place_of(file[name]) for name in ("keys", "removed") if name in file]
            seal_file(partial_path, numbers, texts)
    except (OSError, RuntimeError) as exc:  # h5py reports a full disk as either, with pages of detail
        said = re.search(r"error message = '([^']+)'", str(exc))
        short = said[1] if said else getattr(exc, "strerror", None)
        reason = short.lower() if short else one_line(exc)
        raise StoreError(
            f"{path}: cannot be written ({reason}); rows already in parts are safe, run again to resume"
        ) from exc


def _place_of(dataset: h5py.Dataset) -> tuple[int, int]:
    """Where the data of `dataset` begin in its file, and their length, bytes."""
    return dataset.id.get_offset() or 0, dataset.id.get_storage_size()


@contextmanager
def _create(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, complete on disk when the block ends; closed after an error too.

    HDF5 2.0 cannot close a file that it cannot write to: the file would still occupy the full disk after its name is
    removed, and the process would end in a segmentation fault. So after an error, the remaining writes go to the null
    device. That does not always help, which is why `require_space` comes before.
    """
    file = h5py.File(path, "w", locking=False)  # no other program knows this file, and some storage has no locks
    try:
        yield file
        file.flush()
    except BaseException:
        with suppress(OSError, RuntimeError):
            if os.name != "nt":  # on Windows, HDF5's descriptors may not be Python's
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, file.id.get_vfd_handle(), inheritable=False)
                os.close(nowhere)
            file.close()
        raise
    file.close()


def checksum_rows(keys: Sequence[str], rows: Features, sources: Sources) -> npt.NDArray[np.uint32]:
    """CRC-32 of each key, its row and its source, [N]."""
    return np.fromiter(
        (
            zlib.crc32(source.tobytes(), zlib.crc32(row.tobytes(), zlib.crc32(key.encode() + b"\0")))
            for key, row, source in zip(keys, rows, sources.astype("<u8", copy=False), strict=True)
        ),
        dtype=np.uint32,
        count=len(keys),
    )


def read_store_file(path: Path) -> StoreFile:
    """One file of a store.

    Raises StoreAccessError if it cannot be opened now, StoreDamageError if it is damaged, StoreError if it is of
    another program or version.
    """
    inode = None
    try:
        inode = path.stat().st_ino
        with open_regular(path) as plain:
            is_whole = is_sealed(plain)
        if is_whole is False and not _is_safe(path, stamp_of(path)):
            raise ValueError("its bookkeeping is not what was written")
        with open_hdf5(path) as file:
            read = _read_open_file(path, file)
        if path.stat().st_ino == inode:
            return read
    except _UNREADABLE as exc:
        if not _was_replaced(path, inode):
            if isinstance(exc, StoreError):
                raise
            if reason := why_not_now(exc):
                raise StoreAccessError(f"{path}: {reason}") from exc
            raise StoreDamageError(f"{path}: not a readable feature store ({one_line(exc)}); extract it again") from exc
    return read_store_file(path)  # a writer has just replaced it


def find_unsafe(paths: Sequence[Path]) -> list[Path]:
    """Those of the HDF5 files at `paths` that keep HDF5 busy for ever, crash it, or make it ask for all memory.

    Each is opened by another process, as `read_store_file` would, with limits of time and memory. Files of versions
    before that have no checksum of their bookkeeping, and HDF5 trusts what it reads there.
    """
    left, unsafe = list(paths), []
    while left:
        size = sum(path.stat().st_size for path in left)
        command = [get_executable(), "-P", "-c", _OPEN_EACH, str(_SAFE_MEMORY + 8 * size), *map(str, left)]
        try:
            ended = subprocess.run(command, capture_output=True, timeout=_SAFE_S + size / _SAFE_RATE, check=False)
            opened = ended.stdout
        except subprocess.TimeoutExpired as exc:
            opened = exc.stdout or b""
        count = opened.count(b"\n")
        unsafe += left[count : count + 1]
        left = left[count + 1 :]
    return unsafe


@functools.lru_cache(maxsize=256)
def _is_safe(path: Path, _: tuple[int, int, int] | None) -> bool:
    """Whether HDF5 can be trusted with the file that has this stamp."""
    return not find_unsafe([path])


def open_each(paths: Sequence[str]) -> Iterator[bool]:
    """True for each of the files at `paths` after it was opened; MemoryError for one that asks for too much memory."""
    for path in map(Path, paths):
        try:
            with open_hdf5(path) as file:
                _read_open_file(path, file)
        except _UNREADABLE as exc:
            if isinstance(exc, MemoryError) or "memory allocation failed" in str(exc):
                raise MemoryError from exc
        yield True


def _was_replaced(path: Path, inode: int | None) -> bool:
    try:
        return inode is not None and path.stat().st_ino != inode
    except OSError:
        return False


def _read_open_file(path: Path, file: h5py.File) -> StoreFile:
    if file.attrs.get("format") != FORMAT:
        raise StoreError(f"{path}: an HDF5 file, but not a captionmill feature store")
    if (version := file.attrs["format_version"]) not in (FORMAT_VERSION, VIEWS_VERSION):
        raise StoreError(
            f"{path}: format version {version}, and this captionmill reads {FORMAT_VERSION} and {VIEWS_VERSION}"
        )
    spec = FeatureSpec.from_json(parse_json(file.attrs["spec"]))
    made_by = {name: text_of(value) for name, value in parse_json(file.attrs["made_by"]).items()}
    keys = read_texts(open_dataset(file, "keys", ("text",), 1, path), path)
    removed: list[str] = []
    if has_dataset(file, "removed"):
        removed = read_texts(open_dataset(file, "removed", ("text",), 1, path), path)
    rows = open_dataset(file, "features", ("<f2", "<f4"), 2, path)
    checksums = open_dataset(file, "checksums", ("<u4",), 1, path)
    sources = open_dataset(file, "sources", ("<u8",), 2, path)
    shapes = (rows.shape, checksums.shape, sources.shape)
    if shapes != ((len(keys), spec.row_length), (len(keys),), (len(keys), 3)):
        raise StoreDamageError(f"{path}: {len(keys)} keys but features of shape {rows.shape}; extract it again")
    shard = Shard.from_json(parse_json(file.attrs["shard"])) if "shard" in file.attrs else None
    dtype: StoredDtype = "float16" if rows.dtype.itemsize == 2 else "float32"
    if (offset := rows.id.get_offset()) is None:  # no rows
        take_rows = rows[:].__getitem__
    else:
        is_main = not path.name.startswith(PART_PREFIX)  # names of parts are never reused
        take_rows = RowFile(path, rows.dtype, spec.row_length, offset, keep_open=is_main).take
    return StoreFile(path, spec, made_by, keys, dtype, take_rows, checksums[:], sources[:], removed, shard)
