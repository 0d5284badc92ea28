"""Self-critical training: sampled captions become more likely if they have a higher CIDEr-D.

Each image has several samples, and a sample's baseline is the mean reward of the image's other samples: no greedy pass,
and no bias. Sources: Rennie et al. 2017, "Self-critical sequence training for image captioning"; Luo 2020, "A better
variant of self-critical sequence training" (this baseline). As there, the end of a sentence counts as a word in the
reward: otherwise captions that break off would be rewarded as if they were complete.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END, PAD, SPECIAL_WORDS, START, UNK, Vocabulary
from captionmill.stages.decoding.constraints import WordRule
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.sampling import draw_words
from captionmill.stages.scoring.metrics import CiderD
from captionmill.stages.scoring.tokens import tokenize_for_scores

RULE = WordRule(never=(PAD, START), min_length=0)
"""What may be drawn. `<unk>` may: a word that no reference has earns nothing, and what could never be drawn would never
become less likely."""


@torch.no_grad()
def sample_captions(decoder: Decoder, features: Tensor, *, samples: int, max_length: int) -> Tensor:
    """Captions drawn word by word from the decoder's own probabilities, for features [B, D].

    [B * samples, T], those of an image next to each other: `<start>`, at most `max_length` words, an `<end>` among
    these where one was drawn, and `<pad>` after it. Which words may come is up to `RULE`. Random numbers are from
    torch's global generator.
    """
    count = len(features) * samples
    state = tuple(
        part.repeat_interleave(samples, dim=1) for part in decoder.start(features)
    )  # each [L, B * samples, H]
    chances = torch.rand(count, max_length, device=features.device)
    words, _ = draw_words(decoder, state, chances, replace(RULE, max_length=max_length))  # [B * samples, T - 1]
    return torch.cat([words.new_full((count, 1), START), words], dim=1)


def forbid(logits: Tensor) -> Tensor:
    """Logits [..., V] of the next word, without the words that are never drawn; gradients pass through the others."""
    return logits.index_fill(-1, torch.tensor(RULE.never, device=logits.device), -torch.inf)


class Reward:
    """CIDEr-D of sampled captions against the references of their images, the end of the sentence included."""

    def __init__(self, captions: Mapping[str, Sequence[str]], keys: Sequence[str], vocabulary: Vocabulary) -> None:
        """Rarity weights come from the references of the images `keys`."""
        tokenize = functools.partial(tokenize_for_scores, word_rule=vocabulary.word_rule)
        references = {key: [[*tokenize(text), SPECIAL_WORDS[END]] for text in captions[key]] for key in keys}
        self._scorer = CiderD(references)
        self._tokens = functools.cache(lambda index: tuple(tokenize(vocabulary.decode([index]))))

    def advantages(self, keys: Sequence[str], sampled: Tensor) -> tuple[npt.NDArray[np.float32], float]:
        """The advantage of each caption over the others of its image, and the mean reward, 0 to 10.

        `sampled` [B * S, T] as `sample_captions` returns them, S per key.
        """
        samples = len(sampled) // len(keys)
        rewards = np.array(
            [
                self._scorer.score(keys[row // samples], self._sentence(indices))
                for row, indices in enumerate(sampled[:, 1:].tolist())
            ]
        ).reshape(-1, samples)
        baselines = (rewards.sum(axis=1, keepdims=True) - rewards) / (samples - 1)
        return (rewards - baselines).reshape(-1).astype(np.float32), float(rewards.mean())

    def _sentence(self, indices: Sequence[int]) -> list[str]:
        tokens: list[str] = []
        for index in indices:
            if index == END:
                return [*tokens, SPECIAL_WORDS[END]]
            if index == PAD:
                break
            tokens += (SPECIAL_WORDS[UNK],) if index == UNK else self._tokens(index)
        return tokens
