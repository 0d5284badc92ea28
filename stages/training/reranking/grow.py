"""The ranker of a training that starts from a model: that of the model, and the new images and captions.

A few corrected captions make no ranker, but the images and captions of the model still count.
"""

from dataclasses import replace

import numpy as np

from captionmill.data.captions.vocabulary import UNK
from captionmill.data.models.bundle import RankerParts
from captionmill.stages.ranking.consensus import CaptionIndex
from captionmill.stages.ranking.ngrams import FlatCaptions, Integers, starts_of
from captionmill.stages.ranking.packed import unpack_ranker
from captionmill.stages.ranking.ranker import Ranker
from captionmill.stages.ranking.regression import ImageRegression
from captionmill.stages.training.state import Training

_EMBEDDING = "matcher.embedding.weight"


def can_grow(parts: RankerParts | None, training: Training) -> bool:
    """Whether a model's ranker knows more images than the `training` from it, and has the matcher that it asks for."""
    if parts is None or len(parts.tensors["rows"]) <= len(training.splits.train):
        return False
    return training.config.search.rerank not in ("matcher", "both") or "matcher" in parts.settings


def grow_ranker(parts: RankerParts, training: Training, *, most_images: int) -> Ranker:
    """The ranker `parts` of a model with the images and captions of the `training` that starts from it.

    Of more than `most_images`, those of the model are thinned out. The matcher stays as it is: a new word is an unknown
    one to it. ModelError if the parts do not fit.
    """
    vocab_size = len(training.vocabulary)
    known = unpack_ranker(_with_words(parts, vocab_size), "`init`", vocab_size)
    words, lengths = training.references.sentences()
    images, counts = np.unique(training.references.images, return_counts=True)
    places = thin_out(len(known.counts), most_images - len(images))
    reduction = known.regression.reduction
    rows = reduction.reduce(training.feeder.array(images))
    kept = known.captions.take(np.flatnonzero(np.isin(np.repeat(np.arange(len(known.counts)), known.counts), places)))
    captions = FlatCaptions(np.concatenate([kept.words, words]), starts_of(np.concatenate([kept.lengths, lengths])))
    counts = np.concatenate([known.counts[places], counts])
    return replace(
        known,
        regression=ImageRegression.fit(reduction, np.concatenate([known.regression.rows[places], rows])),
        captions=captions,
        counts=counts,
        index=CaptionIndex.of(captions, np.repeat(np.arange(len(counts)), counts)),
    )


def thin_out(count: int, most: int) -> Integers:
    """At most so many of the numbers below `count`, evenly spaced, and at least one."""
    return np.linspace(0, count - 1, min(count, max(1, most))).astype(np.int64)


def _with_words(parts: RankerParts, vocab_size: int) -> RankerParts:
    """`parts` for a vocabulary with more words behind those that they know."""
    if _EMBEDDING not in parts.tensors:
        return parts
    embedding = parts.tensors[_EMBEDDING]
    unknown = np.repeat(embedding[UNK : UNK + 1], vocab_size - len(embedding), axis=0)
    settings = {**parts.settings, "matcher": {**parts.settings["matcher"], "vocab_size": vocab_size}}
    return RankerParts(settings, {**parts.tensors, _EMBEDDING: np.concatenate([embedding, unknown])})
