"""What training makes smaller."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionmill.data.captions.vocabulary import PAD
from captionmill.stages.decoding.decoder import Decoder, State
from captionmill.stages.training.self_critical import forbid

_LENGTH_GROUPS = 3  # of drawn captions, which differ in length: each padded to its group's longest
_WORDS_MULTIPLE = 32  # that a step's words are filled up to: oneDNN makes and keeps kernels for each count it meets


class Losses(nn.Module):
    """A decoder and what training makes smaller; a module, so that data-parallel training can wrap it."""

    def __init__(self, decoder: Decoder, label_smoothing: float, dtype: torch.dtype) -> None:
        """`dtype`: the arithmetic of the network; the losses themselves are float32."""
        super().__init__()
        self.decoder = decoder
        self._smoothing, self._dtype = label_smoothing, dtype

    def forward(self, features: Tensor, words: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sums over the words of captions [B * S, T] of images [B, D]: smoothed cross entropy, and plain.

        With `weights` [B * S], one a caption drawn by `sample_captions`, the first is the weighted cross entropy
        without smoothing, of the probabilities that it was drawn with.
        """
        order = (words != PAD).sum(dim=1).argsort(descending=True)
        words = words[order]
        inputs, targets = words[:, :-1], words[:, 1:]
        is_word = targets != PAD  # [B * S, T - 1]
        expected = targets[is_word]
        word_count = len(expected)
        filled = (0, -word_count % _WORDS_MULTIPLE)  # to N words; those added count nowhere
        expected = F.pad(expected, filled, value=PAD)  # [N]
        with torch.autocast(features.device.type, self._dtype, enabled=self._dtype != torch.float32):
            images = order // (len(words) // len(features))
            state = tuple(part[:, images] for part in self.decoder.start(features))
            outputs = self._unroll_in_groups(state, inputs, is_word, 1 if weights is None else _LENGTH_GROUPS)
            logits = self.decoder.score(F.pad(outputs, (0, 0, *filled)))  # [N, V]: none for padding
        logits = logits.float()
        if weights is not None:
            entropies = F.cross_entropy(forbid(logits), expected, ignore_index=PAD, reduction="none")
            each = weights[order].unsqueeze(1).expand_as(targets)[is_word]
            return (entropies[:word_count] * each).sum(), entropies.sum()
        log_probabilities = logits.log_softmax(dim=-1)
        entropy = F.nll_loss(log_probabilities, expected, ignore_index=PAD, reduction="sum")
        if not self._smoothing:
            return entropy, entropy
        spread = -log_probabilities.mean(dim=-1)[:word_count].sum()
        return (1 - self._smoothing) * entropy + self._smoothing * spread, entropy

    def _unroll_in_groups(self, state: State, inputs: Tensor, is_word: Tensor, groups: int) -> Tensor:
        """The LSTM's outputs at each word [words, H]; the captions are in the order of their lengths, longest first."""
        size = -(-len(inputs) // groups)
        outputs = []
        for start in range(0, len(inputs), size):
            group, length = slice(start, start + size), max(int(is_word[start].sum()), 1)
            unrolled = self.decoder.unroll(tuple(part[:, group] for part in state), inputs[group, :length])[0]
            outputs.append(unrolled[is_word[group, :length]])
        return torch.cat(outputs)
