"""The path from one image's features to its caption, every number of it kept: the question that a user asks.

Nothing is computed for show: the search is the one that captions, recorded, and the numbers are what its decoder gives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from array_api_compat import array_namespace, device

from captionmill.data.captions.vocabulary import END, START, Vocabulary
from captionmill.data.features.file import Features
from captionmill.stages.decoding.beam_tree import BeamTree, TracedStep, build_beam_tree
from captionmill.stages.decoding.captioner import CaptionFinder
from captionmill.stages.decoding.constraints import AnyArray, WordRule, log_softmax
from captionmill.stages.decoding.ensemble import Ensemble, SingleDecoder
from captionmill.stages.decoding.folded import Numbers
from captionmill.stages.decoding.reranking import Choice, explain_choice
from captionmill.stages.decoding.search import DecodedCaption, StepDecoder
from captionmill.stages.ranking.ranker import Ranker
from captionmill.stages.settings import SearchConfig

TOP_WORDS = 10


@dataclass(frozen=True)
class ScoredWord:
    """A word that could come next."""

    index: int
    word: str
    logit: float
    """The network's score; of an ensemble, the natural logarithm of the mean probability."""
    log_probability: float
    """Natural logarithm of the softmax over all logits."""
    rank: int
    """Place among all words by logit, from 1."""
    barred: str = ""
    """Why the search may not choose it here: "never chosen", "not first" (no caption is empty), or another reason of
    `WordRule.barred`; "" if it may."""

    @property
    def probability(self) -> float:
        """0 to 1."""
        return math.exp(self.log_probability)


@dataclass(frozen=True)
class Step:
    """One word goes in, one comes out."""

    number: int
    """From 1."""
    fed: int
    """Index of the word fed in."""
    fed_word: str
    top: tuple[ScoredWord, ...]
    """The ten words of the highest logits, the highest first."""
    chosen: ScoredWord
    """The word that follows: what the search chose, or the reference's word."""


@dataclass(frozen=True)
class Walk:
    """A caption word by word, each step as the network computed it."""

    steps: tuple[Step, ...]
    cut: bool = False
    """The maximum length was reached before `<end>`."""

    @property
    def words(self) -> tuple[int, ...]:
        """Indices of the words, without `<start>` and `<end>`."""
        return tuple(step.chosen.index for step in self.steps if step.chosen.index != END)

    @property
    def confidence(self) -> float:
        """Geometric mean of the words' probabilities, `<end>` left out, 0 to 1."""
        logarithms = [step.chosen.log_probability for step in self.steps if step.chosen.index != END]
        return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else 0.0

    @property
    def cross_entropy(self) -> float:
        """Mean of -ln(probability) over the steps, `<end>` included, in nats per word."""
        return -math.fsum(step.chosen.log_probability for step in self.steps) / len(self.steps)


@dataclass(frozen=True)
class Reference:
    """A caption by a person, and what the network thinks of each of its words when the true ones are fed in."""

    text: str
    words: tuple[str, ...]
    """Its words as they were written, lower case; those without an index are `<unk>` in `walk`."""
    walk: Walk


@dataclass(frozen=True)
class StatePart:
    """One vector of the state before `<start>`."""

    name: str
    """hidden, cell, or image, if the image is fed in with each word."""
    layer: int
    """From 1."""
    values: Numbers  # [H]


@dataclass(frozen=True)
class Start:
    """What one decoder makes of the features before the first word."""

    scaled: Numbers  # [D]
    """The features as they enter the first Linear layer."""
    parts: tuple[StatePart, ...]


@dataclass(frozen=True)
class Explanation:
    """All that happens between an image's features and its caption."""

    features: Numbers  # [D]
    starts: tuple[Start, ...]
    """Of the decoder, or of each of an ensemble."""
    greedy: Walk
    """The highest logit that may be chosen at each step."""
    beam: BeamTree
    """The steps of the search that found the caption; of sampling, those of all draws."""
    caption: Walk
    """The caption as the captioner finds it, step by step: the winner of the beam, or the first draw. The numbers are
    those of what searched: of an ensemble whose candidates are re-ranked, the decoder that found the caption."""
    references: tuple[Reference, ...]
    """Those that have a word."""
    choice: Choice | None = None
    """Why the caption was chosen among the candidates that the search found; None where these were not re-ranked."""

    @property
    def confidence(self) -> float:
        """That of the caption, as in captioning."""
        return self.choice.candidates[0].caption.confidence if self.choice else self.caption.confidence


def explain_features(
    steps: SingleDecoder | Ensemble,
    row: Features,
    vocabulary: Vocabulary,
    search: SearchConfig,
    references: Sequence[str] = (),
    *,
    key: str = "",
    rankers: Sequence[Ranker] = (),
) -> Explanation:
    """The way of the features `row` [D] through the decoder of `steps`, and the cross entropy of `references`.

    With `search.sample` the captions are those drawn for the image `key`.
    """
    features = row[np.newaxis].astype(np.float32)  # [1, D]
    rule = WordRule.of(search, vocabulary)
    walker = _Walker(steps, features, vocabulary, rule)
    finder = CaptionFinder(steps, vocabulary, search, tuple(rankers))
    traces = [list[TracedStep]() for _ in finder.searched]
    (caption,) = finder.find_candidates(features, [key], traces=traces)
    choice = explain_choice(caption, features, finder.rankers, search) if finder.reranks else None
    caption = choice.candidates[0].caption if choice else caption
    decoders = steps.decoders if isinstance(steps, Ensemble) else (steps,)
    (greedy,) = replace(finder, search=_greedy(search)).find(features, [key])
    return Explanation(
        features=features[0],
        starts=tuple(_start_of(decoder, features) for decoder in decoders),
        greedy=walker.follow_caption(greedy),
        beam=build_beam_tree(traces[caption.decoder], vocabulary, finder.widened, caption.words),
        caption=replace(walker, decoder=finder.searched[caption.decoder]).follow_caption(caption),
        references=tuple(
            Reference(text, tuple(vocabulary.tokenize(text)), walker.follow([*vocabulary.encode(text), END]))
            for text in references
            if vocabulary.tokenize(text)
        ),
        choice=choice,
    )


def _greedy(search: SearchConfig) -> SearchConfig:
    """Greedy search of captions of the same lengths."""
    return SearchConfig(
        beam_size=1,
        min_length=search.min_length,
        max_length=search.max_length,
        no_repeat_ngram=search.no_repeat_ngram,
        repeat_words=search.repeat_words,
        rerank="none",
    )


@dataclass(frozen=True)
class _Walker:
    """Follows captions of one image, step by step."""

    decoder: StepDecoder
    features: Features  # [1, D]
    vocabulary: Vocabulary
    rule: WordRule

    def follow_caption(self, caption: DecodedCaption) -> Walk:
        """The steps of a caption that was found."""
        return self.follow(caption.words if caption.cut else [*caption.words, END])

    def follow(self, words: Sequence[int]) -> Walk:
        """Teacher forcing: the steps in which `words` are chosen, whatever the logits are."""
        state, fed = self.decoder.start(self.features), START
        steps: list[Step] = []
        for place, chosen in enumerate(words):
            xp = array_namespace(state[0])
            logits, state = self.decoder.step(xp.asarray([fed], dtype=xp.int64, device=device(state[0])), state)
            steps.append(self._describe_step(fed, words[:place], chosen, _numbers(logits[0])))
            fed = chosen
        return Walk(tuple(steps), cut=fed != END)

    def _describe_step(self, fed: int, history: Sequence[int], chosen: int, logits: Numbers) -> Step:
        log_probabilities = log_softmax(logits)  # [V]
        reasons: dict[int, str] = {}
        for reason, words in self.rule.barred(np.array([history], dtype=np.int64), len(logits)):
            reasons = dict.fromkeys(words[0].tolist(), reason) | reasons

        def scored(index: int) -> ScoredWord:
            return ScoredWord(
                index=index,
                word=self.vocabulary.words[index],
                logit=float(logits[index]),
                log_probability=float(log_probabilities[index]),
                rank=1 + int((logits > logits[index]).sum()),
                barred=reasons.get(index, ""),
            )

        top = tuple(scored(index) for index in np.argsort(-logits, kind="stable")[:TOP_WORDS].tolist())
        return Step(len(history) + 1, fed, self.vocabulary.words[fed], top, scored(chosen))


def _start_of(decoder: SingleDecoder, features: Features) -> Start:
    parts = [
        StatePart(name, layer, _numbers(values[0]))
        for name, part in zip(decoder.config.state_parts, decoder.start(features), strict=True)
        for layer, values in enumerate(part, start=1)  # [B, H]
    ]
    return Start(_numbers(decoder.scale(features)[0]), tuple(parts))


def _numbers(values: AnyArray) -> Numbers:
    return values if isinstance(values, np.ndarray) else np.asarray(values.float().cpu())
