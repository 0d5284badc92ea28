"""Removes damaged rows and files from a feature store; the next extraction makes only these again."""

from dataclasses import dataclass
from pathlib import Path

from captionmill.data.errors import StoreError
from captionmill.data.features.file import read_store_file
from captionmill.data.features.store import FeatureStore, part_paths, store_exists
from captionmill.data.features.writer import FeatureWriter, lock_store
from captionmill.data.paths import AnyPath

DAMAGED_SUFFIX = ".damaged"


@dataclass(frozen=True)
class RepairSummary:
    """What was damaged."""

    rows_dropped: tuple[str, ...]
    """Keys whose rows differed from what was written."""
    files_set_aside: tuple[Path, ...]
    """Files that could not be opened at all, under their new names."""


def repair_store(path: AnyPath) -> RepairSummary:
    """Drop the damaged rows of the store at `path`; rename its files that cannot be opened to NAME.damaged.

    Raises StoreError if there is no store, if none of its files can be read, or if another process is writing to it.
    """
    path = Path(path)
    if not store_exists(path):
        FeatureStore.open(path)  # raises: there is none
    with lock_store(path):
        set_aside = _set_unreadable_aside(path)
    store = FeatureStore.open(path)
    with FeatureWriter(path, store.spec, dtype=store.dtype, made_by=store.made_by, shard=store.shard) as writer:
        damaged = writer.store.verify() if writer.store else []
        writer.drop(damaged)
    return RepairSummary(tuple(damaged), set_aside)


def _set_unreadable_aside(path: Path) -> tuple[Path, ...]:
    """Rename the files that cannot be opened, and return the new names; StoreError if no file can be opened."""
    files = [*([path] if path.exists() else []), *part_paths(path)]
    unreadable = []
    for file_path in files:
        try:
            with file_path.open("rb") as file:
                file.read(1)
        except OSError as exc:
            raise StoreError(f"{file_path}: cannot be opened ({exc.strerror}); nothing was changed") from exc
        try:
            read_store_file(file_path)
        except StoreError as exc:
            if exc.__cause__ is None:  # undamaged, but of another program or version
                raise
            unreadable.append(file_path)
    if len(unreadable) == len(files):
        FeatureStore.open(path)  # raises with the reason
    return tuple(file_path.replace(file_path.with_name(file_path.name + DAMAGED_SUFFIX)) for file_path in unreadable)
