"""Self-critical training: captions sampled from the decoder are made likelier the more CIDEr-D they earn.

Each image has several samples, and a sample's baseline is the mean reward of the image's others: no greedy pass, and
no bias. Sources: Rennie et al. 2017, "Self-critical sequence training for image captioning"; Luo 2020, "A better
variant of self-critical sequence training" (this baseline). As there, the end of a sentence counts as a word of its own
in the reward: else captions that break off would be rewarded as if they were whole.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captionmill.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.scoring.metrics import CiderD
from captionmill.stages.scoring.ptb_tokenizer import tokenize_ptb

_END_TOKEN = "<end>"
_STEPS_A_LOOK = 4  # steps between two looks whether all captions have ended: a look waits for a GPU


@torch.no_grad()
def sample_captions(decoder: Decoder, features: Tensor, *, samples: int, max_length: int) -> Tensor:
    """Captions drawn word by word from the decoder's own probabilities, for features [B, D].

    [B * samples, T], those of an image next to each other: `<start>`, at most `max_length` words, an `<end>` among
    these where one was drawn, and `<pad>` after it. `<pad>`, `<start>` and `<unk>` are never drawn, nor `<end>` first.
    """
    state = tuple(part.repeat_interleave(samples, dim=1) for part in decoder.start(features))
    words = torch.full((len(features) * samples,), START, device=features.device)
    ended = torch.zeros_like(words, dtype=torch.bool)
    captions = [words]
    for step in range(max_length):
        logits, state = decoder.step(words, state)
        logits = logits.float()  # [B * samples, V]
        logits[:, [PAD, START, UNK] + ([END] if step == 0 else [])] = -torch.inf
        # of a network that is not finite anything may be drawn: the loss will tell, where this would be a traceback
        drawn = logits.softmax(dim=-1).nan_to_num(nan=1.0).multinomial(1).squeeze(1)
        words = torch.where(ended, PAD, drawn)
        captions.append(words)
        ended = ended | (words == END)
        if step % _STEPS_A_LOOK == 0 and bool(ended.all()):
            break
    return torch.stack(captions, dim=1)


class Reward:
    """CIDEr-D of sampled captions against the references of their images, the end of the sentence included."""

    def __init__(self, captions: Mapping[str, Sequence[str]], keys: Sequence[str], vocabulary: Vocabulary) -> None:
        """Rarity weights come from the references of the images `keys`."""
        references = {key: [[*tokenize_ptb(text), _END_TOKEN] for text in captions[key]] for key in keys}
        self._scorer = CiderD(references)
        self._vocabulary = vocabulary
        self._tokens = functools.cache(lambda index: tuple(tokenize_ptb(vocabulary.decode([index]))))

    def advantages(self, keys: Sequence[str], sampled: Tensor) -> tuple[npt.NDArray[np.float32], float]:
        """How much better each caption is than the others of its image, and the mean reward, 0 to 10.

        `sampled` [B * S, T] as `sample_captions` gives them, S a key.
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
                return [*tokens, _END_TOKEN]
            if index != PAD:
                tokens += self._tokens(index)
        return tokens
