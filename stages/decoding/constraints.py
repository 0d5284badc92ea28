"""Which words may come next in a caption, whatever the decoder says: the same for beam search and for sampling."""

import math

import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END, PAD, START, UNK
from captionmill.stages.settings import SearchConfig

NEVER_CHOSEN = (PAD, START, UNK)
_LEAST = -1e30  # a log probability that leaves an end possible where the decoder rules it out


def forbid_words(log_probabilities: Tensor, history: Tensor, search: SearchConfig) -> Tensor:
    """Put -inf in place of all in `log_probabilities` [R, V] that must not follow the words of `history` [R, T].

    `<pad>`, `<start>` and `<unk>` never come. `<end>` comes after `min_length` words at the earliest, and nothing else
    after `max_length`. The last of `no_repeat_ngram` words does not come where these stand in the caption already.

    Gives back the log probability of `<end>` [R]: a caption that nothing may follow ends, however short. Nothing may
    where the decoder gives no numbers.
    """
    length = history.shape[1]
    log_probabilities[log_probabilities[:, END].isnan()] = -math.inf  # one that is none makes all of a softmax none
    ends = log_probabilities[:, END].clamp(min=_LEAST)
    if length == search.max_length:
        log_probabilities.fill_(-math.inf)
    log_probabilities[:, NEVER_CHOSEN] = -math.inf
    if search.no_repeat_ngram and length >= search.no_repeat_ngram:
        _forbid_repeated(log_probabilities, history, search.no_repeat_ngram)
    log_probabilities[:, END] = ends if length >= search.min_length else -math.inf
    return ends


def _forbid_repeated(log_probabilities: Tensor, history: Tensor, size: int) -> None:
    """Forbid each word that would complete `size` words which `history` [R, T] has in the same order."""
    ngrams = history.unfold(1, size, 1)  # [R, T-N+1, N]
    begun = history[:, history.shape[1] - size + 1 :].unsqueeze(1)  # [R, 1, N-1] what the next word would complete
    is_repeated = (ngrams[:, :, :-1] == begun).all(dim=2)  # [R, T-N+1]
    words = torch.where(is_repeated, ngrams[:, :, -1], PAD)  # <pad> is forbidden anyway
    log_probabilities.scatter_(1, words, -math.inf)


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
