"""Takes what is damaged out of a feature store, so that the next extraction makes just that again."""

from dataclasses import dataclass
from pathlib import Path

from captionmill.data.errors import StoreError
from captionmill.data.features.file import read_store_file
from captionmill.data.features.store import FeatureStore, part_paths, store_exists
from captionmill.data.features.writer import FeatureWriter, lock_store

DAMAGED_SUFFIX = ".damaged"


@dataclass(frozen=True)
class RepairSummary:
    """What was damaged."""

    rows_dropped: tuple[str, ...]
    """Keys whose rows were not as written."""
    files_set_aside: tuple[Path, ...]
    """Files that could not be opened at all, under their new names."""


def repair_store(path: Path) -> RepairSummary:
    """Drop the damaged rows of the store at `path`; rename its files that cannot be opened to NAME.damaged.

    Raises StoreError if there is no store, if nothing of it can be read, or if another process is writing to it.
    """
    if not store_exists(path):
        FeatureStore.open(path)  # says that there is none
    with lock_store(path):
        set_aside = _set_unreadable_aside(path)
    store = FeatureStore.open(path)
    with FeatureWriter(path, store.spec, dtype=store.dtype, made_by=store.made_by, shard=store.shard) as writer:
        damaged = writer.store.verify() if writer.store else []
        writer.drop(damaged)
    return RepairSummary(tuple(damaged), set_aside)


def _set_unreadable_aside(path: Path) -> tuple[Path, ...]:
    """The new names of the files that cannot be opened; StoreError if there is no other."""
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
            if exc.__cause__ is None:  # sound, and of another program or version
                raise
            unreadable.append(file_path)
    if len(unreadable) == len(files):
        FeatureStore.open(path)  # says what is wrong
    return tuple(file_path.replace(file_path.with_name(file_path.name + DAMAGED_SUFFIX)) for file_path in unreadable)
