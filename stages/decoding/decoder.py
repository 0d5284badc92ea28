"""The decoder: an LSTM whose initial state is made from an image's features, and a Linear layer that scores words."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionmill.data.features.file import Features
from captionmill.stages.decoding.config import DecoderConfig, Weights
from captionmill.stages.decoding.ensemble import Ensemble, SingleDecoder, join_decoders
from captionmill.stages.decoding.folded import FoldedDecoder
from captionmill.stages.decoding.search import State
from captionmill.stages.machine import without_tf32

_LEVELS = 2**16  # of dropout rates: 16 random bits per value
_INIT_STD = 0.05  # of tied embeddings: torch's 1.0 makes the first logits hundreds


class Decoder(nn.Module):
    """Features -> initial state; a word and the state -> logits of the next word and the next state.

    Source: Vinyals et al. 2015, "Show and Tell"; the image inputs are named in Tanti et al. 2018,
    "Where to put the image in an image caption generator": "init" is init-inject, "first" pre-inject, "every"
    par-inject. Tied weights: Press and Wolf 2017, "Using the output embedding to improve language models".
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        """Fresh weights from torch's global generator; features are taken as they are until `fit_features`."""
        super().__init__()
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.register_buffer("feature_std", torch.ones(config.feature_dim))
        self.feature_dropout = Dropout(config.feature_dropout)
        if config.image_input == "init":
            self.to_hidden = nn.Linear(config.feature_dim, config.hidden_dim)
            self.to_cell = nn.Linear(config.feature_dim, config.hidden_dim)
        else:
            self.to_input = nn.Linear(config.feature_dim, config.embed_dim)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.lstm = nn.LSTM(
            config.embed_dim * (2 if config.image_input == "every" else 1),
            config.hidden_dim,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = Dropout(config.dropout)
        output_dim = config.hidden_dim
        if config.tie_weights:
            output_dim = config.embed_dim
            self.to_embedding = nn.Linear(config.hidden_dim, config.embed_dim)
            nn.init.normal_(self.embedding.weight, std=_INIT_STD)
        self.to_logits = nn.Linear(output_dim, config.vocab_size)
        if config.tie_weights:
            self.to_logits.weight = self.embedding.weight

    @classmethod
    def of(cls, config: DecoderConfig, weights: Weights) -> "Decoder":
        """The decoder with `weights`, which fit `config`."""
        decoder = cls(config)
        tensors = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}
        if config.tie_weights:
            tensors["to_logits.weight"] = tensors["embedding.weight"]
        decoder.load_state_dict(tensors)
        return decoder

    def fit_features(self, mean: Tensor, std: Tensor) -> None:
        """Standardise features by the training images' `mean` and `std` [D].

        A tenth of the average deviation is the least that is divided by: a number that hardly varied in training must
        not drown the others when it does.
        """
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp(min=0.1 * float(std.mean()) or 1.0))

    def bias_forget_gates(self, bias: float) -> None:
        """Let the untrained LSTM keep the share sigmoid(`bias`) of its cell state, so of the image, at each step.

        Source: Jozefowicz et al. 2015, "An empirical exploration of recurrent network architectures".
        """
        gates = slice(self.config.hidden_dim, 2 * self.config.hidden_dim)  # after the input gates
        for layer in range(self.config.layers):
            nn.init.constant_(self.lstm.get_parameter(f"bias_ih_l{layer}")[gates], bias)
            nn.init.zeros_(self.lstm.get_parameter(f"bias_hh_l{layer}")[gates])

    def start(self, features: Tensor) -> State:
        """The state before `<start>`, from features [B, D]."""
        scaled = self.feature_dropout(self.scale(features.float()))  # [B, D]
        if self.config.image_input == "init":
            hidden = torch.tanh(self.to_hidden(scaled))  # [B, H]
            cell = torch.tanh(self.to_cell(scaled))  # [B, H]
            return tuple(part.unsqueeze(0).expand(self.config.layers, -1, -1).contiguous() for part in (hidden, cell))
        image = self.to_input(scaled)  # [B, E]
        batch_size = image.shape[0]  # len() would be a constant in an export
        empty = image.new_zeros(self.config.layers, batch_size, self.config.hidden_dim)
        if self.config.image_input == "first":
            state: State = self.lstm(image.unsqueeze(1), (empty, empty))[1]
            return state
        return empty, empty, image.unsqueeze(0)

    def unroll(self, state: State, words: Tensor) -> tuple[Tensor, State]:
        """The words fed in [B, T] one after the other -> the LSTM's outputs [B, T, H], and the state after the last."""
        embedded = self.dropout(self.embedding(words))  # [B, T, E]
        hidden, cell, *image = state
        if image:
            beside = image[0][0].unsqueeze(1).expand(-1, embedded.shape[1], -1).to(embedded.dtype)  # [B, T, E]
            embedded = torch.cat([embedded, beside], dim=2)  # [B, T, 2E]
        outputs, (hidden, cell) = self.lstm(embedded, (hidden, cell))
        return outputs, (hidden, cell, *image)

    def score(self, outputs: Tensor) -> Tensor:
        """The LSTM's outputs [..., H] -> logits of the next word [..., V]."""
        dropped = self.dropout(outputs)
        if self.config.tie_weights:
            dropped = self.to_embedding(dropped)
        logits: Tensor = self.to_logits(dropped)
        return logits

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        """Teacher forcing: features [B, D] and the words fed in [B, T] -> logits of each next word [B, T, V]."""
        return self.score(self.unroll(self.start(features), words)[0])

    def step(self, words: Tensor, state: State, parents: Tensor | None = None) -> tuple[Tensor, State]:
        """As `StepDecoder.step`."""
        if parents is not None:
            state = tuple(part[:, parents] for part in state)
        outputs, state = self.unroll(state, words.unsqueeze(1))  # [B, 1, H]
        return self.score(outputs[:, 0]), state

    def scale(self, features: Tensor) -> Tensor:
        """Features as they enter the first Linear layer: [B, D] -> [B, D].

        "standardize" takes off the training images' mean and divides by their deviation; "unit" makes the root mean
        square of each row 1.
        """
        if self.config.feature_scaling != "unit":
            features = (features - self.feature_mean) / self.feature_std
        if self.config.feature_scaling != "standardize":
            features = F.normalize(features, dim=1) * math.sqrt(features.shape[1])
        return features


class TorchSteps:
    """The steps of a decoder in evaluation mode, on its device; features are NumPy's."""

    def __init__(self, decoder: Decoder) -> None:
        without_tf32()
        self._decoder = decoder.eval()
        self.config = decoder.config

    @torch.inference_mode()
    def scale(self, features: Features) -> Tensor:
        """As `Decoder.scale`."""
        return self._decoder.scale(self._move(features))

    @torch.inference_mode()
    def start(self, features: Features) -> State:
        """As `Decoder.start`."""
        return self._decoder.start(self._move(features))

    @torch.inference_mode()
    def step(self, words: Tensor, state: State, parents: Tensor | None = None) -> tuple[Tensor, State]:
        """As `Decoder.step`."""
        return self._decoder.step(words, state, parents)

    def _move(self, features: Features) -> Tensor:
        return torch.from_numpy(features).to(self._decoder.feature_mean.device).float()


def choose_steps(*decoders: Decoder) -> SingleDecoder | Ensemble:
    """The steps of `decoders`, as one, in the form that is fastest on their device; sets them to evaluation mode."""

    def choose(decoder: Decoder) -> SingleDecoder:
        if decoder.feature_mean.device.type != "cpu":  # GPUs have a fast LSTM
            return TorchSteps(decoder)
        return FoldedDecoder(decoder.config, {name: part.numpy() for name, part in decoder.eval().state_dict().items()})

    return join_decoders([choose(decoder) for decoder in decoders])


class Dropout(nn.Module):
    """In training, values set to 0 with the probability `rate`, the others scaled so that the mean stays as it was.

    With few random numbers: on a CPU torch draws one per value, on one core, which takes a fifth of a training. Source:
    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    def __init__(self, rate: float) -> None:
        """`rate`: 0 to 1; on a CPU its nearest multiple of 1 / 65,536."""
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Values [...] -> values [...]; drawn from torch's global generator."""
        if values.device.type != "cpu":
            return F.dropout(values, self.rate, self.training)
        kept = _LEVELS - round(self.rate * _LEVELS)
        if not self.training or kept == _LEVELS:
            return values
        draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four values each
        levels = draws.view(torch.int16)[: values.numel()].view(values.shape)  # -32,768 to 32,767
        mask = torch.lt(levels, kept - _LEVELS // 2, out=torch.empty_like(values))
        return values * mask.mul_(_LEVELS / max(kept, 1))
