"""Which words the training images predict for an image: what guides the search for candidates."""

from dataclasses import dataclass

import numpy as np

from captionmill.data.captions.vocabulary import SPECIAL_WORDS
from captionmill.stages.ranking.ngrams import FlatCaptions, Integers, Reals


@dataclass(frozen=True)
class WordShares:
    """For each word and image that have each other: the share of the image's captions, times the word's rarity."""

    words: Integers  # [X]
    images: Integers  # [X]
    shares: Reals  # [X]
    idf: Reals  # [V]: the rarity of each word

    @classmethod
    def of(cls, captions: FlatCaptions, counts: Integers, vocab_size: int) -> "WordShares":
        """From the captions of all images, those of an image together, and their number per image, [N].

        The rarity of a word is ln(N / number of images whose captions have it); special words have none.
        """
        images_of = np.repeat(np.arange(len(counts)), counts)  # [C]
        owners = np.repeat(np.arange(len(captions)), captions.lengths)  # [W]
        pairs = np.unique(owners * vocab_size + captions.words)  # a word that a caption repeats counts once
        owners, words = np.divmod(pairs, vocab_size)
        cells, cell_counts = np.unique(images_of[owners] * vocab_size + words, return_counts=True)
        images, words = np.divmod(cells, vocab_size)
        idf = np.log(len(counts) / np.maximum(np.bincount(words, minlength=vocab_size), 1))
        idf[: len(SPECIAL_WORDS)] = 0
        shares = cell_counts / counts[images] * idf[words]
        return cls(words, images, shares.astype(np.float32), idf.astype(np.float32))

    def predict(self, weights: Reals) -> Reals:
        """The weights of the images, [B, N] -> the predicted share of each word, times its rarity, [B, V]."""
        size = len(self.idf)
        rows = [np.bincount(self.words, row[self.images] * self.shares, size) for row in weights]
        return np.array(rows, dtype=np.float32).reshape(len(weights), size)
