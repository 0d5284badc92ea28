"""Training examples: (features, words) batches made from a feature store and reference captions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captionmill.data.feature_store import FeatureStore
from captionmill.data.store_file import Features
from captionmill.data.vocabulary import END, PAD, START, Vocabulary

BUCKET_BATCHES = 20
_BLOCK_ROWS = 4096


def measure_features(store: FeatureStore, keys: Sequence[str]) -> tuple[Features, Features]:
    """Mean and standard deviation of each number over the images `keys`, each [D] float32; read block by block."""
    total, squares = np.zeros(store.spec.feature_dim), np.zeros(store.spec.feature_dim)
    for start in range(0, len(keys), _BLOCK_ROWS):
        rows = store.read([store.position(key) for key in keys[start : start + _BLOCK_ROWS]]).astype(np.float64)
        total += rows.sum(0)
        squares += (rows**2).sum(0)
    mean = total / len(keys)
    variance = np.maximum(squares / len(keys) - mean**2, 0)
    std = np.where(variance > 1e-12 * (mean**2 + 1e-12), np.sqrt(variance), 0)  # rounding is no variation
    return mean.astype(np.float32), std.astype(np.float32)


@dataclass(frozen=True)
class TrainingBatch:
    """Some captions and their images' features."""

    features: Features  # [B, D]
    words: npt.NDArray[np.int64]  # [B, T]: <start>, the caption, <end>, <pad> to the length of the longest

    @property
    def inputs(self) -> npt.NDArray[np.int64]:
        """The words fed in, [B, T - 1]."""
        return self.words[:, :-1]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """The word to be predicted at each step, [B, T - 1]; PAD where there is none."""
        return self.words[:, 1:]


class CaptionDataset:
    """Every caption of some images with its words as indices. Features stay in the store until a batch needs them."""

    def __init__(
        self,
        store: FeatureStore,
        captions: Mapping[str, Sequence[str]],
        keys: Sequence[str],
        vocabulary: Vocabulary,
        *,
        max_length: int,
    ) -> None:
        """All captions of the images `keys`, cut after `max_length` words; captions without a word are left out."""
        self._store = store
        positions, encoded = [], []
        for key in keys:
            for caption in captions[key]:
                if indices := vocabulary.encode(caption)[:max_length]:
                    positions.append(store.position(key))
                    encoded.append(np.array([START, *indices, END], dtype=np.int32))
        self._positions = np.array(positions, dtype=np.int64)
        self._words = np.concatenate([*encoded, np.empty(0, dtype=np.int32)])
        self._starts = np.cumsum([0, *(len(words) for words in encoded)])

    def __len__(self) -> int:
        """Number of captions."""
        return len(self._positions)

    def batches(self, batch_size: int, generator: np.random.Generator) -> Iterator[TrainingBatch]:
        """All captions once, in an order drawn from `generator`; a batch may be smaller at the end of a bucket.

        Captions of like length share a batch, so that little of it is padding: of each BUCKET_BATCHES batches' worth of
        shuffled captions, the shortest go together, and so on; then the batches are shuffled.
        """
        order = generator.permutation(len(self))
        lengths = np.diff(self._starts)
        chosen = []
        for start in range(0, len(order), batch_size * BUCKET_BATCHES):
            bucket = order[start : start + batch_size * BUCKET_BATCHES]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            chosen += [bucket[first : first + batch_size] for first in range(0, len(bucket), batch_size)]
        for place in generator.permutation(len(chosen)):
            yield self._batch(chosen[place])

    def _batch(self, chosen: npt.NDArray[np.int64]) -> TrainingBatch:
        lengths = self._starts[chosen + 1] - self._starts[chosen]
        words = np.full((len(chosen), lengths.max()), PAD, dtype=np.int64)
        for row, (caption, length) in enumerate(zip(chosen, lengths, strict=True)):
            words[row, :length] = self._words[self._starts[caption] : self._starts[caption] + length]
        return TrainingBatch(self._store.read(self._positions[chosen]), words)
