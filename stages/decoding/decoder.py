"""The decoder: an LSTM whose initial state is made from an image's features, and a Linear layer that scores words."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
"""Hidden and cell state of the LSTM, each [1, B, H]."""


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes that a decoder's weights have."""

    feature_dim: int
    """Numbers an image."""
    vocab_size: int
    """Words, the four special ones included."""
    embed_dim: int
    """Numbers a word embedding."""
    hidden_dim: int
    """Numbers in the hidden state, and in the cell state."""
    dropout: float
    """Share of embedding and output values dropped in training."""


class Decoder(nn.Module):
    """Features -> initial state; a word and the state -> logits of the next word and the next state.

    Source: Vinyals et al. 2015, "Show and Tell", with the image in the initial state rather than in step 0
    ("init-inject" in Tanti et al. 2018).
    """

    def __init__(self, config: DecoderConfig) -> None:
        """Fresh weights from torch's global generator."""
        super().__init__()
        self.config = config
        self.to_hidden = nn.Linear(config.feature_dim, config.hidden_dim)
        self.to_cell = nn.Linear(config.feature_dim, config.hidden_dim)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.lstm = nn.LSTM(config.embed_dim, config.hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.to_logits = nn.Linear(config.hidden_dim, config.vocab_size)

    def start(self, features: Tensor) -> State:
        """The LSTM's state before `<start>`, from features [B, D] of unit length times the root of D."""
        scaled = F.normalize(features.float()) * features.shape[1] ** 0.5  # [B, D]: as large as D unit normals
        hidden = torch.tanh(self.to_hidden(self.dropout(scaled)))  # [B, H]
        cell = torch.tanh(self.to_cell(self.dropout(scaled)))  # [B, H]
        return hidden.unsqueeze(0), cell.unsqueeze(0)

    def unroll(self, features: Tensor, words: Tensor) -> Tensor:
        """Teacher forcing: features [B, D] and the words fed in [B, T] -> the LSTM's outputs [B, T, H]."""
        embedded = self.dropout(self.embedding(words))  # [B, T, E]
        outputs: Tensor = self.dropout(self.lstm(embedded, self.start(features))[0])
        return outputs

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        """Teacher forcing: features [B, D] and the words fed in [B, T] -> logits of each next word [B, T, V]."""
        logits: Tensor = self.to_logits(self.unroll(features, words))
        return logits

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """One word a caption [B] and the state -> logits of the next word [B, V] and the next state."""
        embedded = self.dropout(self.embedding(words)).unsqueeze(1)  # [B, 1, E]
        outputs, state = self.lstm(embedded, state)  # [B, 1, H]
        return self.to_logits(self.dropout(outputs[:, 0])), state
