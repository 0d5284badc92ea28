"""Captions drawn at random, word by word, by the decoder's probabilities: to caption, and in self-critical training.

What captioning draws for an image depends on the seed, its key and its features, not on its companions in a batch.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from captionmill.data.captions.vocabulary import END, PAD, START
from captionmill.stages.decoding.beam_tree import TracedStep
from captionmill.stages.decoding.constraints import AnyArray, WordRule, forbid_words, likeliest_words, log_softmax
from captionmill.stages.decoding.search import DecodedCaption, State, StepDecoder, read_caption
from captionmill.stages.settings import SearchConfig

_PLAIN = SearchConfig(sample=True)


def draw_captions(
    decoder: StepDecoder,
    features: AnyArray,
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
    state = decoder.start(features)
    xp = array_namespace(state[0])
    chances = np.concatenate([_chances(search.seed, key, draws, steps) for key in keys])
    chances = xp.asarray(chances, device=device(state[0]))
    state = tuple(xp.repeat(part, draws, axis=1) for part in state)  # each [L, B * draws, H]
    rule = rule or WordRule.of(search)
    words, log_probabilities = draw_words(decoder, state, chances, rule, search)
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
    decoder: StepDecoder, state: State, chances: AnyArray, rule: WordRule, search: SearchConfig = _PLAIN
) -> tuple[AnyArray, AnyArray]:
    """Words [R, T] drawn after the `state` before `<start>` [L, R, H], and their log probabilities by the decoder.

    `chances` [R, S], numbers from 0 to 1, decide what is drawn, in S steps at most. A caption has `<pad>` after its
    `<end>`. Of `search` only `temperature`, `top_k` and `top_p` count. Sources: Fan et al. 2018, "Hierarchical neural
    story generation" (top-k); Holtzman et al. 2020, "The curious case of neural text degeneration" (top-p). Top-p is of
    what temperature and top-k leave.
    """
    xp, here, (count, steps) = array_namespace(chances), device(chances), chances.shape
    drawn = xp.full((count, steps), PAD, dtype=xp.int64, device=here)
    log_probabilities = xp.zeros((count, steps), dtype=xp.float32, device=here)
    living = xp.arange(count, device=here)  # [R] the captions that have not ended
    last_words = xp.full((count,), START, dtype=xp.int64, device=here)  # [R]
    for step in range(steps):
        logits, state = decoder.step(last_words, state)
        allowed = log_softmax(logits)  # [R, V]
        ends = forbid_words(allowed, drawn[living, :step], rule)
        best = xp.max(allowed, axis=1)  # [R], -inf where nothing may follow: the caption ends
        is_stuck = best == -math.inf
        allowed[:, END] = xp.where(is_stuck, ends, allowed[:, END])
        best = xp.where(is_stuck, ends, best)
        last_words = _draw(allowed, best, chances[living, step], search)
        drawn[living, step] = last_words
        log_probabilities[living, step] = xp.take_along_axis(allowed, last_words[:, None], axis=1)[:, 0]
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


def _draw(allowed: AnyArray, best: AnyArray, chances: AnyArray, search: SearchConfig) -> AnyArray:
    """A word for each row of log probabilities [R, V], whose greatest are `best` [R], by `chances` [R] from 0 to 1."""
    xp, vocab_size = array_namespace(allowed), allowed.shape[1]
    kept = min(search.top_k or vocab_size, vocab_size)
    words = None
    if kept < vocab_size or search.top_p < 1:
        allowed, words = likeliest_words(allowed, kept)  # [R, k] in falling order
    weights = allowed - best[:, None]  # [R, k]: 0 for the likeliest, so that the sums are 1 or more
    if search.temperature != 1:
        weights /= search.temperature
    weights = xp.exp(weights)
    if search.top_p < 1:  # all that begin below it: the last one reaches it
        is_kept = _running_sums(weights) - weights < search.top_p * xp.sum(weights, axis=1, keepdims=True)
        weights = xp.where(is_kept, weights, 0.0)
    sums = _running_sums(weights)
    totals = sums[:, -1:]
    below = xp.minimum(chances[:, None] * totals, xp.nextafter(totals, xp.zeros_like(totals)))
    places = xp.argmax(xp.astype(sums > below, xp.int8), axis=1, keepdims=True)  # [R, 1] the first: it can be drawn
    return (places if words is None else xp.take_along_axis(words, places, axis=1))[:, 0]


def _running_sums(weights: AnyArray) -> AnyArray:
    """The sums of each row of [R, k] up to each place, by NumPy as exactly as torch's."""
    xp = array_namespace(weights)
    if is_torch_array(weights):
        return xp.cumulative_sum(weights, axis=1)
    return xp.astype(xp.cumulative_sum(weights, axis=1, dtype=xp.float64), xp.float32)


def _record(words: AnyArray, log_probabilities: AnyArray, search: SearchConfig) -> list[TracedStep]:
    """The steps of all draws of one image, words and log probabilities [draws, T]."""
    xp = array_namespace(words)
    is_word = words != PAD  # [draws, T]
    lengths = xp.cumulative_sum(xp.astype(is_word, xp.int64), axis=1)  # [draws, T]
    sums = xp.cumulative_sum(log_probabilities, axis=1)  # [draws, T]
    scores = sums / xp.astype(lengths, xp.float32) ** search.length_penalty  # [draws, T]
    ended = (words == END) | ~is_word  # [draws, T]
    places = list(range(len(words)))
    parts = (words, log_probabilities, sums, scores, scores, lengths, ended)
    columns = zip(*(part.T.tolist() for part in parts), strict=True)  # of T steps
    return [TracedStep(places, places, *column) for column in columns]
