"""A trained decoder with every product that can be made beforehand made: the same steps, a third less arithmetic.

What a word adds to the gates of the first layer is looked up instead of multiplied, and the layer between hidden state
and tied embeddings is multiplied into the latter. The products cost as much as a step of as many captions as there are
words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from captionmill.stages.decoding.decoder import Decoder, State


class FoldedDecoder:
    """Steps as `decoder` in evaluation mode does, but for rounding; its weights must not change any more."""

    @torch.inference_mode()
    def __init__(self, decoder: Decoder) -> None:
        embedding: Tensor = decoder.embedding.weight  # [V, E]
        lstm: dict[str, Tensor] = dict(decoder.lstm.named_parameters())
        self.start = decoder.start
        to_gates = lstm["weight_ih_l0"]  # [4H, E], of an image beside each word [4H, 2E]
        self._word_gates = F.linear(embedding, to_gates[:, : embedding.shape[1]], _bias(lstm, 0))  # [V, 4H]
        self._image_to_gates = to_gates[:, embedding.shape[1] :].t()  # [E, 4H] or [0, 4H]
        self._hidden_to_gates = [lstm[f"weight_hh_l{layer}"].t() for layer in range(decoder.config.layers)]  # [H, 4H]
        self._below_to_gates = [
            (lstm[f"weight_ih_l{layer}"].t(), _bias(lstm, layer)) for layer in range(1, decoder.config.layers)
        ]
        self._to_logits: Tensor = decoder.to_logits.weight  # [V, H]
        self._logit_bias: Tensor = decoder.to_logits.bias  # [V]
        if decoder.config.tie_weights:
            self._to_logits = embedding @ decoder.to_embedding.weight
            self._logit_bias = self._logit_bias + embedding @ decoder.to_embedding.bias

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """One word per caption [B] and the state -> logits of the next word [B, V] and the next state."""
        hidden, cell, *image = state
        gates = self._word_gates.index_select(0, words)  # [B, 4H]
        if image:
            gates.addmm_(image[0][0], self._image_to_gates)
        hiddens: list[Tensor] = []
        cells: list[Tensor] = []
        for layer, hidden_to_gates in enumerate(self._hidden_to_gates):
            if layer:
                below_to_gates, bias = self._below_to_gates[layer - 1]
                gates = torch.addmm(bias, hiddens[-1], below_to_gates)
            gates.addmm_(hidden[layer], hidden_to_gates)
            taken, kept, new, given = gates.chunk(4, dim=1)  # each [B, H], torch's order of the gates
            cells.append(kept.sigmoid_().mul_(cell[layer]).addcmul_(taken.sigmoid_(), new.tanh_()))
            hiddens.append(given.sigmoid_() * cells[-1].tanh())
        logits = F.linear(hiddens[-1], self._to_logits, self._logit_bias)
        return logits, (torch.stack(hiddens), torch.stack(cells), *image)


def _bias(lstm: dict[str, Tensor], layer: int) -> Tensor:
    return lstm[f"bias_ih_l{layer}"] + lstm[f"bias_hh_l{layer}"]  # [4H]
