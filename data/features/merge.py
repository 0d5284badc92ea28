"""Merges feature stores into one: the shards of an array job, or any stores of the same network."""

import heapq
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from captionmill.data.errors import StoreError
from captionmill.data.features.file import Block, write_store_file
from captionmill.data.features.spec import join_engines
from captionmill.data.features.store import FeatureStore, describe_damage, replace_store, store_exists
from captionmill.data.features.writer import lock_store
from captionmill.data.paths import AnyPath, as_paths

_SHOWN = 5
_logger = logging.getLogger(__name__)
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class MergeSummary:
    """What was merged."""

    rows: int
    stores: int
    damaged: tuple[str, ...] = ()
    """Keys of rows that were damaged before, and are known as damaged in the new store too."""


def merge_stores(paths: Sequence[AnyPath], output: AnyPath, *, overwrite: bool = False) -> MergeSummary:
    """Write the rows of the stores at `paths` as one store `output`, which appears only when it is complete.

    Damaged rows are copied as they are, with a warning. Raises SpecMismatchError for stores of differing networks or
    preprocessing; StoreError for differing dtypes, for an image in two stores, for shards that are missing, unfinished
    or from different lists, and for an `output` that exists (unless `overwrite`) or is one of the stores.
    """
    stores, output = as_paths(paths), Path(output)
    if output.resolve() in {path.resolve() for path in stores}:
        raise StoreError(f"{output}: is one of the stores to merge; name another output")
    with lock_store(output):
        return _merge(stores, output, overwrite=overwrite)


def _merge(paths: Sequence[Path], output: Path, *, overwrite: bool) -> MergeSummary:
    if store_exists(output) and not overwrite:
        raise StoreError(f"{output}: exists already; pass `overwrite` to replace it")
    stores = [FeatureStore.open(path) for path in paths]
    for store in stores[1:]:
        stores[0].spec.require(store.spec, mine=str(stores[0].path), others=str(store.path))
        if store.dtype != stores[0].dtype:
            raise StoreError(f"{stores[0].path} holds {stores[0].dtype} rows, and {store.path} {store.dtype} rows")
    _require_whole(stores)
    _require_apart(stores)
    rows = sum(map(len, stores))
    first = stores[0]
    made_by = first.made_by | join_engines(store.made_by for store in stores)
    merged = output.with_name(f".{output.name}.new")
    write_store_file(merged, first.spec, rows, _merged_blocks(stores), dtype=first.dtype, made_by=made_by)
    replace_store(merged, output)
    damaged = FeatureStore.open(output).verify()
    if damaged:
        _logger.warning("%s: %s", output, describe_damage(damaged))
    return MergeSummary(rows, len(stores), tuple(damaged))


def _require_whole(stores: Sequence[FeatureStore]) -> None:
    """Raise StoreError unless the shards among `stores` are finished, from one list, and none is missing."""
    shards = [store.shard for store in stores if store.shard is not None]
    if not shards:
        return
    for store in stores:
        if store.shard is None:
            raise StoreError(f"{store.path}: an unfinished shard, or no shard at all; finish its extraction first")
        if (store.shard.count, store.shard.list_sha256) != (shards[0].count, shards[0].list_sha256):
            raise StoreError(f"{store.path} and {stores[0].path} are shards of different lists of images")
        if len(store) + store.shard.failed < store.shard.images:
            raise StoreError(
                f"{store.path}: {len(store):,} rows and {store.shard.failed:,} failures of {store.shard.images:,} "
                "images; run its extraction again"
            )
    count, present = shards[0].count, {shard.index for shard in shards}
    if missing_count := count - len(present):
        first = itertools.islice((index for index in range(1, count + 1) if index not in present), _SHOWN)
        listed = ", ".join(map(str, first)) + (", ..." if missing_count > _SHOWN else "")
        raise StoreError(f"{missing_count} of {count} shards missing: {listed}")


def _require_apart(stores: Sequence[FeatureStore]) -> None:
    """Raise StoreError if an image is in two stores."""
    twice = [key for key, following in pairwise(heapq.merge(*(store.keys for store in stores))) if key == following]
    if twice:
        listed = ", ".join(twice[:_SHOWN]) + (", ..." if len(twice) > _SHOWN else "")
        raise StoreError(f"{len(twice):,} images are in two of the stores: {listed}")


def _merged_blocks(stores: Sequence[FeatureStore]) -> Iterator[Block]:
    """All rows in the order of their keys, as stored in the files."""
    tagged = heapq.merge(*(zip(store.keys, itertools.repeat(number)) for number, store in enumerate(stores)))
    while merged := list(itertools.islice(tagged, _BLOCK_ROWS)):
        keys = [key for key, _ in merged]
        numbers = np.array([number for _, number in merged])
        rows = np.empty((len(keys), stores[0].spec.row_length), stores[0].dtype)
        checksums, sources = np.empty(len(keys), np.uint32), np.empty((len(keys), 3), np.uint64)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            for _, *block in stores[number].stored_blocks([keys[place] for place in places]):
                rows[places], checksums[places], sources[places] = block
        yield keys, rows, checksums, sources
