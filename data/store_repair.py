"""Takes what is damaged out of a feature store, so that the next extraction makes just that again."""

from dataclasses import dataclass
from pathlib import Path

from captionmill.data.errors import StoreError
from captionmill.data.feature_store import FeatureStore, part_paths, read_store_file
from captionmill.data.feature_writer import FeatureWriter

DAMAGED_SUFFIX = ".damaged"


@dataclass(frozen=True)
class RepairSummary:
    """What was damaged."""

    rows_dropped: tuple[str, ...]
    """Keys whose rows were not as written."""
    files_set_aside: tuple[Path, ...]
    """Files that could not be opened at all, under their new names."""


def repair(path: Path) -> RepairSummary:
    """Drop the damaged rows of the store at `path`; rename its files that cannot be opened to NAME.damaged.

    Raises StoreError if there is no store, if nothing of it can be read, or if another process is writing to it.
    """
    paths = [path] if path.exists() else []
    set_aside = []
    readable = 0
    for file_path in [*paths, *part_paths(path)]:
        try:
            read_store_file(file_path)
            readable += 1
        except StoreError:
            set_aside.append(file_path)
    if not readable:
        FeatureStore.open(path)  # says what is wrong
    for file_path in set_aside:
        file_path.replace(_damaged_path(file_path))
    store = FeatureStore.open(path)
    with FeatureWriter(path, store.spec, dtype=store.dtype, made_by=store.made_by) as writer:
        damaged = writer.store.verify() if writer.store else []
        writer.drop(damaged)
    return RepairSummary(tuple(damaged), tuple(_damaged_path(file_path) for file_path in set_aside))


def _damaged_path(path: Path) -> Path:
    return path.with_name(path.name + DAMAGED_SUFFIX)
