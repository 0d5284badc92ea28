"""BLEU, ROUGE-L and CIDEr-D of captions, on tokens: the numbers that pycocoevalcap prints, in pure Python.

CIDEr here is CIDEr-D (clipped counts, Gaussian length penalty, factor 10), which is what the class `Cider` of the PyPI
package pycocoevalcap computes. Its `Bleu(4)` (nearest reference length) and `Rouge` are the other two.

`measure_captions` examines each caption once. Its counts are enough for the score of the whole corpus, of each image,
and of every resample of the images (`bootstrap.py`).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from captionmill.data.captions.words import WORD_RULE
from captionmill.data.errors import InputError
from captionmill.stages.scoring.tokens import tokenize_for_scores

MAX_ORDER = 4  # n-grams of one to four tokens, in BLEU and in CIDEr-D
BETA = 1.2  # of ROUGE-L: how much more recall weighs than precision
SIGMA = 6.0  # of CIDEr-D: the width of the length penalty, in tokens

Tokens = Sequence[str]
NGram = tuple[str, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The scores of a set of captions; higher is better."""

    bleu_1: float
    """Share of the words that occur in a reference, after the brevity penalty; 0 to 1."""
    bleu_2: float
    """The same, as a geometric mean over one and two words in a row; 0 to 1."""
    bleu_3: float
    """The same, up to three words in a row; 0 to 1."""
    bleu_4: float
    """The same, up to four words in a row; 0 to 1."""
    rouge_l: float
    """F-measure of the longest common subsequence with the references, mean over images; 0 to 1."""
    cider_d: float
    """Mean cosine with the references over n-grams weighted by rarity in this corpus; 0 to 10."""


@dataclass(frozen=True)
class Metric:
    """A score that is a function of numbers summed over images: BLEU of pooled counts, or the mean of a score."""

    name: str
    """Named like the fields of `Scores`."""
    rows: Floats
    """N x C: what each image adds to the sums."""
    combine: Callable[[Floats, int], Floats]
    """Sums, [..., C], and the number of images summed -> scores, [...]."""

    @property
    def value(self) -> float:
        """The score of all images together."""
        return float(self.combine(self.rows.sum(axis=0), len(self.rows)))

    @property
    def each(self) -> Floats:
        """The score of each single image, [N]."""
        return self.combine(self.rows, 1)


def mean_metric(name: str, scores: Floats) -> Metric:
    """The metric that is the mean of one score per image; `scores` is [N]."""
    return Metric(name, scores[:, None], lambda sums, count: sums[..., 0] / count)


def measure_captions(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], word_rule: int = WORD_RULE
) -> list[Metric]:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of one caption per image, plain sentences; rows in the order of `captions`.

    References of images without a caption are ignored, so the rarity weights of CIDEr-D come only from the captioned
    images; a resample does not change them. BLEU of one image is the corpus formula on that image's counts, without
    smoothing, as `Bleu(4)` lists it for each image: 0 if no four words in a row are in a reference. `word_rule` is that
    of the model. Raises InputError if a caption has no references, or there are no captions.
    """
    if not captions:
        raise InputError("there are no captions to score; caption some images first")
    for key in captions:
        if not references.get(key):
            raise InputError(f"{key} has a caption but no references; score only images that the captions file names")
    tokenize = partial(tokenize_for_scores, word_rule=word_rule)
    candidate_tokens = {key: tokenize(caption) for key, caption in captions.items()}
    reference_tokens = {key: [tokenize(reference) for reference in references[key]] for key in captions}
    counts = np.array([_count_bleu(candidate_tokens[key], reference_tokens[key]) for key in captions], np.float64)
    rouge = np.array([rouge_l(candidate_tokens[key], reference_tokens[key]) for key in captions], np.float64)
    return [
        *(Metric(f"bleu_{order}", counts, partial(_bleu, order=order)) for order in range(1, MAX_ORDER + 1)),
        mean_metric("rouge_l", rouge),
        mean_metric("cider_d", CiderD(reference_tokens).scores(candidate_tokens)),
    ]


def score_captions(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """The corpus scores from `measure_captions`, with the same errors."""
    return Scores(**{metric.name: metric.value for metric in measure_captions(captions, references)})


def _count_bleu(tokens: Tokens, references: Sequence[Tokens]) -> list[int]:
    """10 counts of one image: for each order the n-grams matched, for each order those in the caption, both lengths."""
    matched = [0] * MAX_ORDER
    ceiling: Counter[NGram] = Counter()
    for reference in references:
        ceiling |= _count_ngrams(reference)
    for ngram, count in _count_ngrams(tokens).items():
        matched[len(ngram) - 1] += min(count, ceiling[ngram])
    length = len(tokens)
    offered = [max(0, length - order) for order in range(MAX_ORDER)]
    nearest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return [*matched, *offered, length, nearest]


def _bleu(sums: Floats, _: int, *, order: int) -> Floats:
    """BLEU up to `order` from sums of `_count_bleu`, [..., 10] -> [...] (Papineni et al., "BLEU", ACL 2002)."""
    # The reference implementation adds these two, so that counts of 0 give a score near 0, never an error.
    small, tiny = 1e-9, 1e-15
    matched, offered = sums[..., :order], sums[..., MAX_ORDER : MAX_ORDER + order]
    ratio = (sums[..., -2] + tiny) / (sums[..., -1] + small)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    product = np.prod((matched + tiny) / (offered + small), axis=-1)
    return np.asarray(product ** (1 / order) * penalty)


def rouge_l(tokens: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L of one image, 0 to 1 (Lin, "ROUGE", 2004): F-measure of the best precision and the best recall.

    The two may come from different references. As in pycocoevalcap, an empty sentence counts as one empty token, so two
    empty ones score 1.
    """
    candidate = tokens or [""]
    precision = recall = 0.0
    for reference in references:
        common = _longest_common_subsequence(candidate, reference or [""])
        precision = max(precision, common / len(candidate))
        recall = max(recall, common / max(1, len(reference)))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


class CiderD:
    """CIDEr-D against one fixed set of references: Vedantam et al., "CIDEr", CVPR 2015; 0 to 10 for each image.

    The weights and the vectors of the references are computed once; a score then takes one pass over the n-grams of the
    candidate. The rarity weights depend on the references given: the same caption scores differently against another
    set. A single image scores 0, as nothing is rare.
    """

    def __init__(self, references: Mapping[str, Sequence[Tokens]]) -> None:
        """Take the tokens of all the references of each image, of which each has one or more."""
        counts = {key: [_count_ngrams(tokens) for tokens in token_lists] for key, token_lists in references.items()}
        document_counts = Counter(ngram for image in counts.values() for ngram in set().union(*image))
        self._unseen_weight = math.log(len(references))
        self._weights = {ngram: self._unseen_weight - math.log(count) for ngram, count in document_counts.items()}
        # For each image the lengths of its references, and for each n-gram (reference, weight, weight / norm) of those.
        self._lengths: dict[str, list[int]] = {}
        self._postings: dict[str, dict[NGram, list[tuple[int, float, float]]]] = {}
        for key, image in counts.items():
            postings: dict[NGram, list[tuple[int, float, float]]] = {}
            for index, reference in enumerate(image):
                vector, norms = self._weigh(reference)
                for ngram, weight in vector.items():
                    if weight > 0:
                        postings.setdefault(ngram, []).append((index, weight, weight / norms[len(ngram) - 1]))
            self._postings[key] = postings
            self._lengths[key] = [_count_bigrams(tokens) for tokens in references[key]]

    def score(self, key: str, tokens: Tokens) -> float:
        """The CIDEr-D of one caption of the image `key`, which is one of those with references."""
        postings, lengths = self._postings[key], self._lengths[key]
        vector, norms = self._weigh(_count_ngrams(tokens))
        cosines = [0.0] * len(lengths)
        for ngram, weight in vector.items():
            for index, reference_weight, normed_weight in postings.get(ngram, ()):
                cosines[index] += min(weight, reference_weight) * normed_weight / norms[len(ngram) - 1]
        length = _count_bigrams(tokens)
        total = sum(
            cosine * math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))
            for cosine, reference_length in zip(cosines, lengths, strict=True)
        )
        return 10.0 * total / (MAX_ORDER * len(lengths))

    def scores(self, candidates: Mapping[str, Tokens]) -> Floats:
        """The CIDEr-D of each caption, in the order of `candidates`."""
        return np.array([self.score(key, tokens) for key, tokens in candidates.items()], dtype=np.float64)

    def _weigh(self, counts: Mapping[NGram, int]) -> tuple[dict[NGram, float], list[float]]:
        """Counts times inverse document frequency, and the norm of that vector for each order."""
        vector: dict[NGram, float] = {}
        squares = [0.0] * MAX_ORDER
        for ngram, count in counts.items():
            weight = count * self._weights.get(ngram, self._unseen_weight)
            vector[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        return vector, [math.sqrt(square) for square in squares]


def _count_ngrams(tokens: Tokens) -> Counter[NGram]:
    ngrams: Iterable[NGram] = (
        tuple(tokens[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    )
    return Counter(ngrams)


def _count_bigrams(tokens: Tokens) -> int:
    """The length that CIDEr-D compares; the reference implementation counts bigrams, not tokens."""
    return max(0, len(tokens) - 1)


def _longest_common_subsequence(left: Tokens, right: Tokens) -> int:
    """The length of the longest common subsequence, one row of the table at a time."""
    row = [0] * (len(right) + 1)
    for token in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if token == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
