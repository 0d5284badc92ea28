"""Several decoders over the same features as one: the next word's probability is the mean of theirs.

Source: ensembles of caption decoders are in Vinyals et al. 2015, "Show and Tell". The mean is of probabilities, not of
logits: a decoder that is sure counts for no more than its share.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.search import State


class Ensemble(nn.Module):
    """Features -> the states of all its decoders; a word and these -> log of the mean probability, the next states."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        """Of decoders with the same features and the same words; ValueError if there is none.

        Sizes and layers may differ.
        """
        super().__init__()
        if not decoders:
            raise ValueError("an ensemble has at least one decoder")
        self.decoders = nn.ModuleList(decoders)
        self._decoders = tuple(decoders)
        with torch.inference_mode():
            self._part_counts = [len(decoder.start(decoder.feature_mean.unsqueeze(0))) for decoder in decoders]

    def start(self, features: Tensor) -> State:
        """The states before `<start>` from features [B, D]: the parts of each decoder in turn."""
        return tuple(part for decoder in self._decoders for part in decoder.start(features))

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """One word per caption [B] and the states -> log of the next word's mean probability [B, V], the next states.

        The logarithms are natural and their exponentials add up to one, so that log_softmax leaves them as they are.
        """
        parts = iter(state)
        log_probabilities: list[Tensor] = []
        after: list[Tensor] = []
        for decoder, part_count in zip(self._decoders, self._part_counts, strict=True):
            logits, own_after = decoder.step(words, tuple(itertools.islice(parts, part_count)))
            log_probabilities.append(logits.float().log_softmax(dim=-1))  # [B, V]
            after.extend(own_after)
        log_sum = functools.reduce(torch.logaddexp, log_probabilities)  # [B, V]
        return log_sum - math.log(len(self._decoders)), tuple(after)
