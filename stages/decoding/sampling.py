"""Captions drawn at random, word by word, by the decoder's probabilities.

What is drawn for an image hangs on the seed, its key and its features, not on its companions in a batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END, START
from captionmill.stages.decoding.constraints import forbid_words, likeliest_words
from captionmill.stages.decoding.search import DecodedCaption, StepDecoder, read_caption
from captionmill.stages.settings import SearchConfig


@torch.inference_mode()
def draw_captions(
    decoder: StepDecoder, features: Tensor, keys: Sequence[str], search: SearchConfig
) -> list[DecodedCaption]:
    """A caption drawn for each row of `features` [B, D], and `alternatives` more, in the order of the draws.

    The log probabilities of the words are the decoder's own, whatever `temperature`, `top_k` and `top_p` made of them.
    Sources: Fan et al. 2018, "Hierarchical neural story generation" (top-k); Holtzman et al. 2020, "The curious case of
    neural text degeneration" (top-p). Top-p is of what temperature and top-k leave.
    """
    draws, device = 1 + search.alternatives, features.device
    chances = torch.from_numpy(
        np.concatenate([_chances(search.seed, key, draws, search.max_length + 1) for key in keys])
    )
    state = tuple(part.repeat_interleave(draws, dim=1) for part in decoder.start(features))
    living = torch.arange(len(chances), device=device)  # [R] of B * draws: those that have not ended
    last_words = torch.full((len(chances),), START, device=device)  # [R]
    words = torch.full((len(chances), search.max_length + 1), END, device=device)
    scores = torch.zeros(len(chances), search.max_length + 1, device=device)
    for step in range(search.max_length + 1):
        logits, state = decoder.step(last_words, state)
        log_probabilities = logits.float().log_softmax(dim=-1)  # [R, V]
        allowed = log_probabilities.clone()
        ends = forbid_words(allowed, words[living, :step], search)
        allowed[:, END] = torch.where((allowed == -torch.inf).all(dim=1), ends, allowed[:, END])
        last_words = _draw(allowed, chances[living.cpu(), step].to(device), search)
        words[living, step] = last_words
        scores[living, step] = log_probabilities.gather(1, last_words.unsqueeze(1)).squeeze(1)
        stays = last_words != END
        living, last_words = living[stays], last_words[stays]
        if not len(living):
            break
        state = tuple(part[:, stays] for part in state)
    captions = [
        read_caption(row, row_scores, search.max_length)
        for row, row_scores in zip(words.tolist(), scores.tolist(), strict=True)
    ]
    return [
        replace(captions[first], alternatives=tuple(captions[first + 1 : first + draws]))
        for first in range(0, len(captions), draws)
    ]


def _chances(seed: int, key: str, draws: int, steps: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """Numbers from 0 to 1 [draws, steps] that depend on `seed` and `key` alone."""
    digest = hashlib.sha256(f"{seed} {key}".encode(errors="surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest)).random((draws, steps), dtype=np.float32)


def _draw(allowed: Tensor, chances: Tensor, search: SearchConfig) -> Tensor:
    """A word a row [R] of log probabilities [R, V], by a number of `chances` [R] from 0 to 1."""
    vocab_size = allowed.shape[1]
    kept = min(search.top_k or vocab_size, vocab_size)
    words = None
    if kept < vocab_size or search.top_p < 1:
        allowed, words = likeliest_words(allowed, kept)  # [R, k] in falling order
    probabilities = (allowed / search.temperature).softmax(dim=-1)
    if search.top_p < 1:  # all that begin below it: the last one reaches it
        probabilities = probabilities * (probabilities.cumsum(dim=1) - probabilities < search.top_p)
    sums = probabilities.cumsum(dim=1)
    totals = sums[:, -1:]
    below = torch.minimum(chances.unsqueeze(1) * totals, torch.nextafter(totals, torch.zeros_like(totals)))
    places = torch.searchsorted(sums, below, right=True)  # [R, 1] the first sum above: a word that can be drawn
    return (places if words is None else words.gather(1, places)).squeeze(1)
