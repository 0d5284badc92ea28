"""A trained decoder in NumPy: the steps that torch's takes in evaluation mode, but for rounding, and without torch.

Every product that can be made beforehand is made: a third less arithmetic. What a word adds to the gates of the first
layer is looked up instead of multiplied, and the layer between hidden state and tied embeddings is multiplied into the
latter. The products cost as much as a step of as many captions as there are words.
"""

import math

import numpy as np
import numpy.typing as npt

from captionmill.data.features.file import Features
from captionmill.stages.decoding.config import DecoderConfig, Weights
from captionmill.stages.decoding.search import State

Numbers = npt.NDArray[np.float32]

_CHUNK_ROWS = 64  # captions whose gates stay in a core's cache


class FoldedDecoder:
    """Steps as the decoder with these weights takes them."""

    @np.errstate(invalid="ignore", over="ignore")  # a training that diverges says so itself
    def __init__(self, config: DecoderConfig, weights: Weights) -> None:
        """`weights` may change later: all that is made of them is made here."""
        self.config = config
        self._mean, self._std = weights["feature_mean"].copy(), weights["feature_std"].copy()
        names = ("to_hidden", "to_cell") if config.image_input == "init" else ("to_input",)
        self._image_layers = [(weights[f"{name}.weight"].T.copy(), weights[f"{name}.bias"].copy()) for name in names]
        embedding, embed_dim = weights["embedding.weight"], config.embed_dim  # [V, E]
        # sigmoid(x) is (1 + tanh(x / 2)) / 2: with the halves in the weights, all gates are one tanh
        halves = np.full(4 * config.hidden_dim, 0.5, np.float32)
        halves[2 * config.hidden_dim : 3 * config.hidden_dim] = 1  # torch's order: input, forget, cell, output
        self._hidden_to_gates = []  # each [H, 4H]
        self._below_to_gates = []  # each [E, 4H] or [H, 4H], with the bias [4H]
        for layer in range(config.layers):
            bias = weights[f"lstm.bias_ih_l{layer}"] + weights[f"lstm.bias_hh_l{layer}"]
            self._below_to_gates.append((weights[f"lstm.weight_ih_l{layer}"].T * halves, bias * halves))
            self._hidden_to_gates.append(weights[f"lstm.weight_hh_l{layer}"].T * halves)
        to_gates, bias = self._below_to_gates[0]
        self._word_gates = embedding @ to_gates[:embed_dim] + bias  # [V, 4H]
        self._image_to_gates = to_gates[embed_dim:]  # [E, 4H] or [0, 4H]
        to_logits, self._logit_bias = embedding, weights["to_logits.bias"].copy()  # [V, H], [V]
        if config.tie_weights:
            to_logits = embedding @ weights["to_embedding.weight"]
            self._logit_bias += embedding @ weights["to_embedding.bias"]
        else:
            to_logits = weights["to_logits.weight"]
        self._to_logits = to_logits.T.copy()  # [H, V]: in this order small batches take two thirds of the time

    def scale(self, features: Features) -> Numbers:
        """Features as they enter the first Linear layer: [B, D] -> [B, D]; as `Decoder.scale`."""
        scaled = features.astype(np.float32)
        if self.config.feature_scaling != "unit":
            scaled = (scaled - self._mean) / self._std
        if self.config.feature_scaling != "standardize":
            lengths = np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), np.float32(1e-12))
            scaled = scaled / lengths * np.float32(math.sqrt(scaled.shape[1]))
        return scaled

    def start(self, features: Features) -> State:
        """The state before `<start>`, from features [B, D]."""
        scaled, layers = self.scale(features), self.config.layers
        images = [scaled @ weight + bias for weight, bias in self._image_layers]
        if self.config.image_input == "init":
            return tuple(np.repeat(np.tanh(part)[np.newaxis], layers, axis=0) for part in images)
        empty = np.zeros((layers, len(features), self.config.hidden_dim), np.float32)
        if self.config.image_input == "first":
            to_gates, bias = self._below_to_gates[0]
            return self._advance(images[0] @ to_gates + bias, empty, empty, np.arange(len(features)))
        return empty, empty, images[0][np.newaxis]

    def step(
        self, words: npt.NDArray[np.int64], state: State, parents: npt.NDArray[np.int64] | None = None
    ) -> tuple[Numbers, State]:
        """One word per caption [B] and the state -> logits of the next word [B, V] and the next state.

        `parents` is as in `StepDecoder.step`: what captions inherit is multiplied once for all that have it.
        """
        hidden, cell, *image = state
        parents = np.arange(len(words)) if parents is None else parents
        gates = self._word_gates[words]  # [B, 4H]
        if image:
            gates += (image[0][0] @ self._image_to_gates)[parents]
            image = [image[0][:, parents]]
        hidden, cell = self._advance(gates, hidden, cell, parents)
        logits = hidden[-1] @ self._to_logits
        logits += self._logit_bias
        return logits, (hidden, cell, *image)

    def _advance(
        self, gates: Numbers, hidden: Numbers, cell: Numbers, parents: npt.NDArray[np.int64]
    ) -> tuple[Numbers, Numbers]:
        """The gates of the first layer [B, 4H] without what comes from `hidden` [L, P, H] -> both after a step.

        `parents` [B] of P: what each caption continues.
        """
        size = self.config.hidden_dim
        hiddens, cells = np.empty((2, len(hidden), len(gates), size), np.float32)  # each [L, B, H]
        for layer, hidden_to_gates in enumerate(self._hidden_to_gates):
            if layer:
                below_to_gates, bias = self._below_to_gates[layer]
                gates = hiddens[layer - 1] @ below_to_gates
                gates += bias
            inherited = hidden[layer] @ hidden_to_gates  # [P, 4H]
            for start in range(0, len(gates), _CHUNK_ROWS):
                chunk = slice(start, start + _CHUNK_ROWS)
                own = gates[chunk]
                own += inherited[parents[chunk]]
                np.tanh(own, out=own)
                taken, kept, new, given = (own[:, place * size : (place + 1) * size] for place in range(4))
                for sigmoid in (taken, kept, given):
                    np.multiply(sigmoid, 0.5, out=sigmoid)
                    np.add(sigmoid, 0.5, out=sigmoid)
                cells_after, hiddens_after = cells[layer, chunk], hiddens[layer, chunk]
                np.multiply(kept, cell[layer][parents[chunk]], out=cells_after)
                cells_after += taken * new
                np.tanh(cells_after, out=hiddens_after)
                hiddens_after *= given
        return hiddens, cells
