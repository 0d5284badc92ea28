"""The images of a store that are closest to a query, both as vectors of the matcher.

Rows are read in blocks and only the closest so far are kept: memory does not grow with the number of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from captionmill.data.features.store import FeatureStore, Positions
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.ranking.matcher import Matcher
from captionmill.stages.ranking.ngrams import Integers, Reals
from captionmill.stages.ranking.opened import MatchedStore
from captionmill.stages.ranking.packed import unpack_ranker

BLOCK_ROWS = 512  # stay in the cache while they are scaled and multiplied


@dataclass(frozen=True)
class ClosestRows:
    """The rows of a store that are closest to a query."""

    positions: Integers  # [K]: in the keys of the store; the closest first, of equal ones the first in the store
    cosines: Reals  # [K]
    damaged: tuple[str, ...]
    """The keys of damaged rows, which are left out."""


def load_matcher(opened: MatchedStore) -> Matcher:
    """The matcher of the model; ModelError if it is not sound."""
    ranker = unpack_ranker(opened.ranker, str(opened.folder), len(opened.model.vocabulary))
    assert ranker.matcher is not None  # as `open_matched` saw
    return ranker.matcher


def embedded_blocks(
    store: FeatureStore, matcher: Matcher, positions: Positions | None = None, block_rows: int = BLOCK_ROWS
) -> Iterator[tuple[Integers, Reals, list[str]]]:
    """The blocks of `FeatureStore.sound_blocks` with the matcher's vectors [B, M] instead of the rows."""
    for block, rows, damaged in store.sound_blocks(positions, block_rows):
        yield block, matcher.embed_images(rows), damaged


def find_closest(
    store: FeatureStore,
    matcher: Matcher,
    query: Reals,
    top: int,
    *,
    left_out: int | None = None,
    progress: Progress = no_progress,
) -> ClosestRows:
    """The `top` rows whose vectors have the largest cosine with `query` [M], which has length 1.

    The row at the position `left_out` is not among them.
    """
    positions, cosines = np.empty(0, np.int64), np.empty(0, np.float32)
    damaged: list[str] = []
    done = 0
    for block, vectors, lost in embedded_blocks(store, matcher):
        found = vectors @ query  # [B]
        is_wanted = block != (-1 if left_out is None else left_out)
        positions, cosines = np.append(positions, block[is_wanted]), np.append(cosines, found[is_wanted])
        order = np.lexsort((positions, -cosines))[:top]
        positions, cosines = positions[order], cosines[order]
        damaged += lost
        done += len(block) + len(lost)
        progress("search", done, len(store))
    return ClosestRows(positions, cosines, tuple(damaged))
