"""Which words may come next in a caption, whatever the decoder gives: one rule for every search, sampler and reader.

Beam search, greedy search, sampling, self-critical training, the reasons in an explanation and the manifest of an
export all take it from here.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from captionmill.data.captions.vocabulary import END, PAD, START, UNK, Vocabulary
from captionmill.data.captions.words import has_unspaced_script
from captionmill.stages.settings import USUAL_LENGTH, SearchConfig

AnyArray = Any
"""An array of NumPy or torch: searching is the same with both, in terms of the array API standard (data-apis.org)."""

_CHUNK_ROWS = 96  # captions of a few thousand words each whose logits stay in a core's cache
_ROUNDING = 1e-5  # by which sums must differ for their order to be sure
_FEW = 5  # words of a row up to which looking for one after the other is fastest
_COLUMNS = 128  # of words that are compared at once: NumPy is slow at short rows
_SORTED = 64  # words of a row from which sorting the row finds them faster than looking for one after the other
_LEAST = -1e30  # a log probability that leaves an end possible where the decoder rules it out


@dataclass(frozen=True)
class WordRule:
    """What may follow the words of a caption so far."""

    never: tuple[int, ...] = (PAD, START, UNK)
    """Words that never come."""
    min_length: int = 1
    """Words before `<end>` at the earliest."""
    max_length: int = USUAL_LENGTH
    """Words after which only `<end>` comes."""
    no_repeat_ngram: int = 0
    """Words in a row that do not come twice; 0 allows all."""
    repeat_words: bool = True
    """Whether any word may follow itself."""
    doubled: tuple[int, ...] = ()
    """Words that may follow themselves once in any case."""

    @classmethod
    def of(cls, search: SearchConfig, vocabulary: Vocabulary | None = None) -> "WordRule":
        """The rule of every caption that `search` finds or draws.

        A character of a script without spaces is a word of `vocabulary` that may follow itself once: many words of such
        scripts double one.
        """
        words = vocabulary.words if vocabulary else ()
        return cls(
            min_length=search.min_length,
            max_length=search.longest,
            no_repeat_ngram=search.no_repeat_ngram,
            repeat_words=search.repeat_words,
            doubled=tuple(index for index, word in enumerate(words) if has_unspaced_script(word)),
        )

    def barred(self, history: AnyArray, vocab_size: int) -> Iterator[tuple[str, AnyArray]]:
        """The words that must not follow `history` [R, T], each time with the reason: of each row [R, N] or all [1, N].

        A caption that nothing may follow ends, however short: `<end>` is barred only as long as another word is left.
        """
        length = history.shape[1]
        yield "never chosen", _for_all(list(self.never), history)
        if length < self.min_length:
            reason = "not first" if self.min_length == 1 else f"not before {self.min_length} words"
            yield reason, _for_all([END], history)
        if length >= self.max_length:
            others = [word for word in range(vocab_size) if word != END]
            yield f"not after {self.max_length} words", _for_all(others, history)
        if self.no_repeat_ngram and length >= self.no_repeat_ngram:
            reason = "said before" if self.no_repeat_ngram == 1 else f"repeats {self.no_repeat_ngram} words"
            yield reason, _completing(history, self.no_repeat_ngram)
        if length and not self.repeat_words:
            yield "just said", _repeating(history, self.doubled)


def log_softmax(logits: AnyArray) -> AnyArray:
    """The natural logarithms of the softmax of each row of [R, V], float32."""
    if is_torch_array(logits):  # in one pass
        return logits.float().log_softmax(dim=-1)
    return logits - log_total(logits)


def log_total(logits: AnyArray) -> AnyArray:
    """The natural logarithm of the sum of the exponentials of each row of [R, V], float32 [R, 1]."""
    if is_torch_array(logits):
        return logits.float().logsumexp(dim=-1, keepdim=True)
    xp = array_namespace(logits)
    greatest = xp.max(logits, axis=-1, keepdims=True)
    shifted = logits - greatest
    return greatest + xp.log(xp.sum(xp.exp(shifted, out=shifted), axis=-1, keepdims=True))


def forbid_words(log_probabilities: AnyArray, history: AnyArray, rule: WordRule) -> AnyArray:
    """Put -inf in place of all in `log_probabilities` [R, V] that must not follow the words of `history` [R, T].

    Gives back the log probability of `<end>` [R], for captions that nothing may follow. Nothing may where the decoder
    gives no numbers.
    """
    xp = array_namespace(log_probabilities)
    is_nan = xp.isnan(log_probabilities[:, END])  # [R]: one that is makes all of a softmax so
    if bool(xp.any(is_nan)):
        log_probabilities[is_nan] = -math.inf
    ends = xp.clip(log_probabilities[:, END], _LEAST)  # [R]
    log_probabilities[:, END] = ends
    rows = xp.arange(log_probabilities.shape[0], device=device(log_probabilities))[:, None]
    for _, words in rule.barred(history, log_probabilities.shape[1]):
        log_probabilities[rows, words] = -math.inf
    return ends


def _for_all(words: list[int], like: AnyArray) -> AnyArray:
    """The same `words` for each row, [1, N]."""
    xp = array_namespace(like)
    return xp.asarray(words, dtype=xp.int64, device=device(like))[None]


def _completing(history: AnyArray, size: int) -> AnyArray:
    """Each word that would complete `size` words which `history` [R, T] has in the same order; `<pad>` for others."""
    xp, length = array_namespace(history), history.shape[1]
    begun = history[:, length - size + 1 :]  # [R, N-1] what the next word would complete
    following = history[:, size - 1 :]  # [R, T-N+1]
    is_repeated = xp.ones_like(following, dtype=xp.bool)  # [R, T-N+1]
    for place in range(size - 1):
        is_repeated &= history[:, place : length - size + 1 + place] == begun[:, place : place + 1]
    return xp.where(is_repeated, following, PAD)  # <pad> never comes anyway


def _repeating(history: AnyArray, doubled: tuple[int, ...]) -> AnyArray:
    """The last word of each row of `history` [R, T], [R, 1]; `<pad>` where it is `doubled` and follows another."""
    xp = array_namespace(history)
    last = history[:, -1:]
    may_follow = xp.isin(last, xp.asarray(doubled, dtype=xp.int64, device=device(history)))
    if history.shape[1] > 1:
        may_follow &= history[:, -2:-1] != last
    return xp.where(may_follow, PAD, last)


def next_words(
    logits: AnyArray,
    history: AnyArray,
    rule: WordRule,
    count: int,
    *,
    sums: AnyArray,
    pools: AnyArray,
    images: AnyArray,
    guide: AnyArray | None = None,
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """The `count` likeliest next words of captions by their `logits` [R, V] and their words so far, `history` [R, T].

    Gives their log probabilities in falling order, -inf for none, the words, and the log probabilities without the
    `guide` [N, V] of the captions' `images` [R]; each [R, count] or, of fewer words, [R, V].

    Words may be missing that `count` others in the same of the `pools` [R], which rise, beat: those of a higher sum
    with what their captions have so far, `sums` [R].
    """
    xp, rows = array_namespace(logits), logits.shape[0]
    size = rows if is_torch_array(logits) else _CHUNK_ROWS
    found = []
    for start in range(0, rows, size):
        own = slice(start, start + size)
        rated = logits[own]
        log_probabilities = log_softmax(rated) if guide is None else _guided(rated, history[own], guide[images[own]])
        ends = forbid_words(log_probabilities, history[own], rule)
        is_stuck = xp.max(log_probabilities, axis=1) == -math.inf
        values, words = _contenders(log_probabilities, min(count, rated.shape[1]), sums[own], pools[own])
        values[:, 0] = xp.where(is_stuck, ends, values[:, 0])
        words[:, 0] = xp.where(is_stuck, END, words[:, 0])
        words = xp.where(values == -math.inf, PAD, words)
        unguided = values if guide is None else xp.take_along_axis(rated, words, axis=1) - log_total(rated)
        found.append((values, words, unguided))
    values, words, unguided = (xp.concat(parts) for parts in zip(*found, strict=True))
    return values, words, unguided


def _guided(logits: AnyArray, history: AnyArray, guide: AnyArray) -> AnyArray:
    """The log probabilities of `logits` [R, V] with `guide` [R, V], which is overwritten, for words not said yet."""
    xp = array_namespace(logits)
    guide += logits
    rows = xp.arange(len(guide), device=device(guide))[:, None]
    guide[rows, history] = xp.take_along_axis(logits, history, axis=1)
    guide -= log_total(guide)
    return guide


def _contenders(log_probabilities: AnyArray, count: int, sums: AnyArray, pools: AnyArray) -> tuple[AnyArray, AnyArray]:
    """As `likeliest_words`, of `log_probabilities` [R, V], but -inf for most that others beat, as in `next_words`.

    The highest of each of some columns of words are compared first: that spares NumPy ordering most words.
    """
    (rows, vocab_size), columns = log_probabilities.shape, max(_COLUMNS, 2 * count)
    if is_torch_array(log_probabilities) or count <= _FEW or vocab_size < 2 * columns:
        return likeliest_words(log_probabilities, count)
    depth = vocab_size // columns
    tops = log_probabilities[:, : depth * columns].reshape(rows, depth, columns).max(axis=1) + sums[:, None]
    cutoffs = np.empty(rows, log_probabilities.dtype)  # those of sums
    starts = np.flatnonzero(np.diff(pools, prepend=-1)).tolist()
    for start, end in itertools.pairwise([*starts, rows]):
        cutoffs[start:end] = np.partition(tops[start:end], -count, axis=None)[-count]
    cutoffs -= sums + _ROUNDING * np.abs(cutoffs)
    np.maximum(cutoffs, np.finfo(cutoffs.dtype).min, out=cutoffs)  # -inf is no word
    owners, found = np.divmod(np.flatnonzero(log_probabilities >= cutoffs[:, None]), vocab_size)
    order = np.lexsort((-log_probabilities[owners, found], owners))  # stable: of equal ones the lower word
    found = found[order]
    places = np.arange(len(owners)) - np.searchsorted(owners, owners)
    is_among = places < count
    owners, found, places = owners[is_among], found[is_among], places[is_among]
    values, words = np.full((rows, count), -math.inf, log_probabilities.dtype), np.full((rows, count), PAD)
    values[owners, places] = log_probabilities[owners, found]
    words[owners, places] = found
    return values, words


def likeliest_words(log_probabilities: AnyArray, count: int) -> tuple[AnyArray, AnyArray]:
    """The `count` highest of [R, V] in falling order and their words, each [R, count]; of equal ones the lower first.

    As a stable sort would give them, which takes many times longer. Of words at -inf any may be given.
    """
    xp, vocab_size = array_namespace(log_probabilities), log_probabilities.shape[1]
    if count == 1:
        words = xp.argmax(log_probabilities, axis=1, keepdims=True)  # the first of equal ones
        return xp.take_along_axis(log_probabilities, words, axis=1), words
    if count >= vocab_size:
        return _sorted_words(log_probabilities, count)
    if not is_torch_array(log_probabilities):
        return _sorted_words(log_probabilities, count) if count > _SORTED else _highest(log_probabilities, count)
    values, words = log_probabilities.topk(count + 1, dim=1)
    is_tied = (values[:, :-1] == values[:, 1:]) & (values[:, 1:] > -math.inf)  # [R, count]
    rows = is_tied.any(dim=1).nonzero().squeeze(1)
    values, words = values[:, :-1], words[:, :-1]
    if len(rows):
        values[rows], words[rows] = _sorted_words(log_probabilities[rows], count)
    return values, words


def _sorted_words(log_probabilities: AnyArray, count: int) -> tuple[AnyArray, AnyArray]:
    xp = array_namespace(log_probabilities)
    words = xp.argsort(log_probabilities, axis=1, descending=True, stable=True)[:, :count]
    return xp.take_along_axis(log_probabilities, words, axis=1), words


def _highest(log_probabilities: AnyArray, count: int) -> tuple[AnyArray, AnyArray]:
    """As `likeliest_words`, one after the other: NumPy has no faster way to a few of many."""
    xp = array_namespace(log_probabilities)
    left = xp.clip(log_probabilities, xp.finfo(log_probabilities.dtype).min)  # above -inf, which marks those taken
    rows, words = xp.arange(left.shape[0]), xp.empty((left.shape[0], count), dtype=xp.int64)
    for place in range(count):
        words[:, place] = xp.argmax(left, axis=1)
        left[rows, words[:, place]] = -math.inf
    return xp.take_along_axis(log_probabilities, words, axis=1), words
