"""Greedy and beam search over the steps of a decoder, or of an ensemble, many images at once.

Probabilities are over the whole vocabulary. A caption that reaches the maximum length is cut and marked, no error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from array_api_compat import array_namespace, device

from captionmill.data.captions.vocabulary import END, PAD, START
from captionmill.stages.decoding.beam_tree import TracedStep
from captionmill.stages.decoding.constraints import (
    AnyArray,
    WordRule,
    likeliest_words,
    next_words,
)
from captionmill.stages.settings import SearchConfig

State = tuple[AnyArray, ...]
"""What a step hands to the next, each part [L, B, ...] with the caption in dimension 1: hidden, cell, and with
`image_input` "every" also the image as it is fed in with each word; for an ensemble, those of each decoder in turn."""


class StepDecoder(Protocol):
    """What can be searched: one word after another, the state a flat tuple of any parts, each [L, B, H].

    Its arrays are those of NumPy or of torch.
    """

    def start(self, features: AnyArray) -> State:
        """The state before `<start>`, from features [B, D]."""

    def step(self, words: AnyArray, state: State, parents: AnyArray | None = None) -> tuple[AnyArray, State]:
        """One word per caption [B] and the state -> logits of the next word [B, V] and the next state.

        `parents` [B]: where in the state the caption is that each word continues; None if each has its own.
        """


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
    decoder: int = 0  # that found it, where those of an ensemble each search by themselves
    consensus: float | None = None
    """That with the captions of training images, if re-ranking chose by it."""

    @property
    def confidence(self) -> float:
        """0 to 1: 1 - exp(-consensus), or without one the geometric mean of the words' probabilities."""
        if self.consensus is not None:
            return -math.expm1(-max(0.0, self.consensus))
        return math.exp(sum(self.log_probabilities) / len(self.log_probabilities)) if self.words else 0.0


def search_captions(
    decoder: StepDecoder,
    features: AnyArray,
    search: SearchConfig,
    *,
    rule: WordRule | None = None,
    guide: AnyArray | None = None,
    margin: float = math.inf,
    trace: list[TracedStep] | None = None,
) -> list[DecodedCaption]:
    """The best caption for each row of `features` [B, D] by its score, and as many `alternatives` as `search` asks for.

    The score is the sum of the log probabilities of its words, `<end>` included, divided by the number of these to the
    power of `length_penalty`: 0 leaves the sum, which favours short captions; 1 makes it a mean (Wu et al. 2016,
    "Google's neural machine translation system", with the words instead of their (5 + words) / 6).

    Beam search keeps the `beam_size` best captions at each step; one that has ended competes on with its score. Of
    equal scores the one that extends the better caption is kept, then the likelier word, then the lower index. A beam
    of one is greedy. Which words may come is up to `rule`, or to that of `search`. Decoders are in evaluation mode.

    With `diversity_groups` each group of the beam keeps its own best captions at each step, after those before it: a
    word's score is less by `diversity_strength` for each caption of these groups that has just taken it (Vijayakumar et
    al. 2018, "Diverse beam search", with their Hamming diversity). The score of the whole caption is without that.

    `guide` [B, V] is added to the log probabilities of words that a caption does not have yet, which are normalised
    again, before captions are ranked. The log probabilities of the captions that are found are the decoder's own.

    An unfinished caption whose sum is less than the best one's in its group by more than `margin` is not continued
    (Freitag and Al-Onaizan 2017, "Beam search strategies for neural machine translation": absolute threshold pruning).

    What is kept at each step is appended to `trace`, for one image [1, D]; ValueError for more.
    """
    if trace is not None and len(features) != 1:
        raise ValueError(f"a search of {len(features)} images cannot be traced")
    beam = _Beam(decoder.start(features), search, rule or WordRule.of(search), guide, margin=margin, trace=trace)
    found: dict[int, DecodedCaption] = {}
    while len(beam.images):
        logits, state = decoder.step(beam.last_words, beam.state, beam.parents)
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
        guide: AnyArray | None,
        *,
        margin: float,
        trace: list[TracedStep] | None,
    ) -> None:
        xp, self._device = array_namespace(state[0]), device(state[0])
        count, beams, groups = state[0].shape[1], search.beam_size, search.diversity_groups
        self._xp, self._search, self._rule, self._trace = xp, search, rule, trace
        self._guide = None if guide is None else xp.asarray(guide, device=self._device)
        self._group_size, self._margin = beams // groups, margin
        # what sums are divided by; an array's powers of equal numbers may differ in the last bit, Python's do not
        weights = [max(length, 1) ** search.length_penalty for length in range(search.longest + 2)]
        self._weights = xp.asarray(weights, dtype=xp.float32, device=self._device)
        self.images = xp.arange(count, device=self._device)  # [B] which row of the features each is
        self._sums = self._full((count, beams), -math.inf)  # [B, K] of log probabilities
        self._sums[:, :: self._group_size] = 0.0  # all captions are equal at first: one per group is extended
        self._ended = self._full((count, beams), False)  # [B, K]
        self._lengths = self._full((count, beams), 0)  # [B, K] words, with <end>
        self._words = self._full((count, beams, 0), PAD)  # [B, K, T], <pad> after <end>
        self._log_probabilities = self._full((count, beams, 0), 0.0)  # [B, K, T] of these, without guidance
        self.last_words = self._full((count * groups,), START)  # [R]
        self.state = state  # each [L, P, H]
        self.parents = xp.repeat(xp.arange(count, device=self._device), groups)  # [R] of P: what each continues

    def _full(self, shape: tuple[int, ...], value: float) -> AnyArray:
        """An array of one value: of float32, int64 or booleans, as this is."""
        xp = self._xp
        dtype = {float: xp.float32, int: xp.int64, bool: xp.bool}[type(value)]
        return xp.full(shape, value, dtype=dtype, device=self._device)

    def advance(self, logits: AnyArray, state: State) -> list[tuple[int, DecodedCaption]]:
        """Add one word, by the `logits` [R, V] of the living captions and the `state` that they left [L, R, H].

        Gives the images whose captions nothing can change any more, with these; they leave.
        """
        xp = self._xp
        count, beams = self._sums.shape
        living = self._living()
        steps, words, unguided = self._candidates(logits, living)  # [B, K, K]: caption, then word
        lengths = self._lengths + xp.astype(living, xp.int64)
        sums = self._sums[..., None] + steps
        chosen, ranks = self._choose(sums, self._weights[lengths][..., None], words)  # [B, K] of K*K
        parents = chosen // beams  # [B, K] which caption each continues
        taken, added, self._sums = (self._pick(all_of, chosen) for all_of in (words, unguided, sums))  # each [B, K]
        self._lengths = self._pick(lengths, parents)
        self._ended = self._pick(self._ended, parents) | (taken == END)
        self._words = self._append(self._words, parents, taken)
        self._log_probabilities = self._append(self._log_probabilities, parents, added)
        if self._trace is not None:
            self._trace.append(self._record(parents, taken, added, ranks))
        is_known = self._is_known()
        known = self._read(is_known) if bool(xp.any(is_known)) else []
        rows = xp.reshape(xp.cumulative_sum(xp.astype(xp.reshape(living, (-1,)), xp.int64)) - 1, (count, beams))
        rows = self._pick(rows, parents)  # [B, K] of R, of a living one
        self._drop_trailing()
        self._keep(~is_known, rows, state)
        return known

    def _pick(self, values: AnyArray, places: AnyArray) -> AnyArray:
        """From the values of each image, [B, ...] read as [B, N], those at `places` [B, K]."""
        return self._xp.take_along_axis(self._xp.reshape(values, (values.shape[0], -1)), places, axis=1)

    def _append(self, history: AnyArray, parents: AnyArray, values: AnyArray) -> AnyArray:
        """The history [B, K, T] of each one's parent [B, K] and its own value [B, K] behind it."""
        rows = self._xp.arange(history.shape[0], device=self._device)[:, None]
        return self._xp.concat([history[rows, parents], values[..., None]], axis=2)

    def _living(self) -> AnyArray:
        return ~self._ended & (self._sums > -math.inf)  # [B, K]

    def _candidates(self, logits: AnyArray, living: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        """The K likeliest next words of each caption [B, K, K]: log probabilities, -inf for none, and the words.

        The third are the log probabilities without guidance.
        """
        xp, (count, beams) = self._xp, living.shape
        images = self.images[xp.nonzero(living)[0]]  # [R]
        found = next_words(  # each [R, K]
            logits,
            self._words[living],
            self._rule,
            beams,
            sums=self._sums[living],
            # diversity takes from a word's score later: each caption keeps all its own words
            pools=images if self._group_size == beams else xp.arange(len(images), device=self._device),
            guide=self._guide,
            images=images,
        )
        all_values, all_unguided = (self._full((count, beams, beams), -math.inf) for _ in range(2))
        all_words = self._full((count, beams, beams), PAD)
        for all_of, values in zip((all_values, all_words, all_unguided), found, strict=True):
            all_of[..., : values.shape[1]][living] = values
        for all_of in (all_values, all_unguided):
            all_of[:, :, 0][self._ended] = 0.0  # an ended caption stays as it is
        return all_values, all_words, all_unguided

    def _choose(self, sums: AnyArray, weights: AnyArray, words: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Which of the candidates [B, K, K] are the next captions, [B, K] of K*K, group by group; by which scores."""
        xp, (count, beams, _) = self._xp, sums.shape
        chosen: list[AnyArray] = []
        ranks: list[AnyArray] = []
        for start in range(0, beams, self._group_size):
            group = slice(start, start + self._group_size)
            own_sums, own_words = sums[:, group], words[:, group]  # [B, K/G, K]
            if chosen:
                taken = self._pick(words, xp.concat(chosen, axis=1))[:, None, None]  # [B, 1, 1, taken]
                is_taken = (own_words[..., None] == taken) & (taken > END)
                counts = xp.astype(xp.sum(xp.astype(is_taken, xp.int64), axis=3), xp.float32)
                own_sums = own_sums - self._search.diversity_strength * counts
            scores = xp.reshape(own_sums / weights[:, group], (count, -1))  # [B, K/G * K]
            highest, places = likeliest_words(scores, self._group_size)  # [B, K/G]
            chosen.append(places + start * beams)
            ranks.append(highest)
        return xp.concat(chosen, axis=1), xp.concat(ranks, axis=1)

    def _record(self, parents: AnyArray, words: AnyArray, log_probabilities: AnyArray, ranks: AnyArray) -> TracedStep:
        """The step that was just made, of the one image; each [1, K], the best captions first as `_read` ranks them."""
        scores = self._sums / self._weights[self._lengths]  # [1, K]
        order = self._xp.argsort(scores, axis=1, descending=True, stable=True)[0]  # [K]
        order = order[scores[0, order] > -math.inf]
        parts = (parents, words, log_probabilities, self._sums, scores, ranks, self._lengths, self._ended)
        return TracedStep(order.tolist(), *(part[0, order].tolist() for part in parts))

    def _is_known(self) -> AnyArray:
        """Of which images [B] nothing can change the captions any more."""
        xp, settled = self._xp, ~self._living()
        if self._search.diversity_groups > 1:
            return xp.all(settled, axis=1)
        # sums only fall: captions that have ended are not overtaken by one whose sum is too low at any length
        reachable = xp.where(settled, -math.inf, self._sums / self._weights[-1])  # [B, K]
        last = slice(self._search.alternatives, self._search.alternatives + 1)
        is_safe = xp.all(reachable <= (self._sums / self._weights[self._lengths])[:, last], axis=1)
        return xp.all(settled[:, : last.stop], axis=1) & is_safe

    def _read(self, is_known: AnyArray) -> list[tuple[int, DecodedCaption]]:
        scores = self._sums / self._weights[self._lengths]
        # groups stand one after the other
        order = self._xp.argsort(scores, axis=1, descending=True, stable=True)
        counts = self._xp.sum(self._xp.astype(scores > -math.inf, self._xp.int64), axis=1)
        parts = (self.images, order, counts, self._words, self._log_probabilities)
        known = []
        for image, places, count, words, values in zip(*(part[is_known].tolist() for part in parts), strict=True):
            ranked = [read_caption(words[place], values[place], self._search.longest) for place in places[:count]]
            best, *others = {caption.words: caption for caption in ranked}.values()  # groups may find the same
            known.append((image, replace(best, alternatives=tuple(others[: self._search.alternatives]))))
        return known

    def _drop_trailing(self) -> None:
        """Empty the places of unfinished captions that are behind by more than the margin, if they could be longer."""
        xp, living = self._xp, self._living()
        sums = xp.reshape(xp.where(living, self._sums, -math.inf), (len(living), -1, self._group_size))
        limits = xp.repeat(xp.max(sums, axis=2) - self._margin, self._group_size, axis=1)  # [B, K]
        if self._words.shape[2] < self._search.longest:
            self._sums = xp.where(living & (self._sums < limits), -math.inf, self._sums)

    def _keep(self, stays: AnyArray, rows: AnyArray, state: State) -> None:
        """Keep the images that stay [B]; a living caption's state is in row `rows` [B, K] of `state`."""
        self.images, self._sums, self._lengths = self.images[stays], self._sums[stays], self._lengths[stays]
        self._ended, self._words = self._ended[stays], self._words[stays]
        self._log_probabilities = self._log_probabilities[stays]
        living = self._living()
        continued, self.parents = self._xp.unique(rows[stays][living], return_inverse=True)
        self.state = tuple(self._xp.take(part, continued, axis=1) for part in state)
        self.last_words = self._words[:, :, -1][living]


def read_caption(words: Sequence[int], log_probabilities: Sequence[float], max_length: int) -> DecodedCaption:
    """The caption that ends before the first `<end>` or `<pad>` of `words`, if there is one."""
    length = next((place for place, word in enumerate(words[:max_length]) if word in (END, PAD)), max_length)
    return DecodedCaption(tuple(words[:length]), tuple(log_probabilities[:length]), cut=length == max_length)
