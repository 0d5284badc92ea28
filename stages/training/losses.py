"""The logits of every word of whole captions, and the losses that training minimizes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionmill.data.captions.vocabulary import PAD
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.search import State
from captionmill.stages.training.self_critical import forbid

LENGTH_GROUPS = 3
"""Groups of sampled captions of similar length: each caption is padded to the longest of its group."""
_WORDS_MULTIPLE = 32  # a step's words are padded to this: oneDNN builds and keeps kernels for each count


class WordLogits(nn.Module):
    """A decoder that reads whole captions (teacher forcing); a module, so that data-parallel training can wrap it."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        """`dtype` is the precision of the network; the logits are float32."""
        super().__init__()
        self.decoder = decoder
        self._dtype = dtype

    def forward(self, features: Tensor, words: Tensor, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """The logits, the words to predict, and each one's caption, for captions [B * S, T] of images [B, D].

        N words are predicted: targets [N], rows of `words` [N]. Padding has no logits, except for the rows that pad
        them to a multiple of 32: [N + 31 at most, V]. The captions are unrolled in `groups` of similar length.
        """
        order = (words != PAD).sum(dim=1).argsort(descending=True)  # [B * S], the longest caption first
        words = words[order]
        inputs, targets = words[:, :-1], words[:, 1:]  # [B * S, T - 1]
        is_word = targets != PAD
        places = is_word.nonzero(as_tuple=True)  # of N words
        word_count = len(places[0])
        with torch.autocast(features.device.type, self._dtype, enabled=self._dtype != torch.float32):
            images = order // (len(words) // len(features))
            state = tuple(part[:, images] for part in self.decoder.start(features))  # each [layers, B * S, H]
            outputs = self._unroll_in_groups(state, inputs, is_word, groups)  # [N, H]
            logits = self.decoder.score(F.pad(outputs, (0, 0, 0, -word_count % _WORDS_MULTIPLE)))
        return logits.float(), targets[places], order[places[0]]

    def _unroll_in_groups(self, state: State, inputs: Tensor, is_word: Tensor, groups: int) -> Tensor:
        """The LSTM's outputs at each word [N, H]; the captions are sorted by length, longest first."""
        size = -(-len(inputs) // groups)
        outputs = []
        for start in range(0, len(inputs), size):
            group, length = slice(start, start + size), max(int(is_word[start].sum()), 1)
            unrolled = self.decoder.unroll(tuple(part[:, group] for part in state), inputs[group, :length])[0]
            outputs.append(unrolled[is_word[group, :length]])
        return torch.cat(outputs)


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sums over the targets [N] in nats: smoothed and plain cross entropy; logits as `WordLogits` returns them.

    Source of label smoothing: Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision".
    """
    log_probabilities = logits.log_softmax(dim=-1)
    entropy = F.nll_loss(log_probabilities, _fill(targets, logits), ignore_index=PAD, reduction="sum")
    if not label_smoothing:
        return entropy, entropy
    spread = -log_probabilities.mean(dim=-1)[: len(targets)].sum()
    return (1 - label_smoothing) * entropy + label_smoothing * spread, entropy


def distillation_loss(logits: Tensor, probabilities: Tensor, count: int) -> Tensor:
    """The cross entropy with the teachers' `probabilities`, like the logits [N + 31 at most, V], summed over N words.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", at temperature 1.
    """
    return -(probabilities[:count] * logits[:count].log_softmax(dim=-1)).sum()


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The cross entropy summed over the targets [N] of sampled captions, each multiplied by its weight [N].

    It uses the probabilities that the words were drawn with, in which only words that may be drawn count.
    """
    entropies = F.cross_entropy(forbid(logits), _fill(targets, logits), ignore_index=PAD, reduction="none")
    return (entropies[: len(targets)] * weights).sum()


def _fill(targets: Tensor, logits: Tensor) -> Tensor:
    """The targets, with `<pad>` for the logits that belong to no word."""
    return F.pad(targets, (0, len(logits) - len(targets)), value=PAD)
