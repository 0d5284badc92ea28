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
    weigh_ngrams,
)

SIGMA = 6.0  # of CIDEr-D's length penalty, in words
MOST_WORDS = 255
"""Captions that are longer count as if they had so many words."""


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

    def score(self, candidates: FlatCaptions, weights: Reals) -> Reals:
        """The consensus of each candidate [C] with the captions of all images, weighted by `weights` [N].

        The weighted sum of its similarity to each image's captions, about 0 to 10: the mean over one to four words of
        the cosine of their tf-idf vectors, times a Gaussian of the difference of their lengths, as CIDEr-D without its
        clipping.
        """
        own = weigh_ngrams(candidates, self.idf)
        found = self.idf.find(own.keys)
        is_known = found >= 0
        ngrams, places = np.unique(found[is_known], return_inverse=True)  # [K]: which of the index candidates have
        counts = self.starts[ngrams + 1] - self.starts[ngrams]  # [K]
        total = int(counts.sum())
        if not total:
            return np.zeros(len(candidates), np.float32)
        firsts = np.cumsum(counts) - counts
        entries = np.arange(total) + np.repeat(self.starts[ngrams] - firsts, counts)  # [X]
        values = weights[self.images[entries]] * self.shares[entries]
        lengths = self.lengths[entries].astype(np.int64)
        columns = int(lengths.max()) + 1
        rows = np.repeat(np.arange(len(ngrams)) * columns, counts)
        table = np.bincount(rows + lengths, values, len(ngrams) * columns).reshape(len(ngrams), columns)
        differences = np.minimum(candidates.lengths, MOST_WORDS)[:, np.newaxis] - np.arange(columns)  # [C, L]
        penalties = np.exp(-(differences**2) / (2 * SIGMA**2))
        owners = own.captions[is_known]
        each = (table[places] * penalties[owners]).sum(axis=1) * own.weights[is_known]
        return (10.0 / MAX_ORDER * np.bincount(owners, each, len(candidates))).astype(np.float32)
