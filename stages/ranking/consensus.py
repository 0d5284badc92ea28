"""Consensus: how much a caption has in common with what people wrote about the training images.

The idea is that of Devlin et al. 2015, "Exploring nearest neighbor approaches for image captioning", and Mao et al.
2015, "Deep captioning with multimodal recurrent neural networks (m-RNN)", section 8; here all training images take
part, with the weights of a regression.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captionmill.stages.ranking.ngrams import (
    MAX_ORDER,
    FlatCaptions,
    Integers,
    NGramIdf,
    Reals,
    run_starts,
    starts_of,
    weigh_ngrams,
)

SIGMA = 6.0  # of CIDEr-D's length penalty, in words
MOST_WORDS = 255
"""Captions that are longer count as if they had so many words."""
_FREQUENT = 4  # an n-gram with more entries than this part of the images


@dataclass(frozen=True)
class CaptionIndex:
    """An inverted index: for each n-gram of several training images which ones, in captions of which length, how much.

    An entry is one n-gram of one image in its captions of one length. Entries are sorted by n-gram.
    """

    idf: NGramIdf
    starts: Integers  # [G + 1]: the n-gram number g of `idf.keys` has the entries starts[g] to starts[g + 1]
    images: npt.NDArray[np.int32]  # [E]
    lengths: npt.NDArray[np.uint8]  # [E]: words of the captions
    shares: npt.NDArray[np.float16]  # [E]: sum of their tf-idf vectors there, over the image's number of captions

    @classmethod
    def of(cls, captions: FlatCaptions, images: Integers) -> "CaptionIndex":
        """From captions and the image of each, [C], counted from 0."""
        idf = NGramIdf.fit(captions, images)
        weighted = weigh_ngrams(captions, idf)
        known = idf.find(weighted.keys)
        is_known = known >= 0
        ngrams, owners = known[is_known], weighted.captions[is_known]
        lengths = np.minimum(captions.lengths, MOST_WORDS)[owners]
        shares = weighted.weights[is_known] / np.bincount(images)[images[owners]]
        order = np.lexsort((lengths, images[owners], ngrams))
        parts = np.stack([ngrams, images[owners], lengths])[:, order]  # [3, E]
        firsts = run_starts(*parts)
        sums = np.add.reduceat(shares[order], firsts) if len(firsts) else shares
        starts = np.searchsorted(parts[0, firsts], np.arange(len(idf.keys) + 1))
        return cls(
            idf,
            starts,
            parts[1, firsts].astype(np.int32),
            parts[2, firsts].astype(np.uint8),
            sums.astype(np.float16),
        )

    def score(self, candidates: FlatCaptions, owners: Integers, weights: Reals) -> Reals:
        """The consensus of each candidate [C] with the captions of all images, by the weights [B, N] of its image.

        `owners` [C], rising, are the images that the candidates are for, of B.

        It is the weighted sum of the similarities to each image's captions, about 0 to 10: the mean over one to four
        words of the cosine of their tf-idf vectors, times a Gaussian of the difference of their lengths, as CIDEr-D
        without its clipping.
        """
        own = weigh_ngrams(candidates, self.idf)
        found = self.idf.find(own.keys)
        is_known = found >= 0
        captions = own.captions[is_known]
        cells, places = np.unique(owners[captions] * len(self.idf.keys) + found[is_known], return_inverse=True)
        if not len(cells):
            return np.zeros(len(candidates), np.float32)
        table = self._sum_shares(*np.divmod(cells, len(self.idf.keys)), weights)  # [X, L]
        differences = np.minimum(candidates.lengths, MOST_WORDS)[:, np.newaxis] - np.arange(table.shape[1])  # [C, L]
        penalties = np.exp(-(differences**2) / (2 * SIGMA**2))
        each = (table[places] * penalties[captions]).sum(axis=1) * own.weights[is_known]
        return (10.0 / MAX_ORDER * np.bincount(captions, each, len(candidates))).astype(np.float32)

    def _sum_shares(self, owners: Integers, ngrams: Integers, weights: Reals) -> npt.NDArray[np.float64]:
        """For images [X] of B, rising, and an n-gram of each: its shares for each length of captions, [X, L].

        The shares of the training images are weighted by those of the image, of `weights` [B, N].
        """
        columns = int(self.lengths.max()) + 1
        table = np.zeros((len(owners), columns))
        counts = self.starts[ngrams + 1] - self.starts[ngrams]  # [X]
        is_frequent = counts > weights.shape[1] / _FREQUENT
        for ngram in np.unique(ngrams[is_frequent]):  # most candidates have them: a product is faster
            rows, own = np.flatnonzero(ngrams == ngram), slice(self.starts[ngram], self.starts[ngram + 1])
            shares = np.zeros((weights.shape[1], columns), np.float32)  # [N, L]
            shares[self.images[own], self.lengths[own]] = self.shares[own]
            table[rows] = weights[owners[rows]] @ shares
        for owner, row in enumerate(weights):
            rows = np.flatnonzero((owners == owner) & ~is_frequent)
            own_counts = counts[rows]
            starts = starts_of(own_counts)
            entries = np.arange(starts[-1]) + np.repeat(self.starts[ngrams[rows]] - starts[:-1], own_counts)
            values = row[self.images[entries]] * self.shares[entries]
            cells = np.repeat(np.arange(len(rows)) * columns, own_counts) + self.lengths[entries]
            table[rows] = np.bincount(cells, values, len(rows) * columns).reshape(len(rows), columns)
        return table
