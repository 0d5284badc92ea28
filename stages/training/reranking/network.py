"""The matcher in torch, as it is trained."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionmill.data.captions.vocabulary import PAD
from captionmill.stages.ranking.matcher import Matcher, MatcherConfig


class MatcherNetwork(nn.Module):
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

    def embed_images(self, features: Tensor) -> Tensor:
        """Features [B, D] -> [B, M], as `Matcher.embed_images` in evaluation mode, but for rounding."""
        deviation = self.feature_std.masked_fill(self.feature_std == 0, torch.inf)
        rows = F.normalize((features.float() - self.feature_mean) / deviation, dim=1)  # [B, D]
        return F.normalize(self.to_joint(self.feature_dropout(rows * self.config.feature_dim**0.5)), dim=1)

    def forward(self, words: Tensor) -> Tensor:
        """Captions [B, T] as word indices, `<pad>` behind the last -> [B, M], as `Matcher.embed_captions`."""
        is_word = (words != PAD).unsqueeze(2)  # [B, T, 1]
        embedded = self.dropout(self.embedding(words)) * is_word  # [B, T, E]
        mean = embedded.sum(dim=1) / is_word.sum(dim=1).clamp(min=1)  # [B, E]
        return F.normalize(self.words_to_joint(mean), dim=1)

    def trained(self) -> Matcher:
        """The matcher with these weights."""
        weights = self.state_dict().items()
        return Matcher(self.config, {name: tensor.float().cpu().numpy().copy() for name, tensor in weights})
