"""Greedy and beam search over the steps of a decoder, or of an ensemble, many images at once.

`<pad>`, `<start>` and `<unk>` are never chosen, and a caption has at least one word. Probabilities are over the whole
vocabulary. A caption that reaches the maximum length is cut and marked, never an error.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captionmill.data.vocabulary import END, PAD, START, UNK
from captionmill.stages.decoding.decoder import State

_NEVER_CHOSEN = (PAD, START, UNK)


class StepDecoder(Protocol):
    """What can be searched: one word after another, the state a flat tuple of any parts, each [L, B, H]."""

    def start(self, features: Tensor) -> State:
        """The state before `<start>`, from features [B, D]."""

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """One word a caption [B] and the state -> logits of the next word [B, V] and the next state."""


@dataclass(frozen=True)
class DecodedCaption:
    """A caption as word indices, without `<start>` and `<end>`."""

    words: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Natural logarithm of each word's probability given those before it; one for each word."""
    cut: bool
    """The maximum length was reached before `<end>`."""

    @property
    def confidence(self) -> float:
        """Geometric mean of the words' probabilities, 0 to 1."""
        return math.exp(sum(self.log_probabilities) / len(self.log_probabilities)) if self.words else 0.0


@torch.inference_mode()
def search_captions(
    decoder: StepDecoder, features: Tensor, *, beam_size: int, max_length: int, length_penalty: float = 0.0
) -> list[DecodedCaption]:
    """The best caption for each row of `features` [B, D], by its score.

    The score is the sum of the log probabilities of its words, `<end>` included, divided by the number of these to the
    power of `length_penalty`: 0 leaves the sum, which favours short captions; 1 makes it a mean (Wu et al. 2016,
    "Google's neural machine translation system", with words alone in the place of their (5 + words) / 6).

    Beam search keeps the `beam_size` best captions at each step; one that has ended competes on with its score as it
    is. A beam of one is greedy: the highest logit is the next word. The decoder should be in evaluation mode.
    """
    beams, device = beam_size, features.device
    found: list[DecodedCaption | None] = [None] * len(features)
    searched = torch.arange(len(features), device=device)  # [B] the images whose caption is not known yet
    # all captions of one image stand next to each other: row = image * K + beam
    state = tuple(part.repeat_interleave(beams, dim=1) for part in decoder.start(features))  # each [L, B*K, H]
    words = torch.full((len(features) * beams,), START, device=device)
    sums = torch.full((len(features), beams), -math.inf, device=device)  # [B, K] of log probabilities
    sums[:, 0] = 0.0  # all beams are equal at first: only one may continue
    ended = torch.zeros(len(features), beams, dtype=torch.bool, device=device)
    lengths = torch.zeros(len(features), beams, device=device)  # [B, K] words, with <end>
    history = torch.full((len(features), beams, max_length), PAD, device=device)  # [B, K, T] word indices
    history_scores = torch.zeros(len(features), beams, max_length, device=device)  # their log probabilities

    for step in range(max_length + 1):  # one more than the words, for <end>
        logits, state = decoder.step(words, state)
        log_probabilities = logits.float().log_softmax(dim=-1)  # [B*K, V]
        allowed = _allowed(log_probabilities, ended.view(-1), is_first=step == 0, is_last=step == max_length)
        vocab_size = allowed.shape[1]
        next_lengths = lengths + ~ended
        next_sums = (sums.view(-1, 1) + allowed).view(len(searched), beams, -1)  # [B, K, V]
        scores = next_sums / next_lengths.unsqueeze(2) ** length_penalty if length_penalty else next_sums
        best_scores, chosen = scores.view(len(searched), -1).topk(beams)  # [B, K] of K*V
        parents = chosen // vocab_size  # [B, K] which beam each goes on from
        next_words = chosen % vocab_size  # [B, K]
        history = history.gather(1, parents.unsqueeze(2).expand_as(history))
        history_scores = history_scores.gather(1, parents.unsqueeze(2).expand_as(history_scores))
        if step < max_length:
            history[:, :, step] = next_words
            history_scores[:, :, step] = log_probabilities.view(len(searched), -1).gather(1, chosen)
        sums = next_sums.view(len(searched), -1).gather(1, chosen)
        lengths = next_lengths.gather(1, parents)
        ended = ended.gather(1, parents) | (next_words == END)
        # sums only fall: a best caption that has ended is not overtaken by one whose sum is too low at any length
        reachable = torch.where(ended, -math.inf, sums / (max_length + 1) ** length_penalty)
        is_known = ended[:, 0] & (reachable <= best_scores[:, :1]).all(dim=1) | (step == max_length)
        if bool(is_known.any()):
            captions = _read_best(history[is_known, 0].tolist(), history_scores[is_known, 0].tolist())
            for image, caption in zip(searched[is_known].tolist(), captions, strict=True):
                found[image] = caption
        going_on = ~is_known
        if not bool(going_on.any()):
            break
        rows = (torch.arange(len(searched), device=device).unsqueeze(1) * beams + parents)[going_on].view(-1)
        state = tuple(part[:, rows] for part in state)
        words = next_words[going_on].view(-1)
        searched, sums, lengths, ended = (part[going_on] for part in (searched, sums, lengths, ended))
        history, history_scores = history[going_on], history_scores[going_on]
    return [caption for caption in found if caption is not None]


def _allowed(log_probabilities: Tensor, ended: Tensor, *, is_first: bool, is_last: bool) -> Tensor:
    """[B, V] with -inf for what must not come next; a caption that has `ended` [B] goes on unchanged."""
    allowed = log_probabilities.clone()
    allowed[:, list(_NEVER_CHOSEN)] = -math.inf
    if is_first:
        allowed[:, END] = -math.inf
    if is_last:
        allowed[:, :END] = -math.inf
        allowed[:, END + 1 :] = -math.inf
    allowed[ended] = -math.inf
    allowed[:, PAD].masked_fill_(ended, 0.0)
    return allowed


def _read_best(histories: list[list[int]], history_scores: list[list[float]]) -> list[DecodedCaption]:
    captions = []
    for history, scores in zip(histories, history_scores, strict=True):
        length = next((place for place, word in enumerate(history) if word in (END, PAD)), len(history))
        captions.append(DecodedCaption(tuple(history[:length]), tuple(scores[:length]), cut=length == len(history)))
    return captions
