"""Adds rows to a feature store: part files while it works, one file when it is done, whatever happens in between."""

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import filelock
import h5py
import numpy as np

from captionmill.data.atomic import replace_atomically
from captionmill.data.errors import StoreError
from captionmill.data.feature_spec import FeatureSpec
from captionmill.data.feature_store import (
    FORMAT,
    FORMAT_VERSION,
    Block,
    Features,
    FeatureStore,
    StoredDtype,
    checksum_rows,
    parts_dir,
    store_exists,
)
from captionmill.data.image_source import UNKNOWN_SOURCE, ImageSource

ROWS_PER_PART = 1024  # at most this many rows are lost to a kill


class FeatureWriter:
    """Adds rows to a store, a part file at a time; leaving the block joins everything into one file.

    A block left by an error, Ctrl-C included, keeps all rows added so far as parts; the next writer goes on from there.
    """

    def __init__(self, path: Path, spec: FeatureSpec, *, dtype: StoredDtype, made_by: dict[str, str]) -> None:
        """Prepare to add rows made by `spec` to the store at `path`, which may exist.

        Raises SpecMismatchError if it holds rows of another spec, StoreError if they have another dtype or if another
        process is writing to it.
        """
        self.path, self.spec, self.dtype, self._made_by = path, spec, dtype, made_by
        self._keys: list[str] = []
        self._rows: list[Features] = []
        self._sources: list[ImageSource] = []
        self._dropped: set[str] = set()
        _make_folder(parts_dir(path))
        self._lock = filelock.FileLock(parts_dir(path) / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as exc:
            raise StoreError(f"{path}: another process is writing to this store; wait for it to end") from exc
        try:
            self.store = self._check_store()
        except StoreError:
            self._lock.release()
            raise
        numbers = [int(part.stem.removeprefix("part-")) for part in parts_dir(path).glob("part-*.h5")]
        self._next_part = max(numbers, default=0) + 1

    def _check_store(self) -> FeatureStore | None:
        """The rows that are there already."""
        if not store_exists(self.path):
            return None
        store = FeatureStore.open(self.path)
        store.spec.require(self.spec, mine=str(self.path), others="this run")
        if store.dtype != self.dtype:
            raise StoreError(
                f"{self.path} holds {store.dtype} rows, not {self.dtype}: pass --dtype {store.dtype}, or --overwrite"
            )
        return store

    def __enter__(self) -> "FeatureWriter":
        """Start adding."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Keep what was added and, unless an error ended the block, join all into one file."""
        try:
            self.flush()
            if error is None:
                self._join()
        finally:
            self._lock.release()
        if error is None:
            with contextlib.suppress(OSError):  # another process may have begun to write
                (parts_dir(self.path) / ".lock").unlink()
                parts_dir(self.path).rmdir()

    def add(self, keys: Sequence[str], rows: Features, sources: Sequence[ImageSource] | None = None) -> None:
        """Add one row [D] a key, and what it was read from; they are safe once a part is full or `flush` is called.

        A key that has a row already gets the new one in its place.
        """
        if rows.shape != (len(keys), self.spec.feature_dim):
            raise ValueError(
                f"{len(keys)} keys need rows of shape {len(keys), self.spec.feature_dim}, not {rows.shape}"
            )
        if not np.isfinite(rows).all() or (self.dtype == "float16" and np.abs(rows).max(initial=0) > 65504):
            raise StoreError(
                f"features near {keys[0]} are not finite in {self.dtype}: use --dtype float32 or check the weights"
            )
        self._keys += keys
        self._rows.append(rows.astype(self.dtype))
        self._sources += sources if sources is not None else [UNKNOWN_SOURCE] * len(keys)
        if len(self._keys) >= ROWS_PER_PART:
            self.flush()

    def drop(self, keys: Iterable[str]) -> None:
        """Leave the rows of `keys` out of the joined file: their images are not what they were."""
        self._dropped.update(keys)

    def flush(self) -> None:
        """Put the rows added so far on disk as a part of their own."""
        if not self._keys:
            return
        rows = np.concatenate(self._rows)
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        keys = [self._keys[place] for place in order]
        path = parts_dir(self.path) / f"part-{self._next_part:06d}.h5"
        sources = np.array(self._sources, dtype=np.uint64)
        self._write_file(path, len(keys), [(keys, rows[order], checksum_rows(keys, rows[order]), sources[order])])
        self._next_part += 1
        self._keys, self._rows, self._sources = [], [], []

    def _join(self) -> None:
        part_paths = sorted(parts_dir(self.path).glob("part-*.h5"))
        stale = self.store is not None and any(key in self.store for key in self._dropped)
        if not part_paths and not stale:
            return
        store = FeatureStore.open(self.path)
        keys = [key for key in store.keys if key not in self._dropped]
        self._write_file(self.path, len(keys), store.stored_blocks(keys))
        for part_path in part_paths:
            part_path.unlink()

    def _write_file(self, path: Path, row_count: int, blocks: Iterable[Block]) -> None:
        try:
            with replace_atomically(path) as partial_path, h5py.File(partial_path, "w") as file:
                file.attrs["format"] = FORMAT
                file.attrs["format_version"] = FORMAT_VERSION
                file.attrs["spec"] = json.dumps(self.spec.to_json())
                file.attrs["made_by"] = json.dumps(self._made_by)
                all_keys = file.create_dataset("keys", (row_count,), dtype=h5py.string_dtype("utf-8"))
                all_rows = file.create_dataset("features", (row_count, self.spec.feature_dim), dtype=self.dtype)
                all_checksums = file.create_dataset("checksums", (row_count,), dtype="<u4")
                all_sources = file.create_dataset("sources", (row_count, len(UNKNOWN_SOURCE)), dtype="<u8")
                start = 0
                for keys, rows, checksums, sources in blocks:
                    block = slice(start, start + len(keys))
                    all_keys[block], all_rows[block] = keys, rows
                    all_checksums[block], all_sources[block] = checksums, sources
                    start += len(keys)
        except (OSError, RuntimeError) as exc:  # h5py reports a full disk as either
            raise StoreError(
                f"{path}: cannot be written ({exc}); rows already in parts are safe, run again to go on"
            ) from exc


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(f"{path}: cannot be made ({exc.strerror})") from exc
