"""The decoder: an LSTM whose initial state is made from an image's features, and a Linear layer that scores words."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""Hidden and cell state of the LSTM, each [L, B, H]; of an ensemble, those of each decoder in turn."""


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
    feature_dropout: float
    """Share of the image's numbers dropped in training."""


class Decoder(nn.Module):
    """Features -> initial state; a word and the state -> logits of the next word and the next state.

    Source: Vinyals et al. 2015, "Show and Tell", with the image in the initial state rather than in step 0
    ("init-inject" in Tanti et al. 2018).
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        """Fresh weights from torch's global generator; features are taken as they are until `fit_features`."""
        super().__init__()
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.register_buffer("feature_std", torch.ones(config.feature_dim))
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.to_hidden = nn.Linear(config.feature_dim, config.hidden_dim)
        self.to_cell = nn.Linear(config.feature_dim, config.hidden_dim)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.lstm = nn.LSTM(config.embed_dim, config.hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.to_logits = nn.Linear(config.hidden_dim, config.vocab_size)

    def fit_features(self, mean: Tensor, std: Tensor) -> None:
        """Standardise features by the training images' `mean` and `std` [D].

        A tenth of the average deviation is the least that is divided by: a number that hardly varied in training must
        not drown the others when it does.
        """
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp(min=0.1 * float(std.mean()) or 1.0))

    def start(self, features: Tensor) -> State:
        """The LSTM's state before `<start>`, from features [B, D]."""
        standardised = (features.float() - self.feature_mean) / self.feature_std  # [B, D]
        dropped = self.feature_dropout(standardised)
        hidden = torch.tanh(self.to_hidden(dropped))  # [B, H]
        cell = torch.tanh(self.to_cell(dropped))  # [B, H]
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
