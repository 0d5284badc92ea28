"""The matcher: images and captions as vectors of length 1 whose cosine shows how well they fit each other.

A caption is the mean of its words' vectors: on Flickr8k that ranks as well as a recurrent network does, is trained
in a minute, and a caption costs as many additions as it has words. Source of the idea: Frome et al. 2013, "DeViSE"; of
the loss, see `stages/training/reranking/matching.py`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from captionmill.stages.ranking.ngrams import FlatCaptions, Reals

_BLOCK_CAPTIONS = 1000  # captions that are embedded at once, in about 25 MB


@dataclass(frozen=True)
class MatcherConfig:
    """Sizes of a matcher and its dropout rates in training."""

    feature_dim: int
    vocab_size: int
    embed_dim: int = 300
    """Size of the word embeddings."""
    joint_dim: int = 512
    """Size of the vectors of images and captions."""
    dropout: float = 0.4
    """Dropout rate of the word embeddings."""
    feature_dropout: float = 0.4


@dataclass(frozen=True)
class Matcher:
    """A trained matcher; ValueError if its weights are not of the sizes of `config`."""

    config: MatcherConfig
    weights: Mapping[str, Reals]
    """By their names in `MatcherNetwork`."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        config = self.config
        expected = {
            "feature_mean": (config.feature_dim,),
            "feature_std": (config.feature_dim,),
            "to_joint.weight": (config.joint_dim, config.feature_dim),
            "to_joint.bias": (config.joint_dim,),
            "embedding.weight": (config.vocab_size, config.embed_dim),
            "words_to_joint.weight": (config.joint_dim, config.embed_dim),
            "words_to_joint.bias": (config.joint_dim,),
        }
        if {name: tensor.shape for name, tensor in self.weights.items()} != expected:
            raise ValueError("the matcher's weights have other sizes than its configuration")

    @cached_property
    def word_vectors(self) -> Reals:
        """What each word adds to a caption, [V, M]."""
        weights = self.weights
        return _linear(weights["embedding.weight"], weights["words_to_joint.weight"], weights["words_to_joint.bias"])

    def embed_images(self, features: Reals) -> Reals:
        """Features [B, D] -> [B, M]; they are standardised, and scaled to the length of random numbers."""
        weights = self.weights
        deviation = np.where(weights["feature_std"] == 0, np.float32(np.inf), weights["feature_std"])
        rows = normalize((without_single_row(features) - weights["feature_mean"]) / deviation)  # [B, D]
        rows = rows * np.float32(self.config.feature_dim**0.5)
        return normalize(_linear(rows, weights["to_joint.weight"], weights["to_joint.bias"]))[: len(features)]

    def embed_captions(self, captions: Sequence[Sequence[int]]) -> Reals:
        """Captions as word indices -> [C, M]; zeros for one without words.

        Each word's vector is looked up, so that no caption is multiplied by anything.
        """
        vectors = np.empty((len(captions), self.config.joint_dim), np.float32)
        for start in range(0, len(captions), _BLOCK_CAPTIONS):
            block = FlatCaptions.of(captions[start : start + _BLOCK_CAPTIONS])
            words = self.word_vectors[block.words]
            for row, (first, end) in enumerate(itertools.pairwise(block.starts.tolist()), start):
                np.add.reduce(words[first:end], axis=0, out=vectors[row])  # reduceat takes ten times as long
        return normalize(vectors)


def without_single_row(rows: npt.NDArray[np.floating[Any]]) -> Reals:
    """Rows [B, N]; a single one twice, as a matrix product of one row adds its terms in another order than of several.

    So an image has the same numbers, but for their last bits, whatever the images beside it.
    """
    return np.asarray(np.repeat(rows, 2, axis=0) if len(rows) == 1 else rows, np.float32)


def normalize(rows: npt.NDArray[np.floating[Any]]) -> Reals:
    """Rows [B, N] scaled to length 1; zeros stay."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def _linear(rows: Reals, weight: Reals, bias: Reals) -> Reals:
    return np.asarray(rows @ weight.T + bias)
