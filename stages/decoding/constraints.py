"""Which words may come next in a caption, whatever the decoder gives: one rule for every search, sampler and reader.

Beam search, greedy search, sampling, self-critical training, the reasons in an explanation and the manifest of an
export all take it from here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END, PAD, START, UNK, Vocabulary
from captionmill.data.captions.words import has_unspaced_script
from captionmill.stages.settings import USUAL_LENGTH, SearchConfig

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

    def barred(self, history: Tensor, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
        """The words that must not follow `history` [R, T], each time with the reason: those of each row [R, N].

        A caption that nothing may follow ends, however short: `<end>` is barred only as long as another word is left.
        """
        rows, length = history.shape
        yield "never chosen", _for_all(rows, list(self.never), history)
        if length < self.min_length:
            reason = "not first" if self.min_length == 1 else f"not before {self.min_length} words"
            yield reason, _for_all(rows, [END], history)
        if length >= self.max_length:
            others = [word for word in range(vocab_size) if word != END]
            yield f"not after {self.max_length} words", _for_all(rows, others, history)
        if self.no_repeat_ngram and length >= self.no_repeat_ngram:
            reason = "said before" if self.no_repeat_ngram == 1 else f"repeats {self.no_repeat_ngram} words"
            yield reason, _completing(history, self.no_repeat_ngram)
        if length and not self.repeat_words:
            yield "just said", _repeating(history, self.doubled)


def forbid_words(log_probabilities: Tensor, history: Tensor, rule: WordRule) -> Tensor:
    """Put -inf in place of all in `log_probabilities` [R, V] that must not follow the words of `history` [R, T].

    Gives back the log probability of `<end>` [R], for captions that nothing may follow. Nothing may where the decoder
    gives no numbers.
    """
    is_nan = log_probabilities[:, END].isnan()  # [R]: one that is makes all of a softmax so
    if bool(is_nan.any()):
        log_probabilities[is_nan] = -math.inf
    ends = log_probabilities[:, END].clamp(min=_LEAST)  # [R]
    log_probabilities[:, END] = ends
    for _, words in rule.barred(history, log_probabilities.shape[1]):
        log_probabilities.scatter_(1, words, -math.inf)
    return ends


def without_words(logits: Tensor, words: tuple[int, ...]) -> Tensor:
    """Logits [..., V] in which none of `words` has a probability; gradients pass through the others."""
    return logits.index_fill(-1, torch.tensor(words, device=logits.device), -math.inf)


def _for_all(rows: int, words: list[int], like: Tensor) -> Tensor:
    """The same `words` for each row, [R, N]."""
    return torch.tensor(words, dtype=torch.long, device=like.device).expand(rows, -1)


def _completing(history: Tensor, size: int) -> Tensor:
    """Each word that would complete `size` words which `history` [R, T] has in the same order; `<pad>` for others."""
    ngrams = history.unfold(1, size, 1)  # [R, T-N+1, N]
    begun = history[:, history.shape[1] - size + 1 :].unsqueeze(1)  # [R, 1, N-1] what the next word would complete
    is_repeated = (ngrams[:, :, :-1] == begun).all(dim=2)  # [R, T-N+1]
    return torch.where(is_repeated, ngrams[:, :, -1], PAD)  # <pad> never comes anyway


def _repeating(history: Tensor, doubled: tuple[int, ...]) -> Tensor:
    """The last word of each row of `history` [R, T], [R, 1]; `<pad>` where it is `doubled` and follows another."""
    last = history[:, -1:]
    may_follow = torch.isin(last, last.new_tensor(doubled))
    if history.shape[1] > 1:
        may_follow &= history[:, -2:-1] != last
    return last.masked_fill(may_follow, PAD)


def likeliest_words(log_probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of [R, V] in falling order and their words, each [R, count]; of equal ones the lower first.

    As a stable sort would give them, which takes many times longer. Of words at -inf any may be given.
    """
    if count == 1:
        values, words = log_probabilities.max(dim=1, keepdim=True)  # the first of equal ones
        return values, words
    vocab_size = log_probabilities.shape[1]
    if count >= vocab_size:
        ordered = log_probabilities.sort(dim=1, descending=True, stable=True)
        return ordered.values, ordered.indices
    values, words = log_probabilities.topk(count + 1, dim=1)
    is_tied = (values[:, :-1] == values[:, 1:]) & (values[:, 1:] > -math.inf)  # [R, count]
    rows = is_tied.any(dim=1).nonzero().squeeze(1)
    values, words = values[:, :-1], words[:, :-1]
    if len(rows):
        ordered = log_probabilities[rows].sort(dim=1, descending=True, stable=True)
        values[rows], words[rows] = ordered.values[:, :count], ordered.indices[:, :count]
    return values, words
