"""Training examples: the captions of some images as word indices, in batches of similar length."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from captionmill.data.captions.vocabulary import END, PAD, START, Vocabulary

Indices = npt.NDArray[np.int64]
BUCKET_BATCHES = 20


@dataclass(frozen=True, eq=False)
class CaptionDataset:
    """The captions of some images as word indices, compact in memory; features are not loaded."""

    flat_words: npt.NDArray[np.integer]
    """The words of all captions one behind the other, `<start>` and `<end>` included, [W]."""
    lengths: npt.NDArray[np.integer]
    """How many of these each caption has, [C]."""
    images: Indices
    """For each caption, the position of its image in the keys that the dataset was made with, [C]."""

    @classmethod
    def of(
        cls, captions: Mapping[str, Sequence[str]], keys: Sequence[str], vocabulary: Vocabulary, *, max_length: int
    ) -> "CaptionDataset":
        """All captions of the images `keys`, cut after `max_length` words; captions without words are left out.

        A caption that is cut has no `<end>`: it would teach the decoder to stop in mid-sentence.
        """
        words = array("H" if len(vocabulary) <= 2**16 else "i")
        lengths, images = array("i"), array("q")
        for image, key in enumerate(keys):
            for caption in captions[key]:
                if indices := vocabulary.encode(caption):
                    example = (START, *indices, END) if len(indices) <= max_length else (START, *indices[:max_length])
                    words.extend(example)
                    lengths.append(len(example))
                    images.append(image)
        return cls(*(np.asarray(numbers, dtype=numbers.typecode) for numbers in (words, lengths, images)))

    def joined(self, further: "CaptionDataset") -> "CaptionDataset":
        """These captions, and behind them the `further` ones of the same images."""
        return CaptionDataset(
            np.concatenate([self.flat_words, further.flat_words]),
            np.concatenate([self.lengths, further.lengths]),
            np.concatenate([self.images, further.images]),
        )

    @cached_property
    def starts(self) -> Indices:
        """Where each caption begins in `flat_words`, [C]."""
        return np.asarray(np.cumsum(self.lengths, dtype=np.int64) - self.lengths)

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.images)

    def sentences(self) -> tuple[npt.NDArray[np.integer], Indices]:
        """The words of all captions one behind the other [W], without `<start>` and `<end>`, and their numbers [C]."""
        is_word = (self.flat_words != START) & (self.flat_words != END)
        counts = np.add.reduceat(is_word, self.starts, dtype=np.int64) if len(self) else self.starts
        return self.flat_words[is_word], counts

    def plan_epoch(self, batch_size: int, generator: np.random.Generator) -> list[Indices]:
        """All captions once, as batches of caption numbers, in an order drawn from `generator`.

        Captions of similar length share a batch, so that it has little padding: the shuffled captions are cut into
        buckets of BUCKET_BATCHES batches, each bucket is sorted by length and cut into batches, then all batches are
        shuffled. The last batch of a bucket may be smaller.
        """
        order = generator.permutation(len(self))
        planned: list[Indices] = []
        for start in range(0, len(order), batch_size * BUCKET_BATCHES):
            bucket = order[start : start + batch_size * BUCKET_BATCHES]
            bucket = bucket[np.argsort(self.lengths[bucket], kind="stable")]
            planned += [bucket[first : first + batch_size] for first in range(0, len(bucket), batch_size)]
        return [planned[place] for place in generator.permutation(len(planned))]

    def batches_by_length(self, batch_size: int) -> list[Indices]:
        """All captions once, as batches of caption numbers, the shortest captions first."""
        order = np.argsort(self.lengths, kind="stable")
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def count_words(self, chosen: Indices) -> int:
        """Number of words to predict in the captions `chosen`, each `<end>` included."""
        return int(self.lengths[chosen].sum()) - len(chosen)

    def words(self, chosen: Indices) -> Indices:
        """The captions `chosen` [B, T]: `<start>`, the words, `<end>` unless cut, then `<pad>` up to the longest."""
        lengths = self.lengths[chosen]
        steps = np.arange(lengths.max())
        places = np.minimum(self.starts[chosen, None] + steps, len(self.flat_words) - 1)  # [B, T]
        return np.where(steps < lengths[:, None], self.flat_words[places], PAD).astype(np.int64)
