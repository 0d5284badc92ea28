"""Adds rows to a feature store: in part files while it works, joined into few files when it is done.

Part files apply in the order of their names, and joining them never changes the content of the store. After joining
into the main file, a part that still exists only repeats rows of the main file. After joining into one part, the joined
part overrides the others, which are deleted in order. So an interruption between two of these steps changes no row.
"""

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from captionmill.data.errors import StoreError
from captionmill.data.features.file import (
    Block,
    Features,
    checksum_rows,
    read_store_file,
    write_store_file,
)
from captionmill.data.features.parts import PART_PREFIX, FileChanged, NewParts, part_paths, parts_dir
from captionmill.data.features.shard import Shard
from captionmill.data.features.spec import FeatureSpec, StoredDtype
from captionmill.data.features.store import FeatureStore, store_exists
from captionmill.data.files import remove_leftovers
from captionmill.data.images.read import UNKNOWN_SOURCE, ImageSource
from captionmill.data.locks import hold_lock
from captionmill.data.paths import AnyPath
from captionmill.data.regular import make_own_folder

ROWS_PER_PART = 1024
_LOCK_NAME = ".lock"
_JOIN_SHARE = 0.25  # parts with this share of the main file's rows are joined into it: each row is rewritten few times
_SMALL_ROWS = 20_000  # parts always join a main file this small: rewriting it takes a second


class PartWriter:
    """Adds part files to a store, in any process: no lock, no joining. Rows are safe once a part is full or flushed."""

    def __init__(
        self,
        path: Path,
        prefix: str,
        spec: FeatureSpec,
        *,
        dtype: StoredDtype,
        made_by: dict[str, str],
        flush_every: int = ROWS_PER_PART,
        on_change: FileChanged | None = None,
    ) -> None:
        """Prepare parts of the store at `path`, whose names begin with `prefix` (`NewParts.prefix`)."""
        self._path, self._spec, self._dtype, self._made_by = path, spec, dtype, made_by
        self._flush_every, self._on_change = flush_every, on_change
        self._prefix = prefix
        self._token = secrets.token_hex(4)  # a task that runs twice must not overwrite its own parts
        self._part_count = 0
        self._keys: list[str] = []
        self._rows: list[Features] = []
        self._sources: list[ImageSource] = []
        self._removed: set[str] = set()

    def __enter__(self) -> "PartWriter":
        """Start adding."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Keep what was added, also after an error."""
        self.flush()

    def add(self, keys: Sequence[str], rows: Features, sources: Sequence[ImageSource] | None = None) -> None:
        """Add one row [VD] per key, its views one after the other, and its source.

        The new row of a key replaces its old one. Raises StoreError for rows that are not finite.
        """
        if rows.shape != (len(keys), self._spec.row_length):
            raise ValueError(
                f"{len(keys)} keys need rows of shape {len(keys), self._spec.row_length}, not {rows.shape}"
            )
        if not np.isfinite(rows).all() or (self._dtype == "float16" and np.abs(rows).max(initial=0) > 65504):
            raise StoreError(
                f"features near {keys[0]} are not finite in {self._dtype}: use `dtype` float32 or check the weights"
            )
        self._removed.difference_update(keys)
        self._keys += keys
        self._rows.append(rows.astype(self._dtype))
        self._sources += sources if sources is not None else [UNKNOWN_SOURCE] * len(keys)
        if len(self._keys) >= self._flush_every:
            self.flush()

    def drop(self, keys: Iterable[str]) -> None:
        """Remove the rows that `keys` have in earlier files."""
        self._removed.update(keys)

    def flush(self) -> None:
        """Write what was added and dropped so far to disk, as a new part."""
        if not self._keys and not self._removed:
            return
        last = {key: place for place, key in enumerate(self._keys)}
        keys = sorted(last)
        order = [last[key] for key in keys]
        rows = np.concatenate(self._rows)[order] if keys else np.empty((0, self._spec.row_length), self._dtype)
        sources = np.array(self._sources, dtype=np.uint64).reshape(-1, len(UNKNOWN_SOURCE))[order]
        self._part_count += 1
        path = parts_dir(self._path) / f"{self._prefix}-{self._part_count:06d}-{self._token}.h5"
        block = (keys, rows, checksum_rows(keys, rows, sources), sources)
        write_store_file(
            path,
            self._spec,
            len(keys),
            [block],
            dtype=self._dtype,
            made_by=self._made_by,
            removed=sorted(self._removed),
        )
        self._keys, self._rows, self._sources, self._removed = [], [], [], set()
        if self._on_change:
            self._on_change(path)


class FeatureWriter:
    """Adds rows to a store that is locked against other writers. Leaving the block joins the parts.

    After an error or Ctrl-C, all rows added so far stay in parts, and the next writer resumes from there.
    """

    def __init__(
        self,
        path: AnyPath,
        spec: FeatureSpec,
        *,
        dtype: StoredDtype,
        made_by: dict[str, str],
        flush_every: int = ROWS_PER_PART,
        shard: Shard | None = None,
        in_one_file: bool = False,
        on_change: FileChanged | None = None,
    ) -> None:
        """Prepare to add rows made by `spec` to the store at `path`, which may exist.

        `shard` is this part of a sharded extraction; it is written when the block ends without an error. With
        `in_one_file`, all rows are then joined into the main file, however few are new. Raises SpecMismatchError if the
        store holds rows of another spec, StoreError if they have another dtype or if another process is writing to it.
        """
        path = Path(path)
        self.path, self.spec, self.dtype, self.shard = path, spec, dtype, shard
        self.made_by = made_by
        """Written into the files as their maker; entries may be added until the block ends."""
        self._in_one_file = in_one_file
        self._lock = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_store(path))
            self.store = self._check_store()
            self._remove_partials()
            self._lock = stack.pop_all()  # no error so far: keep the lock until the block ends
        self.new_parts = NewParts.of(path, on_change)
        """For the tasks of this writer, in any process."""
        self._parts = PartWriter(
            path,
            self.new_parts.prefix(0),
            spec,
            dtype=dtype,
            made_by=made_by,
            flush_every=flush_every,
            on_change=on_change,
        )
        self.add, self.drop, self.flush = self._parts.add, self._parts.drop, self._parts.flush

    def _remove_partials(self) -> None:
        """Remove unfinished files of writers that were killed."""
        for partial_path in parts_dir(self.path).glob(f".{PART_PREFIX}*.partial"):
            partial_path.unlink(missing_ok=True)

    def _check_store(self) -> FeatureStore | None:
        """The existing store, if there is one; StoreError if its rows are of another spec or dtype."""
        if not store_exists(self.path):
            return None
        store = FeatureStore.open(self.path)
        store.spec.require_run(self.spec, self.path)
        if store.dtype != self.dtype:
            raise StoreError(
                f"{self.path} holds {store.dtype} rows, not {self.dtype}: pass `dtype` {store.dtype}, or `overwrite`"
            )
        return store

    def __enter__(self) -> "FeatureWriter":
        """Start adding."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Keep what was added and, without an error, join the parts."""
        try:
            self.flush()
            if error is None:
                self._remove_partials()
                self._join()
        finally:
            self._lock.close()

    def _join(self) -> None:
        """Join all parts into the main file, or into one part if they are small compared with it."""
        parts = part_paths(self.path)
        main = read_store_file(self.path) if self.path.exists() else None
        if not parts and (main.shard if main else None) == self.shard:
            return
        if not parts and main is None:  # a shard without rows: merging needs its file all the same
            self._write(self.path, 0, ())
            return
        files = [read_store_file(part) for part in parts]
        changed = sum(len(file.keys) + len(file.removed) for file in files)
        to_main = main is None or len(main.keys) <= _SMALL_ROWS or changed >= _JOIN_SHARE * len(main.keys)
        if to_main or self._in_one_file:
            store = FeatureStore.open(self.path)
            self._write(self.path, len(store), store.stored_blocks(store.keys))
        elif len(parts) > 1:
            joined = FeatureStore(parts[-1], files)
            removed = {key for file in files for key in (*file.removed, *file.keys)}.difference(joined.keys)
            # a new name, next in order: names of parts are never reused, as a reader may still open an old one
            joined_path = parts[-1].with_name(f"{parts[-1].stem}_joined.h5")
            self._write(joined_path, len(joined), joined.stored_blocks(joined.keys), removed=sorted(removed))
        else:
            return
        for part in parts:
            part.unlink()
            if self.new_parts.on_change:
                self.new_parts.on_change(part)

    def _write(self, path: Path, row_count: int, blocks: Iterable[Block], removed: Sequence[str] = ()) -> None:
        shard = self.shard if path == self.path else None
        write_store_file(
            path,
            self.spec,
            row_count,
            blocks,
            dtype=self.dtype,
            made_by=self.made_by,
            removed=removed,
            shard=shard,
        )
        if self.new_parts.on_change:
            self.new_parts.on_change(path)


@contextlib.contextmanager
def lock_store(path: Path) -> Iterator[None]:
    """Lock the store at `path` against other writers during the block.

    Raises StoreError if another process is writing to it. `data/locks.py` describes what frees the lock.
    """
    folder = parts_dir(path)
    try:
        make_own_folder(folder)
    except OSError as exc:
        raise StoreError(f"{folder}: cannot be written to ({exc.strerror})") from exc
    remove_leftovers(path.parent)  # also if there will be nothing to write
    lock_path = folder / _LOCK_NAME
    busy = StoreError(f"{path}: another process is writing to this store; wait for it to end")
    with contextlib.ExitStack() as held:
        held.enter_context(hold_lock(lock_path, busy))
        if not lock_path.exists():  # its last holder has just removed it
            held.close()
            folder.mkdir(exist_ok=True)
            held.enter_context(hold_lock(lock_path, busy))
        try:
            yield
        finally:
            if not part_paths(path):
                with contextlib.suppress(OSError):  # files of other programs may lie there
                    lock_path.unlink()
                    folder.rmdir()
    if not part_paths(path):
        with contextlib.suppress(OSError):  # without locks, the holder's file was there until now
            folder.rmdir()
