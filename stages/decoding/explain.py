"""The path from one image's features to its caption, every number of it kept: the question that a user asks.

Nothing is computed for show: the numbers are what `Decoder.start` and `Decoder.step` return.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END, START, Vocabulary, tokenize
from captionmill.data.features.file import Features
from captionmill.stages.decoding.beam_tree import BeamTree, grow_beam_tree
from captionmill.stages.decoding.constraints import NEVER_CHOSEN
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.ensemble import Ensemble
from captionmill.stages.decoding.search import StepDecoder
from captionmill.stages.settings import SearchConfig

TOP_WORDS = 10
_STATE_PARTS = ("hidden", "cell", "image")  # in the order of `Decoder.start`

Numbers = npt.NDArray[np.float32]


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
    """Why the search may not choose it here: "never chosen", or "not first" (no caption is empty); "" if it may."""

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
    """The word that follows: the search's choice, or the reference's word."""


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
        """Mean of -ln(probability) over the steps, `<end>` included, nats a word."""
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
    """hidden, cell, or image where the image stands beside each word."""
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
    """The highest logit at each step."""
    beam: BeamTree
    caption: Walk
    """The winner of the beam, step by step: what the captioner says."""
    references: tuple[Reference, ...]
    """Those that have a word."""


@torch.inference_mode()
def explain_features(
    decoder: Decoder | Ensemble,
    row: Features,
    vocabulary: Vocabulary,
    search: SearchConfig,
    references: Sequence[str] = (),
) -> Explanation:
    """The way of the features `row` [D] through `decoder`, and the cross entropy of the captions `references`."""
    decoder.eval()
    device = next(decoder.parameters()).device
    features = torch.from_numpy(row)[None].to(device).float()  # [1, D]
    beam = grow_beam_tree(decoder, features, vocabulary, search)
    follow = [*beam.words] if beam.cut else [*beam.words, END]
    return Explanation(
        features=_numbers(features[0]),
        starts=tuple(_describe_start(part, features) for part in _decoders_of(decoder)),
        greedy=walk_greedily(decoder, features, vocabulary, max_length=search.max_length),
        beam=beam,
        caption=walk_along(decoder, features, vocabulary, follow),
        references=tuple(
            _score_reference(decoder, features, vocabulary, text) for text in references if tokenize(text)
        ),
    )


@torch.inference_mode()
def walk_greedily(decoder: StepDecoder, features: Tensor, vocabulary: Vocabulary, *, max_length: int) -> Walk:
    """The caption of features [1, D] by the highest logit that may be chosen at each step."""

    def choose(step: int, logits: Tensor) -> int:
        allowed = logits.clone()
        allowed[[index for index in range(len(logits)) if _why_barred(index, step)]] = -math.inf
        return int(allowed.argmax())

    return _walk(decoder, features, vocabulary, choose, max_length)


@torch.inference_mode()
def walk_along(decoder: StepDecoder, features: Tensor, vocabulary: Vocabulary, words: Sequence[int]) -> Walk:
    """Teacher forcing: the steps of features [1, D] in which `words` are chosen, whatever the logits say."""
    return _walk(decoder, features, vocabulary, lambda step, logits: words[step - 1], len(words))


def _walk(
    decoder: StepDecoder,
    features: Tensor,
    vocabulary: Vocabulary,
    choose: Callable[[int, Tensor], int],
    max_steps: int,
) -> Walk:
    state, fed = decoder.start(features), START
    steps: list[Step] = []
    while len(steps) < max_steps and fed != END:
        logits, state = decoder.step(torch.tensor([fed], device=features.device), state)  # [1, V]
        number = len(steps) + 1
        chosen = choose(number, logits[0])
        steps.append(_describe_step(number, fed, chosen, logits[0], vocabulary))
        fed = chosen
    return Walk(tuple(steps), cut=fed != END)


def _describe_step(number: int, fed: int, chosen: int, logits: Tensor, vocabulary: Vocabulary) -> Step:
    log_probabilities = logits.float().log_softmax(dim=-1)  # [V]

    def scored(index: int) -> ScoredWord:
        return ScoredWord(
            index=index,
            word=vocabulary.words[index],
            logit=float(logits[index]),
            log_probability=float(log_probabilities[index]),
            rank=1 + int((logits > logits[index]).sum()),
            barred=_why_barred(index, number),
        )

    top = logits.topk(min(TOP_WORDS, len(logits))).indices.tolist()
    return Step(number, fed, vocabulary.words[fed], tuple(scored(index) for index in top), scored(chosen))


def _why_barred(index: int, step: int) -> str:
    if index in NEVER_CHOSEN:
        return "never chosen"
    return "not first" if index == END and step == 1 else ""


def _score_reference(decoder: StepDecoder, features: Tensor, vocabulary: Vocabulary, text: str) -> Reference:
    walk = walk_along(decoder, features, vocabulary, [*vocabulary.encode(text), END])
    return Reference(text, tuple(tokenize(text)), walk)


def _decoders_of(decoder: Decoder | Ensemble) -> list[Decoder]:
    if isinstance(decoder, Decoder):
        return [decoder]
    return [part for part in decoder.decoders if isinstance(part, Decoder)]


def _describe_start(decoder: Decoder, features: Tensor) -> Start:
    parts = [
        StatePart(name, layer, _numbers(values[0]))
        for name, part in zip(_STATE_PARTS, decoder.start(features), strict=False)
        for layer, values in enumerate(part, start=1)  # [B, H]
    ]
    return Start(_numbers(decoder.scale(features)[0]), tuple(parts))


def _numbers(values: Tensor) -> Numbers:
    numbers: Numbers = values.float().cpu().numpy()
    return numbers
