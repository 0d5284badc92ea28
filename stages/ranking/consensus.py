"""Consensus: how much a caption has in common with what people wrote about the training images that look alike.

Source: Devlin et al. 2015, "Exploring nearest neighbor approaches for image captioning"; Mao et al. 2015, "Deep
captioning with multimodal recurrent neural networks (m-RNN)", section 8.
"""

from dataclasses import dataclass

import numpy as np

from captionmill.stages.ranking.ngrams import (
    MAX_ORDER,
    FlatCaptions,
    Integers,
    Rarities,
    Reals,
    find_ngrams,
    weigh_ngrams,
)

SIGMA = 6.0  # of CIDEr-D's length penalty, in words


@dataclass(frozen=True)
class CaptionCorpus:
    """The training captions, image by image, as their n-grams are compared with those of a candidate."""

    captions: FlatCaptions
    image_starts: Integers  # [N + 1]: image n has the captions image_starts[n] to image_starts[n + 1]
    rarities: Rarities
    norms: Reals  # [C, 4]: lengths of each caption's tf-idf vectors, per order

    @classmethod
    def of(cls, captions: FlatCaptions, counts: Integers) -> "CaptionCorpus":
        """From the `captions` of all images, those of an image together, and their number per image, [N]."""
        image_starts = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=image_starts[1:])
        rarities = Rarities.measure(captions, np.repeat(np.arange(len(counts)), counts))
        return cls(captions, image_starts, rarities, weigh_ngrams(captions, rarities)[1])

    def score(self, candidates: FlatCaptions, images: Integers, weights: Reals) -> Reals:
        """The consensus of each candidate [C] with the captions of `images` [K], weighted by `weights` [K].

        The weighted mean of its similarity to each caption, 0 to 10: the mean over one to four words of the cosine of
        their tf-idf vectors, times a Gaussian of the difference of their lengths, as CIDEr-D without its clipping.
        """
        counts = self.image_starts[images + 1] - self.image_starts[images]  # [K]
        offsets = np.cumsum(counts) - counts
        chosen = np.arange(counts.sum()) + np.repeat(self.image_starts[images] - offsets, counts)  # [R]
        return self.score_against(candidates, chosen, np.repeat(weights / counts, counts))

    def score_against(self, candidates: FlatCaptions, chosen: Integers, weights: Reals) -> Reals:
        """As `score`, with the captions numbered `chosen` [R] and the weight of each [R]."""
        own, _ = weigh_ngrams(candidates, self.rarities)
        known, places = np.unique(own.keys, return_inverse=True)  # [G]: the n-grams that candidates have
        if not len(known):
            return np.zeros(len(candidates), np.float32)
        lengths, columns = np.unique(self.captions.lengths[chosen], return_inverse=True)  # [L]
        ngrams = find_ngrams(self.captions.take(chosen))
        rows = np.minimum(np.searchsorted(known, ngrams.keys), len(known) - 1)
        is_known = known[rows] == ngrams.keys
        rows, owners, orders = rows[is_known], ngrams.captions[is_known], ngrams.orders[is_known]
        # each occurrence adds its rarity: an n-gram that a caption has twice weighs twice, as in its norm
        shares = weights[owners] * self.rarities.of(known)[rows] / np.maximum(self.norms[chosen[owners], orders], 1e-12)
        size = len(known) * len(lengths)
        table = np.bincount(rows * len(lengths) + columns[owners], shares, size).reshape(len(known), len(lengths))
        difference = candidates.lengths[:, np.newaxis] - lengths  # [C, L]
        penalties = np.exp(-(difference**2) / (2 * SIGMA**2))
        each = (table[places] * penalties[own.captions]).sum(axis=1) * own.weights  # [G]
        totals = np.bincount(own.captions, each, len(candidates))
        return (10.0 / MAX_ORDER * totals).astype(np.float32)
