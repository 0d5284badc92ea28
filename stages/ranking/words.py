"""Which words the training images predict for an image: what guides the search for candidates."""

from dataclasses import dataclass

import numpy as np

from captionmill.data.captions.vocabulary import SPECIAL_WORDS
from captionmill.stages.ranking.ngrams import FlatCaptions, Integers, Reals

_FREQUENT = 256  # words that most images have: for these a product is faster


@dataclass(frozen=True)
class WordWeights:
    """For each word and image that have each other: the share of the image's captions, times the word's rarity."""

    frequent: Integers  # [F]: words of many images
    table: Reals  # [N, F]: their shares
    words: Integers  # [X]: the others
    images: Integers  # [X]
    shares: Reals  # [X]
    idf: Reals  # [V]: the rarity of each word

    @classmethod
    def of(cls, captions: FlatCaptions, counts: Integers, vocab_size: int) -> "WordWeights":
        """From the captions of all images, those of an image together, and their number per image, [N].

        The rarity of a word is ln(N / number of images whose captions have it); special words have none.
        """
        images_of = np.repeat(np.arange(len(counts)), counts)  # [C]
        owners = np.repeat(np.arange(len(captions)), captions.lengths)  # [W]
        pairs = np.unique(owners * vocab_size + captions.words)  # a word that a caption repeats counts once
        owners, words = np.divmod(pairs, vocab_size)
        cells, cell_counts = np.unique(images_of[owners] * vocab_size + words, return_counts=True)
        images, words = np.divmod(cells, vocab_size)
        image_counts = np.bincount(words, minlength=vocab_size)  # [V]
        idf = np.log(len(counts) / np.maximum(image_counts, 1))
        idf[: len(SPECIAL_WORDS)] = 0
        shares = (cell_counts / counts[images] * idf[words]).astype(np.float32)
        frequent = np.argsort(-image_counts, kind="stable")[:_FREQUENT]
        columns = np.full(vocab_size, -1)  # of the table, for each word
        columns[frequent] = np.arange(len(frequent))
        is_frequent = columns[words] >= 0
        table = np.zeros((len(counts), len(frequent)), np.float32)
        table[images[is_frequent], columns[words[is_frequent]]] = shares[is_frequent]
        words, images, shares = words[~is_frequent], images[~is_frequent], shares[~is_frequent]
        return cls(frequent, table, words, images, shares, idf.astype(np.float32))

    def predict(self, weights: Reals) -> Reals:
        """The weights of the images, [B, N] -> the predicted share of each word, times its rarity, [B, V]."""
        size = len(self.idf)
        rows = [np.bincount(self.words, row[self.images] * self.shares, size) for row in weights]
        predicted = np.array(rows, dtype=np.float32).reshape(len(weights), size)
        predicted[:, self.frequent] = weights @ self.table
        return predicted
