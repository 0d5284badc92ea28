"""The images of a store that are closest to a query, both as vectors of the matcher.

Rows are read in blocks and only the closest so far are kept: memory does not grow with the number of images. A row
whose cosine cannot be among the largest is not multiplied by the whole matrix of the matcher.
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
DIRECTIONS = 32  # of Flickr8k's images one in a hundred then needs its cosine; twice as many directions halve that
_MARGIN = 1e-3  # of a bound: more than rounding makes of it
_NEAR_MEAN = 1e-3  # share of the sums from which their difference is rounding
_DECIMALS = 5  # of a cosine: equal rows differ in the eighth, by the rows that are multiplied beside them


@dataclass(frozen=True)
class ClosestRows:
    """The rows of a store that are closest to a query."""

    positions: Integers  # [K]: in the keys of the store; the closest first, of equal ones the first in the store
    cosines: Reals  # [K], rounded to five decimals
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


class CosineBound:
    """The most that the cosine of an image with a query can be, for a sixteenth of the work of the cosine.

    The cosine divides the product of an image's vector with the query by the vector's length, and that is at least the
    length of the vector's part in a few directions: those in which the matcher's vectors differ most.
    """

    def __init__(self, matcher: Matcher, query: Reals, directions: int = DIRECTIONS) -> None:
        """Of the cosine with `query` [M]."""
        weight, bias = matcher.weights["to_joint.weight"], matcher.weights["to_joint.bias"]  # [M, D], [M]
        _, vectors = np.linalg.eigh(weight @ weight.T)  # [M, M], a direction in each column, the strongest last
        chosen = np.column_stack([query, vectors[:, -directions:]])  # [M, 1 + directions]
        columns = weight.T @ chosen * np.float32(matcher.config.feature_dim**0.5)  # [D, 1 + directions]
        deviation = matcher.weights["feature_std"]
        self._inverse = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation != 0)
        mean = matcher.weights["feature_mean"] * self._inverse  # [D]
        self._columns = np.column_stack([columns, mean])
        self._of_mean, self._mean_square, self._offsets = mean @ columns, mean @ mean, bias @ chosen

    def of(self, features: Reals) -> Reals:
        """The bound for each row of `features` [B, D]: [B]; 1 where rounding decides."""
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers too large to be squared
            rows = features * self._inverse
            products = rows @ self._columns
            squares = np.einsum("bd,bd->b", rows, rows) + self._mean_square  # the mean is subtracted from the sums only
            lengths = squares - 2 * products[:, -1]  # of the standardised features, squared
            vectors = (products[:, :-1] - self._of_mean) / np.sqrt(np.maximum(lengths, 1e-12))[:, None] + self._offsets
            bounds = np.maximum(vectors[:, 0], 0) / np.maximum(np.linalg.norm(vectors[:, 1:], axis=1), 1e-12)
            is_known = np.isfinite(lengths) & (lengths >= _NEAR_MEAN * squares)
        return np.where(is_known, np.minimum(bounds, 1), 1)


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
    bound: CosineBound | None = None
    positions, cosines = np.empty(0, np.int64), np.empty(0, np.float32)
    damaged: list[str] = []
    done = 0
    for block, rows, lost in store.sound_blocks(None, BLOCK_ROWS):
        is_wanted = block != (-1 if left_out is None else left_out)
        if len(cosines) == top:
            bound = bound or CosineBound(matcher, query)
            is_wanted &= ~(bound.of(rows) < cosines[-1] - _MARGIN)  # a cosine that is no number leaves nothing out
        found = (matcher.embed_images(rows[is_wanted]) @ query).round(_DECIMALS)
        positions, cosines = np.append(positions, block[is_wanted]), np.append(cosines, found)
        order = np.lexsort((positions, -cosines))[:top]
        positions, cosines = positions[order], cosines[order]
        damaged += lost
        done += len(block) + len(lost)
        progress("search", done, len(store))
    return ClosestRows(positions, cosines, tuple(damaged))
