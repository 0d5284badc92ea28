"""The matcher: images and captions as vectors of length 1 whose cosine says how well they fit each other.

Source: Kiros et al. 2014, "Unifying visual-semantic embeddings with multimodal neural language models", with the
convolutions of Kim 2014, "Convolutional neural networks for sentence classification", instead of a recurrent network:
what a word adds to a convolution is looked up, so that a caption costs additions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionmill.data.captions.vocabulary import PAD

_BLOCK_WORDS = 32_768  # words that are embedded at once: 64 MB for each width of 512 channels


@dataclass(frozen=True)
class MatcherConfig:
    """Sizes of a matcher and its dropout rates in training."""

    feature_dim: int
    vocab_size: int
    embed_dim: int = 300
    """Size of the word embeddings."""
    channels: int = 512
    """Outputs of the convolutions of each width."""
    widths: tuple[int, ...] = (1, 2, 3)
    """Words that a convolution spans."""
    joint_dim: int = 512
    """Size of the vectors of images and captions."""
    dropout: float = 0.4
    """Of word embeddings and of the convolutions' outputs."""
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
        self.image = nn.Linear(config.feature_dim, config.joint_dim)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(config.dropout)
        self._convolutions = [nn.Conv1d(config.embed_dim, config.channels, width) for width in config.widths]
        self.convolutions = nn.ModuleList(self._convolutions)
        self.caption = nn.Linear(config.channels * len(config.widths), config.joint_dim)
        self._folded: list[list[Tensor]] = []

    def embed_images(self, features: Tensor) -> Tensor:
        """Features [B, D] -> [B, M]; they are standardised, and scaled to the length of random numbers."""
        deviation = self.feature_std.masked_fill(self.feature_std == 0, torch.inf)
        rows = F.normalize((features.float() - self.feature_mean) / deviation, dim=1)  # [B, D]
        return F.normalize(self.image(self.feature_dropout(rows * self.config.feature_dim**0.5)), dim=1)

    def forward(self, words: Tensor) -> Tensor:
        """Captions [B, T] as word indices, `<pad>` behind the last -> [B, M]."""
        words = self._surround(words)  # [B, P + T + P + 1]
        embedded = self.dropout(self.embedding(words)).transpose(1, 2)  # [B, E, P + T + P + 1]
        found = [convolution(embedded).relu().amax(dim=2) for convolution in self._convolutions]  # each [B, C]
        return F.normalize(self.caption(self.dropout(torch.cat(found, dim=1))), dim=1)

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[Sequence[int]]) -> Tensor:
        """Captions as word indices -> [C, M], as `forward` gives them in evaluation mode, but for rounding."""
        device = self.image.weight.device
        found = torch.empty(len(captions), self.config.joint_dim, device=device)
        order = sorted(range(len(captions)), key=lambda place: len(captions[place]))
        start = 0
        while start < len(order):
            # ... all of the block are as long as its longest: the captions are sorted
            size = max(1, _BLOCK_WORDS // (len(captions[order[start]]) + 2 * max(self.config.widths)))
            places = order[start : start + size]
            words = pad_captions([captions[place] for place in places]).to(device)  # [B, T]
            found[places] = self._look_up(words)
            start += size
        return found

    def _surround(self, words: Tensor) -> Tensor:
        """Put `<pad>` around captions [B, T] -> [B, P + T + P + 1].

        Each has a place with nothing but `<pad>` for every width, so that longer captions beside it change nothing.
        """
        longest = max(self.config.widths)
        return F.pad(words, (longest - 1, longest), value=PAD)

    def _look_up(self, words: Tensor) -> Tensor:
        """As `forward` [B, T] -> [B, M], by what each word adds to each place of a convolution."""
        words = self._surround(words)  # [B, P + T + P + 1]
        found = []
        for tables, convolution in zip(self._fold(), self._convolutions, strict=True):
            count = words.shape[1] - len(tables) + 1
            sums = tables[0][words[:, :count]]  # [B, T', C]
            for offset, table in enumerate(tables[1:], start=1):
                sums += table[words[:, offset : offset + count]]
            found.append((sums.amax(dim=1) + convolution.bias).relu())  # [B, C]
        return F.normalize(self.caption(torch.cat(found, dim=1)), dim=1)

    def _fold(self) -> list[list[Tensor]]:
        """For each width, for each of its places: what each word adds to the outputs, [V, C]."""
        if not self._folded:
            embedding = self.embedding.weight  # [V, E]
            self._folded = [
                [embedding @ convolution.weight[:, :, place].t() for place in range(convolution.weight.shape[2])]
                for convolution in self._convolutions
            ]
        return self._folded

    def train(self, mode: bool = True) -> "Matcher":
        """As of any module; weights that change make the sums of evaluation mode void."""
        self._folded = []
        return super().train(mode)


def pad_captions(captions: Sequence[Sequence[int]]) -> Tensor:
    """Captions as word indices -> [B, T], `<pad>` behind the last word of each."""
    longest = max(map(len, captions))
    return torch.tensor([[*caption, *[PAD] * (longest - len(caption))] for caption in captions], dtype=torch.long)
