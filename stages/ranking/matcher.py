"""The matcher: images and captions as vectors of length 1 whose cosine says how well they fit each other.

A caption is the mean of its words' vectors: on Flickr8k that ranks as well as a recurrent network does, is trained
in a minute, and a caption costs as many additions as it has words. Source of the idea: Frome et al. 2013, "DeViSE"; of
the loss, see `stages/training/reranking/matching.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionmill.data.captions.vocabulary import PAD

_BLOCK_WORDS = 65_536  # words that are embedded at once, in 128 MB


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


class Matcher(nn.Module):
    """Features [B, D] and captions [B, T] -> vectors [B, M] of length 1."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: MatcherConfig) -> None:
        """Build it with fresh weights."""
        super().__init__()
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.register_buffer("feature_std", torch.ones(config.feature_dim))
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.to_joint = nn.Linear(config.feature_dim, config.joint_dim)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(config.dropout)
        self.words_to_joint = nn.Linear(config.embed_dim, config.joint_dim)
        self._word_vectors: Tensor | None = None

    def embed_images(self, features: Tensor) -> Tensor:
        """Features [B, D] -> [B, M]; they are standardised, and scaled to the length of random numbers."""
        deviation = self.feature_std.masked_fill(self.feature_std == 0, torch.inf)
        rows = F.normalize((features.float() - self.feature_mean) / deviation, dim=1)  # [B, D]
        return F.normalize(self.to_joint(self.feature_dropout(rows * self.config.feature_dim**0.5)), dim=1)

    def forward(self, words: Tensor) -> Tensor:
        """Captions [B, T] as word indices, `<pad>` behind the last -> [B, M]."""
        is_word = (words != PAD).unsqueeze(2)  # [B, T, 1]
        embedded = self.dropout(self.embedding(words)) * is_word  # [B, T, E]
        mean = embedded.sum(dim=1) / is_word.sum(dim=1).clamp(min=1)  # [B, E]
        return F.normalize(self.words_to_joint(mean), dim=1)

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[Sequence[int]]) -> Tensor:
        """Captions as word indices -> [C, M], as `forward` gives them in evaluation mode, but for rounding.

        Each word's vector is looked up, so that no caption is multiplied by anything.
        """
        if self._word_vectors is None:
            self._word_vectors = self.words_to_joint(self.embedding.weight)  # [V, M]
        found = []
        size = max(1, _BLOCK_WORDS // max(map(len, captions), default=1))
        for start in range(0, len(captions), size):
            block = captions[start : start + size]
            counts = torch.tensor([len(caption) for caption in block])
            words = torch.tensor([word for caption in block for word in caption], dtype=torch.long)
            offsets = (counts.cumsum(0) - counts).to(self._word_vectors.device)
            means = F.embedding_bag(words.to(offsets.device), self._word_vectors, offsets, mode="mean")  # [B, M]
            found.append(F.normalize(means, dim=1))
        return torch.cat(found) if found else self._word_vectors.new_zeros(0, self.config.joint_dim)

    def train(self, mode: bool = True) -> "Matcher":
        """As of any module; the looked-up vectors are made again from the weights."""
        self._word_vectors = None
        return super().train(mode)


def pad_captions(captions: Sequence[Sequence[int]]) -> Tensor:
    """Captions as word indices -> [B, T], `<pad>` behind the last word of each."""
    longest = max(map(len, captions))
    return torch.tensor([[*caption, *[PAD] * (longest - len(caption))] for caption in captions], dtype=torch.long)
