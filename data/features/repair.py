"""Removes damaged rows and files from a feature store; the next extraction makes only these again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captionmill.data.errors import StoreAccessError, StoreDamageError, StoreError
from captionmill.data.features.file import find_unsafe, read_store_file, write_store_file
from captionmill.data.features.parts import DAMAGED_SUFFIX, part_paths
from captionmill.data.features.store import FeatureStore, store_exists
from captionmill.data.features.writer import FeatureWriter, lock_store
from captionmill.data.files import digest_of_file
from captionmill.data.hdf5.check import is_sealed
from captionmill.data.paths import AnyPath
from captionmill.data.regular import open_regular

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class RepairSummary:
    """What was damaged."""

    rows_dropped: tuple[str, ...]
    """Keys whose rows differed from what was written."""
    files_set_aside: tuple[Path, ...]
    """Files that could not be understood at all, under their new names."""


def repair_store(path: AnyPath) -> RepairSummary:
    """Drop the damaged rows of the store at `path`; rename its files that are damaged as a whole to NAME.damaged.

    Raises StoreError, with nothing changed, if there is no store, if none of its files can be read, or if another
    process is writing to it; StoreAccessError if a file cannot be opened now, which is no damage.
    """
    path = Path(path)
    if not store_exists(path):
        FeatureStore.open(path)  # raises: there is none
    with lock_store(path):
        set_aside = _set_damaged_aside(path)
    store = FeatureStore.open(path)
    with FeatureWriter(path, store.spec, dtype=store.dtype, made_by=store.made_by, shard=store.shard) as writer:
        damaged = writer.store.verify() if writer.store else []
        writer.drop(damaged)
    with lock_store(path):
        for file_path in _files_of(path):
            if _seal_of(file_path) is False:
                _write_again(file_path)
    return RepairSummary(tuple(damaged), set_aside)


def require_safe(path: AnyPath) -> None:
    """Raise StoreDamageError if HDF5 cannot be trusted with a file of the store at `path`.

    Files that have a checksum of their bookkeeping are examined whenever they are opened; here also those of earlier
    versions, which have none, in another process.
    """
    if unsafe := find_unsafe([file for file in _files_of(Path(path)) if _seal_of(file) is None]):
        raise StoreDamageError(f"{unsafe[0]}: not a readable feature store (HDF5 hangs or crashes); extract it again")


def _files_of(path: Path) -> list[Path]:
    return [*([path] if path.exists() else []), *part_paths(path)]


def _seal_of(path: Path) -> bool | None:
    try:
        with open_regular(path) as file:
            return is_sealed(file)
    except OSError:  # opening it as a store names the reason
        return True


def _write_again(path: Path) -> None:
    """Write the same content, with a checksum of the bookkeeping that is right."""
    file = read_store_file(path)
    blocks = (
        (file.keys[rows], file.take_rows(np.arange(len(file.keys))[rows]), file.checksums[rows], file.sources[rows])
        for rows in (slice(start, start + _BLOCK_ROWS) for start in range(0, len(file.keys), _BLOCK_ROWS))
    )
    write_store_file(
        path,
        file.spec,
        len(file.keys),
        blocks,
        dtype=file.dtype,
        made_by=file.made_by,
        removed=file.removed,
        shard=file.shard,
    )


def _set_damaged_aside(path: Path) -> tuple[Path, ...]:
    """Rename the files that are damaged, and return the new names; StoreError if no file can be opened."""
    files = _files_of(path)
    unsafe = find_unsafe([file_path for file_path in files if _seal_of(file_path) is None])
    damaged = []
    for file_path in files:
        if file_path in unsafe:
            damaged.append(file_path)
            continue
        try:
            read_store_file(file_path)
        except StoreDamageError:
            _require_readable(file_path)
            damaged.append(file_path)
        except StoreError as exc:
            raise type(exc)(f"{exc}; nothing was changed") from exc
    if len(damaged) == len(files):
        require_safe(path)
        FeatureStore.open(path)  # raises with the reason
    return tuple(file_path.replace(file_path.with_name(file_path.name + DAMAGED_SUFFIX)) for file_path in damaged)


def _require_readable(path: Path) -> None:
    """Raise StoreAccessError unless the storage returns every byte of the file: then its content is to blame."""
    try:
        digest_of_file(path)  # reads every byte
    except OSError as exc:
        raise StoreAccessError(f"{path}: cannot be read now ({exc.strerror}); nothing was changed") from exc
