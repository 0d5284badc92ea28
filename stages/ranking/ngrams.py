"""The n-grams of captions as numbers, weighted by their rarity: term frequency times inverse document frequency.

An n-gram of one to four word indices is one 64-bit number, so that NumPy counts a thousand captions in a millisecond.
Two of a set's n-grams share a number by chance in fewer than one of a million sets of a million.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_ORDER = 4  # as in CIDEr-D

Keys = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float32]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit is lost in its powers


def starts_of(lengths: npt.NDArray[np.integer]) -> Integers:
    """Where each of some pieces [P] that lie one behind the other starts, and where the last ends: [P + 1]."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def run_starts(*columns: npt.NDArray[Any]) -> Integers:
    """Where each run of rows that are equal in all `columns` [P] starts, in rows that are sorted by them."""
    is_new = np.ones(len(columns[0]), dtype=bool)
    is_new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.flatnonzero(is_new)


@dataclass(frozen=True)
class FlatCaptions:
    """Captions as word indices, one behind the other."""

    words: npt.NDArray[np.integer]  # [W]
    starts: Integers  # [C + 1]: caption c has the words starts[c] to starts[c + 1]

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]]) -> "FlatCaptions":
        """`captions`, each a sequence of word indices."""
        starts = starts_of(np.array([len(caption) for caption in captions], dtype=np.int64))
        words = np.fromiter((word for caption in captions for word in caption), np.int64, int(starts[-1]))
        return cls(words, starts)

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> Integers:
        """The number of words of each caption, [C]."""
        return np.diff(self.starts)

    def split(self) -> list[npt.NDArray[np.integer]]:
        """The words of each caption."""
        return np.split(self.words, self.starts[1:-1])

    def take(self, chosen: Integers) -> "FlatCaptions":
        """The captions with the numbers `chosen`."""
        lengths = self.lengths[chosen]
        starts = starts_of(lengths)
        places = np.arange(starts[-1]) + np.repeat(self.starts[chosen] - starts[:-1], lengths)
        return FlatCaptions(self.words[places], starts)


@dataclass(frozen=True)
class NGrams:
    """All n-grams of some captions, repeated ones too, in no order that matters."""

    keys: Keys  # [G]
    captions: Integers  # [G]: which caption each is from
    orders: Integers  # [G]: its number of words less 1


def find_ngrams(captions: FlatCaptions) -> NGrams:
    """The n-grams of one to four words of `captions`."""
    count = len(captions.words)
    numbers = captions.words.astype(np.uint64) + np.uint64(1)  # 0 would make "a" and "a <pad>" one
    owners = np.repeat(np.arange(len(captions)), captions.lengths)  # [W]
    left = captions.starts[owners + 1] - np.arange(count)  # [W]: words from here to the caption's end
    keys, found, orders = [], [], []
    sums, factor = np.zeros(count, dtype=np.uint64), np.uint64(1)
    with np.errstate(over="ignore"):
        for order in range(MAX_ORDER):
            sums[: max(0, count - order)] += numbers[order:] * factor
            is_whole = left > order
            keys.append(sums[is_whole])
            found.append(owners[is_whole])
            orders.append(np.full(int(is_whole.sum()), order))
            factor *= _BASE
    return NGrams(np.concatenate(keys), np.concatenate(found), np.concatenate(orders))


@dataclass(frozen=True)
class NGramIdf:
    """Inverse document frequencies of n-grams in the captions of N images: ln(N / images whose captions have it)."""

    keys: Keys  # [G], rising: the n-grams that two images or more have
    weights: Reals  # [G]
    unseen: float
    """The weight of every other n-gram, ln(N)."""

    @classmethod
    def fit(cls, captions: FlatCaptions, images: Integers) -> "NGramIdf":
        """From the image of each caption, [C], counted from 0."""
        ngrams = find_ngrams(captions)
        owners = images[ngrams.captions]
        order = np.lexsort((owners, ngrams.keys))
        keys = ngrams.keys[order]
        found, counts = np.unique(keys[run_starts(keys, owners[order])], return_counts=True)
        unseen = float(np.log(max(1, len(np.unique(images)))))
        weights = (unseen - np.log(counts)).astype(np.float32)
        return cls(found[counts > 1], weights[counts > 1], unseen)

    def find(self, keys: Keys) -> Integers:
        """The place of each of `keys` in `self.keys`, in their shape; -1 for an n-gram that is not there."""
        if not len(self.keys):
            return np.full(keys.shape, -1)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)

    def of(self, keys: Keys) -> Reals:
        """The weight of each of `keys`, in their shape."""
        places = self.find(keys)
        return np.where(places >= 0, np.append(self.weights, 0)[places], self.unseen).astype(np.float32)


@dataclass(frozen=True)
class WeightedNGrams:
    """The tf-idf vectors of some captions: each n-gram of a caption once, with its weight."""

    keys: Keys  # [G]
    captions: Integers  # [G]
    weights: Reals  # [G]: share of the vector of this caption and order, which has length 1


def weigh_ngrams(captions: FlatCaptions, idf: NGramIdf) -> WeightedNGrams:
    """The tf-idf vectors of `captions`, one per order, scaled to length 1."""
    ngrams = find_ngrams(captions)
    order = np.lexsort((ngrams.keys, ngrams.captions))
    keys, owners, orders = ngrams.keys[order], ngrams.captions[order], ngrams.orders[order]
    places = run_starts(keys, owners)
    counts = np.diff(np.append(places, len(keys)))
    keys, owners, orders = keys[places], owners[places], orders[places]
    weights = counts * idf.of(keys)
    cells = owners * MAX_ORDER + orders
    norms = np.sqrt(np.bincount(cells, weights.astype(np.float64) ** 2, len(captions) * MAX_ORDER))
    scaled = weights / np.maximum(norms[cells], 1e-12)
    return WeightedNGrams(keys, owners, scaled.astype(np.float32))
