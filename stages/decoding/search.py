"""Greedy and beam search over the steps of a decoder, or of an ensemble, many images at once.

Probabilities are over the whole vocabulary. A caption that reaches the maximum length is cut and marked, no error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END, PAD, START
from captionmill.stages.decoding.constraints import WordRule, forbid_words, likeliest_words
from captionmill.stages.decoding.decoder import State
from captionmill.stages.settings import SearchConfig


class StepDecoder(Protocol):
    """What can be searched: one word after another, the state a flat tuple of any parts, each [L, B, H]."""

    def start(self, features: Tensor) -> State:
        """The state before `<start>`, from features [B, D]."""

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """One word per caption [B] and the state -> logits of the next word [B, V] and the next state."""


@dataclass(frozen=True)
class DecodedCaption:
    """A caption as word indices, without `<start>` and `<end>`."""

    words: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Natural logarithm of each word's probability given those before it; one for each word."""
    cut: bool
    """The maximum length was reached before `<end>`."""
    alternatives: tuple["DecodedCaption", ...] = ()
    """The next best captions of the image, best first."""
    consensus: float | None = None
    """That with the captions of training images, if re-ranking chose by it."""

    @property
    def confidence(self) -> float:
        """0 to 1: 1 - exp(-consensus), or without one the geometric mean of the words' probabilities."""
        if self.consensus is not None:
            return -math.expm1(-max(0.0, self.consensus))
        return math.exp(sum(self.log_probabilities) / len(self.log_probabilities)) if self.words else 0.0


@dataclass(frozen=True)
class TracedStep:
    """The record of one step of one image, from which an explanation is made: the captions after it, K of them.

    The best stand first, drawn ones in the order of the draws.
    """

    places: list[int]
    """The place of each in the search's own order, which `parents` of the next step refer to."""
    parents: list[int]
    """Where the caption that each continues stood before this step; of no meaning at the first step."""
    words: list[int]
    """The word that each took; of no meaning where it had ended before."""
    log_probabilities: list[float]
    """Natural logarithm of that word's probability given those before it; 0 where it had ended before."""
    sums: list[float]
    """Of the log probabilities of all its words."""
    scores: list[float]
    """`sums` divided by `lengths` to the power of the length penalty."""
    ranks: list[float]
    """The scores by which they were chosen: less what earlier groups of the beam took from them."""
    lengths: list[int]
    """Words so far, `<end>` counted."""
    ended: list[bool]
    """Whether it ends here, or has ended before."""


@torch.inference_mode()
def search_captions(
    decoder: StepDecoder,
    features: Tensor,
    search: SearchConfig,
    *,
    rule: WordRule | None = None,
    guide: Tensor | None = None,
    trace: list[TracedStep] | None = None,
) -> list[DecodedCaption]:
    """The best caption for each row of `features` [B, D] by its score, and as many `alternatives` as `search` asks for.

    The score is the sum of the log probabilities of its words, `<end>` included, divided by the number of these to the
    power of `length_penalty`: 0 leaves the sum, which favours short captions; 1 makes it a mean (Wu et al. 2016,
    "Google's neural machine translation system", with the words instead of their (5 + words) / 6).

    Beam search keeps the `beam_size` best captions at each step; one that has ended competes on with its score as it
    is. Of equal scores the one that extends the better caption is kept, then the likelier word, then the lower
    index. A beam of one is greedy: the likeliest word is the next. Which words may come is up to `rule`, or else
    to that of `search`. The decoder should be in evaluation mode.

    With `diversity_groups` each group of the beam keeps its own best captions at each step, after those before it: a
    word's score is less by `diversity_strength` for each caption of these groups that has just taken it (Vijayakumar et
    al. 2018, "Diverse beam search", with their Hamming diversity). The score of the whole caption is without that.

    `guide` [B, V] is added to the log probabilities of words that a caption does not have yet, which are normalised
    again, before captions are ranked. The log probabilities of the captions that are found are the decoder's own.

    What is kept at each step is appended to `trace`, for one image [1, D]; ValueError for more.
    """
    if trace is not None and len(features) != 1:
        raise ValueError(f"a search of {len(features)} images cannot be traced")
    beam = _Beam(decoder.start(features), search, rule or WordRule.of(search), guide, trace)
    found: dict[int, DecodedCaption] = {}
    while len(beam.images):
        logits, state = decoder.step(beam.last_words, beam.state)
        found.update(beam.advance(logits, state))
    return [found[image] for image in range(len(features))]


class _Beam:
    """The captions that compete: K of each of the images [B] whose captions are not known yet.

    The decoder sees only the living ones [R]: those that have not ended. A place without a caption has a sum of -inf.
    """

    def __init__(
        self,
        state: State,
        search: SearchConfig,
        rule: WordRule,
        guide: Tensor | None,
        trace: list[TracedStep] | None,
    ) -> None:
        count, beams, groups, device = state[0].shape[1], search.beam_size, search.diversity_groups, state[0].device
        self._search, self._rule, self._guide, self._trace = search, rule, guide, trace
        self._group_size = beams // groups
        # what sums are divided by; torch's powers of equal numbers may differ in the last bit, Python's do not
        weights = [max(length, 1) ** search.length_penalty for length in range(search.longest + 2)]
        self._weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self.images = torch.arange(count, device=device)  # [B] which row of the features each is
        self._sums = torch.full((count, beams), -math.inf, device=device)  # [B, K] of log probabilities
        self._sums[:, :: self._group_size] = 0.0  # all captions are equal at first: one per group is extended
        self._ended = torch.zeros(count, beams, dtype=torch.bool, device=device)  # [B, K]
        self._lengths = torch.zeros(count, beams, dtype=torch.long, device=device)  # [B, K] words, with <end>
        self._words = torch.empty(count, beams, 0, dtype=torch.long, device=device)  # [B, K, T], <pad> after <end>
        self._log_probabilities = torch.empty(count, beams, 0, device=device)  # [B, K, T] of these, without guidance
        self.last_words = torch.full((count * groups,), START, device=device)  # [R]
        self.state = tuple(part.repeat_interleave(groups, dim=1) for part in state)  # each [L, R, H]

    def advance(self, logits: Tensor, state: State) -> list[tuple[int, DecodedCaption]]:
        """Add one word, by the `logits` [R, V] of the living captions and the `state` that they left [L, R, H].

        Gives the images whose captions nothing can change any more, with these; they leave.
        """
        count, beams = self._sums.shape
        living = self._living()
        steps, words, unguided = self._candidates(logits, living)  # [B, K, K]: caption, then word
        lengths = self._lengths + living
        sums = self._sums.unsqueeze(2) + steps
        chosen, ranks = self._choose(sums, self._weights[lengths].unsqueeze(2), words)  # [B, K] of K*K
        parents = chosen // beams  # [B, K] which caption each continues
        taken = words.view(count, -1).gather(1, chosen)  # [B, K]
        added = unguided.view(count, -1).gather(1, chosen)  # [B, K]
        self._sums = sums.view(count, -1).gather(1, chosen)
        self._lengths = lengths.gather(1, parents)
        self._ended = self._ended.gather(1, parents) | (taken == END)
        self._words = _append(self._words, parents, taken)
        self._log_probabilities = _append(self._log_probabilities, parents, added)
        if self._trace is not None:
            self._trace.append(self._record(parents, taken, added, ranks))
        is_known = self._is_known()
        known = self._read(is_known) if bool(is_known.any()) else []
        rows = (living.view(-1).cumsum(0) - 1).view(count, beams).gather(1, parents)  # [B, K] of R, of a living one
        self._keep(~is_known, rows, state)
        return known

    def _living(self) -> Tensor:
        return ~self._ended & (self._sums > -math.inf)  # [B, K]

    def _candidates(self, logits: Tensor, living: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The K likeliest next words of each caption [B, K, K]: log probabilities, -inf for none, and the words.

        The third are the log probabilities without guidance.
        """
        count, beams = living.shape
        log_probabilities = logits.float().log_softmax(dim=-1)  # [R, V]
        own = log_probabilities
        if self._guide is not None:
            rows = living.nonzero()[:, 0]  # [R] which image each is of
            bonus = self._guide[self.images[rows]].scatter(1, self._words[living], 0.0)  # [R, V]
            log_probabilities = (log_probabilities + bonus).log_softmax(dim=-1)
        ends = forbid_words(log_probabilities, self._words[living], self._rule)
        values, words = likeliest_words(log_probabilities, min(beams, logits.shape[1]))  # [R, K]
        is_stuck = values[:, 0] == -math.inf
        values[:, 0] = torch.where(is_stuck, ends, values[:, 0])
        words[:, 0] = torch.where(is_stuck, END, words[:, 0])
        all_values = torch.full((count, beams, beams), -math.inf, device=logits.device)
        all_words = torch.full((count, beams, beams), PAD, device=logits.device)
        all_values[:, :, 0].masked_fill_(self._ended, 0.0)  # an ended caption stays as it is
        all_values[..., : values.shape[1]][living] = values
        all_words[..., : values.shape[1]][living] = words.masked_fill(values == -math.inf, PAD)
        unguided = all_values
        if self._guide is not None:
            unguided = all_values.clone()
            unguided[..., : values.shape[1]][living] = own.gather(1, words)
        return all_values, all_words, unguided

    def _choose(self, sums: Tensor, weights: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the candidates [B, K, K] are the next captions, [B, K] of K*K, group by group; by which scores."""
        count, beams, _ = sums.shape
        chosen: list[Tensor] = []
        ranks: list[Tensor] = []
        for start in range(0, beams, self._group_size):
            group = slice(start, start + self._group_size)
            own_sums, own_words = sums[:, group], words[:, group]  # [B, K/G, K]
            if chosen:
                taken = words.view(count, -1).gather(1, torch.cat(chosen, dim=1)).view(count, 1, 1, -1)
                is_taken = (own_words.unsqueeze(3) == taken) & (taken > END)
                own_sums = own_sums - self._search.diversity_strength * is_taken.sum(dim=3)
            scores = (own_sums / weights[:, group]).flatten(1)  # [B, K/G * K]
            highest, places = likeliest_words(scores, self._group_size)  # [B, K/G]
            chosen.append(places + start * beams)
            ranks.append(highest)
        return torch.cat(chosen, dim=1), torch.cat(ranks, dim=1)

    def _record(self, parents: Tensor, words: Tensor, log_probabilities: Tensor, ranks: Tensor) -> TracedStep:
        """The step that was just made, of the one image; each [1, K], the best captions first as `_read` ranks them."""
        scores = self._sums / self._weights[self._lengths]  # [1, K]
        order = scores.sort(dim=1, descending=True, stable=True)[1][0]  # [K]
        order = order[scores[0, order] > -math.inf]
        parts = (parents, words, log_probabilities, self._sums, scores, ranks, self._lengths, self._ended)
        return TracedStep(order.tolist(), *(part[0, order].tolist() for part in parts))

    def _is_known(self) -> Tensor:
        """Of which images [B] nothing can change the captions any more."""
        settled = ~self._living()
        if self._search.diversity_groups > 1:
            return settled.all(dim=1)
        # sums only fall: captions that have ended are not overtaken by one whose sum is too low at any length
        reachable = torch.where(settled, -math.inf, self._sums / self._weights[-1])  # [B, K]
        last = slice(self._search.alternatives, self._search.alternatives + 1)
        is_safe = (reachable <= (self._sums / self._weights[self._lengths])[:, last]).all(dim=1)
        return settled[:, : last.stop].all(dim=1) & is_safe

    def _read(self, is_known: Tensor) -> list[tuple[int, DecodedCaption]]:
        scores = self._sums / self._weights[self._lengths]
        scores, order = scores.sort(dim=1, descending=True, stable=True)  # groups stand one after the other
        counts = (scores > -math.inf).sum(dim=1)
        parts = (self.images, order, counts, self._words, self._log_probabilities)
        known = []
        for image, places, count, words, values in zip(*(part[is_known].tolist() for part in parts), strict=True):
            ranked = [read_caption(words[place], values[place], self._search.longest) for place in places[:count]]
            best, *others = {caption.words: caption for caption in ranked}.values()  # groups may find the same
            known.append((image, replace(best, alternatives=tuple(others[: self._search.alternatives]))))
        return known

    def _keep(self, stays: Tensor, rows: Tensor, state: State) -> None:
        """Keep the images that stay [B]; a living caption's state is in row `rows` [B, K] of `state`."""
        self.images, self._sums, self._lengths = self.images[stays], self._sums[stays], self._lengths[stays]
        self._ended, self._words = self._ended[stays], self._words[stays]
        self._log_probabilities = self._log_probabilities[stays]
        living = self._living()
        living_rows = rows[stays][living]
        self.state = tuple(part.index_select(1, living_rows) for part in state)
        self.last_words = self._words[:, :, -1][living]


def _append(history: Tensor, parents: Tensor, values: Tensor) -> Tensor:
    """The history [B, K, T] of each one's parent [B, K] and its own value [B, K] behind it."""
    return torch.cat([history.gather(1, parents.unsqueeze(2).expand_as(history)), values.unsqueeze(2)], dim=2)


def read_caption(words: Sequence[int], log_probabilities: Sequence[float], max_length: int) -> DecodedCaption:
    """The caption that ends before the first `<end>` or `<pad>` of `words`, if there is one."""
    length = next((place for place, word in enumerate(words[:max_length]) if word in (END, PAD)), max_length)
    return DecodedCaption(tuple(words[:length]), tuple(log_probabilities[:length]), cut=length == max_length)
