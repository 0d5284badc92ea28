"""Captions drawn at random, word by word, by the decoder's probabilities: to caption, and in self-critical training.

What captioning draws for an image depends on the seed, its key and its features, not on its companions in a batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END, PAD, START
from captionmill.stages.decoding.constraints import WordRule, forbid_words, likeliest_words
from captionmill.stages.decoding.decoder import State
from captionmill.stages.decoding.search import DecodedCaption, StepDecoder, TracedStep, read_caption
from captionmill.stages.settings import SearchConfig

_PLAIN = SearchConfig(sample=True)


@torch.inference_mode()
def draw_captions(
    decoder: StepDecoder,
    features: Tensor,
    keys: Sequence[str],
    search: SearchConfig,
    *,
    rule: WordRule | None = None,
    trace: list[TracedStep] | None = None,
) -> list[DecodedCaption]:
    """A caption drawn for each row of `features` [B, D], and `alternatives` more, in the order of the draws.

    Which words may come is up to `rule`, or else to that of `search`. The log probabilities of the words are the
    decoder's own, whatever `temperature`, `top_k` and `top_p` made of them.
    The steps of all draws are appended to `trace`, for one image [1, D]; ValueError for more.
    """
    if trace is not None and len(features) != 1:
        raise ValueError(f"draws for {len(features)} images cannot be traced")
    draws, steps = 1 + search.alternatives, search.longest + 1
    chances = torch.from_numpy(np.concatenate([_chances(search.seed, key, draws, steps) for key in keys]))
    state = tuple(part.repeat_interleave(draws, dim=1) for part in decoder.start(features))  # each [L, B * draws, H]
    rule = rule or WordRule.of(search)
    words, log_probabilities = draw_words(decoder, state, chances.to(features.device), rule, search)
    if trace is not None:
        trace += _record(words, log_probabilities, search)
    captions = [
        read_caption(row, row_log_probabilities, search.longest)
        for row, row_log_probabilities in zip(words.tolist(), log_probabilities.tolist(), strict=True)
    ]
    return [
        replace(captions[first], alternatives=tuple(captions[first + 1 : first + draws]))
        for first in range(0, len(captions), draws)
    ]


def draw_words(
    decoder: StepDecoder, state: State, chances: Tensor, rule: WordRule, search: SearchConfig = _PLAIN
) -> tuple[Tensor, Tensor]:
    """Words [R, T] drawn after the `state` before `<start>` [L, R, H], and their log probabilities by the decoder.

    `chances` [R, S], numbers from 0 to 1, decide what is drawn, in S steps at most. A caption has `<pad>` after its
    `<end>`. Of `search` only `temperature`, `top_k` and `top_p` count. Sources: Fan et al. 2018, "Hierarchical neural
    story generation" (top-k); Holtzman et al. 2020, "The curious case of neural text degeneration" (top-p). Top-p is of
    what temperature and top-k leave.
    """
    count, steps = chances.shape
    drawn = torch.full((count, steps), PAD, device=chances.device)
    log_probabilities = torch.zeros(count, steps, device=chances.device)
    living = torch.arange(count, device=chances.device)  # [R] the captions that have not ended
    last_words = torch.full((count,), START, device=chances.device)  # [R]
    for step in range(steps):
        logits, state = decoder.step(last_words, state)
        allowed = logits.float().log_softmax(dim=-1)  # [R, V]
        ends = forbid_words(allowed, drawn[living, :step], rule)
        best = allowed.amax(dim=1)  # [R], -inf where nothing may follow: the caption ends
        is_stuck = best == -torch.inf
        allowed[:, END] = torch.where(is_stuck, ends, allowed[:, END])
        best = torch.where(is_stuck, ends, best)
        last_words = _draw(allowed, best, chances[living, step], search)
        drawn[living, step] = last_words
        log_probabilities[living, step] = allowed.gather(1, last_words.unsqueeze(1)).squeeze(1)
        stays = last_words != END
        living, last_words = living[stays], last_words[stays]
        if not len(living):
            return drawn[:, : step + 1], log_probabilities[:, : step + 1]
        state = tuple(part[:, stays] for part in state)
    return drawn, log_probabilities


def _chances(seed: int, key: str, draws: int, steps: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """Numbers from 0 to 1 [draws, steps] that depend only on `seed` and `key`."""
    digest = hashlib.sha256(f"{seed} {key}".encode(errors="surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest)).random((draws, steps), dtype=np.float32)


def _draw(allowed: Tensor, best: Tensor, chances: Tensor, search: SearchConfig) -> Tensor:
    """A word for each row of log probabilities [R, V], whose greatest are `best` [R], by `chances` [R] from 0 to 1."""
    vocab_size = allowed.shape[1]
    kept = min(search.top_k or vocab_size, vocab_size)
    words = None
    if kept < vocab_size or search.top_p < 1:
        allowed, words = likeliest_words(allowed, kept)  # [R, k] in falling order
    weights = allowed - best.unsqueeze(1)  # [R, k]: 0 for the likeliest, so that the sums are 1 or more
    if search.temperature != 1:
        weights /= search.temperature
    weights.exp_()  # in place, as a fresh tensor of this size costs more than its numbers
    if search.top_p < 1:  # all that begin below it: the last one reaches it
        weights *= weights.cumsum(dim=1) - weights < search.top_p * weights.sum(dim=1, keepdim=True)
    sums = weights.cumsum_(dim=1)
    totals = sums[:, -1:]
    below = torch.minimum(chances.unsqueeze(1) * totals, torch.nextafter(totals, torch.zeros_like(totals)))
    places = torch.searchsorted(sums, below, right=True)  # [R, 1] the first sum above: a word that can be drawn
    return (places if words is None else words.gather(1, places)).squeeze(1)


def _record(words: Tensor, log_probabilities: Tensor, search: SearchConfig) -> list[TracedStep]:
    """The steps of all draws of one image, words and log probabilities [draws, T]."""
    is_word = words != PAD  # [draws, T]
    lengths = is_word.cumsum(dim=1)  # [draws, T]
    sums = log_probabilities.cumsum(dim=1)  # [draws, T]
    scores = sums / lengths.float() ** search.length_penalty  # [draws, T]
    ended = (words == END) | ~is_word  # [draws, T]
    places = list(range(len(words)))
    parts = (words, log_probabilities, sums, scores, scores, lengths, ended)
    columns = zip(*(part.t().tolist() for part in parts), strict=True)  # of T steps
    return [TracedStep(places, places, *column) for column in columns]
