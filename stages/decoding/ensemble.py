"""Several decoders over the same features as one: the next word's probability is the mean of theirs.

Where candidates are re-ranked, each decoder searches by itself instead (captioner.py).

Source: ensembles of caption decoders are in Vinyals et al. 2015, "Show and Tell". The mean is of probabilities, not of
logits: a decoder that is sure counts for no more than its share.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from array_api_compat import array_namespace

from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.constraints import AnyArray, log_softmax
from captionmill.stages.decoding.search import State, StepDecoder


class SingleDecoder(StepDecoder, Protocol):
    """One trained decoder."""

    config: DecoderConfig

    def scale(self, features: AnyArray) -> AnyArray:
        """Features as they enter the first Linear layer: [B, D] -> [B, D]."""


AnySingle = TypeVar("AnySingle", bound=SingleDecoder)


class Ensemble:
    """Features -> the states of all its decoders; a word and these -> log of the mean probability, the next states."""

    def __init__(self, decoders: Sequence[SingleDecoder]) -> None:
        """Of decoders with the same features and the same words, all in NumPy or all in torch."""
        self.decoders = tuple(decoders)

    def start(self, features: AnyArray) -> State:
        """The states before `<start>` from features [B, D]: the parts of each decoder in turn."""
        return tuple(part for decoder in self.decoders for part in decoder.start(features))

    def step(self, words: AnyArray, state: State, parents: AnyArray | None = None) -> tuple[AnyArray, State]:
        """One word per caption [B] and the states -> log of the next word's mean probability [B, V], the next states.

        The logarithms are natural and their exponentials add up to one, so that log_softmax leaves them as they are.
        `parents` is as in `StepDecoder.step`.
        """
        parts = iter(state)
        log_probabilities: list[AnyArray] = []
        after: list[AnyArray] = []
        for decoder in self.decoders:
            own_state = tuple(itertools.islice(parts, len(decoder.config.state_parts)))
            logits, own_after = decoder.step(words, own_state, parents)
            log_probabilities.append(log_softmax(logits))  # [B, V]
            after.extend(own_after)
        log_sum = functools.reduce(array_namespace(*log_probabilities).logaddexp, log_probabilities)  # [B, V]
        return log_sum - math.log(len(self.decoders)), tuple(after)


def join_decoders(decoders: Sequence[AnySingle]) -> AnySingle | Ensemble:
    """The ensemble of `decoders`, or the decoder itself if there is one only."""
    return decoders[0] if len(decoders) == 1 else Ensemble(decoders)
