"""Stage two, captioning: cached features in, captions out, without opening an image; on a CPU without torch."""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.errors import InputError
from captionmill.data.features.file import Features
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import Model
from captionmill.data.paths import AnyPaths
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.decoding.beam_tree import TracedStep
from captionmill.stages.decoding.config import sound_weights
from captionmill.stages.decoding.constraints import WordRule
from captionmill.stages.decoding.ensemble import Ensemble, SingleDecoder, join_decoders
from captionmill.stages.decoding.folded import FoldedDecoder
from captionmill.stages.decoding.reranking import (
    MARGIN,
    candidate_search,
    guide_words,
    load_rankers,
    pool_candidates,
    rerank_captions,
    weigh_images,
)
from captionmill.stages.decoding.sampling import draw_captions
from captionmill.stages.decoding.search import DecodedCaption, StepDecoder, search_captions
from captionmill.stages.decoding.trained import TrainedModels, read_models
from captionmill.stages.machine import choose_device, is_out_of_memory, means_cpu
from captionmill.stages.ranking.ngrams import Reals
from captionmill.stages.ranking.ranker import Ranker
from captionmill.stages.settings import SearchConfig

if TYPE_CHECKING:
    from captionmill.stages.decoding.decoder import Decoder

BLOCK_ROWS = 1536  # captions that are searched at once: of half as many, products and steps take a twelfth longer

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caption:
    """A caption and how sure it is."""

    text: str
    confidence: float
    """0 to 1: 1 - exp(-consensus) where re-ranking used it, else the geometric mean of the words' probabilities."""
    cut: bool = False
    """It has as many words as a caption may have."""
    alternatives: tuple["Caption", ...] = ()
    """The next best captions, best first; further draws where captions are sampled."""


@dataclass(frozen=True)
class Captioner:
    """A trained decoder or an ensemble, ready to run, and what it needs to know about features and words."""

    steps: SingleDecoder | Ensemble
    """In NumPy on a CPU, in torch on a GPU."""
    models: TrainedModels
    """What it was read from."""
    rankers: tuple[Ranker, ...] = field(default=(), repr=False)
    """What re-ranks captions, of each decoder; none if one of them has none."""

    @classmethod
    def load(cls, model: AnyPaths, *, device: str = "auto") -> "Captioner":
        """The decoder of the bundle in folder `model`, or the ensemble of several such folders.

        Raises ModelError if one cannot be read, SpecMismatchError if they were trained on different kinds of features,
        InputError if their words or the indices of these differ, or no folder is given.
        """
        return cls.of(read_models(model), device=device)

    @classmethod
    def of(cls, models: TrainedModels, *, device: str = "auto") -> "Captioner":
        """The decoder or the ensemble of `models` on `device`; ModelError if weights do not fit."""
        chosen_device = "cpu" if means_cpu(device) else str(choose_device(device))
        steps: SingleDecoder | Ensemble
        if chosen_device == "cpu":
            steps = join_decoders([FoldedDecoder(*sound_weights(*pair)) for pair in models.pairs])
        else:
            from captionmill.stages.decoding.decoder import choose_steps

            steps = choose_steps(*(decoder.to(chosen_device) for decoder in build_decoders(models)))
        return cls(steps, models, load_rankers(models))

    @cached_property
    def decoder(self) -> "Decoder | Ensemble":
        """The same in torch, on the CPU."""
        return join_decoders(build_decoders(self.models))

    @property
    def bundles(self) -> tuple[Model, ...]:
        """What each decoder was read from; they agree in `spec` and `vocabulary`."""
        return self.models.bundles

    @property
    def spec(self) -> FeatureSpec:
        """What made the features that every decoder was trained on."""
        return self.models.spec

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of every decoder."""
        return self.models.vocabulary

    def fit_search(self, search: SearchConfig) -> SearchConfig:
        """As `TrainedModels.fit_search`."""
        return self.models.fit_search(search)

    def captions(
        self,
        store: FeatureStore,
        keys: Sequence[str],
        search: SearchConfig = SearchConfig(),
        *,
        progress: Progress = no_progress,
    ) -> Iterator[tuple[str, Caption]]:
        """The caption of each image of `keys`, in that order; KeyError for a key without a row.

        Raises SpecMismatchError at once if the features are not of the kind that the decoder was trained on.
        """
        self.spec.require(store.spec, mine="the model", others=str(store.path))
        search = self.fit_search(search)
        return decode_rows(self.finder(search), store, keys, progress=progress)

    def finder(self, search: SearchConfig) -> "CaptionFinder":
        """What finds captions by `search`, which `fit_search` gave."""
        return CaptionFinder(self.steps, self.vocabulary, search, self.rankers)


class KeyedRows(Protocol):
    """Rows of features that are found by key: those of a store, or of images in memory."""

    def position(self, key: str) -> int:
        """Where the row of `key` is; KeyError if it has none."""

    def read(self, positions: Sequence[int]) -> Features:
        """The rows at `positions`, in that order: [len(positions), D]."""


@dataclass(frozen=True)
class CaptionFinder:
    """Finds the captions of features: a decoder's steps, and all that decides which words it chooses."""

    steps: StepDecoder
    """Those of a decoder or an ensemble."""
    vocabulary: Vocabulary
    search: SearchConfig
    """With nothing left open, as `Captioner.fit_search` gives it."""
    rankers: tuple[Ranker, ...] = ()

    @property
    def rows_per_image(self) -> int:
        """The captions of an image that are searched or drawn at once."""
        return 1 + self.search.alternatives if self.search.sample else self.widened.beam_size

    @property
    def widened(self) -> SearchConfig:
        """The search that is run: that of all candidates, where they are re-ranked."""
        return candidate_search(self.search) if self.reranks else self.search

    @property
    def searched(self) -> tuple[StepDecoder, ...]:
        """What is searched: for candidates each decoder of an ensemble by itself, which finds more and better ones."""
        return self.steps.decoders if self.reranks and isinstance(self.steps, Ensemble) else (self.steps,)

    @property
    def reranks(self) -> bool:
        """Whether the captions of the search are re-ranked."""
        return bool(self.rankers) and self.search.rerank not in ("auto", "none")

    def find(self, features: Features, keys: Sequence[str]) -> list[DecodedCaption]:
        """The caption of each row of `features` [B, D], searched or drawn as `search` asks."""
        if not self.reranks:
            return self.find_candidates(features, keys)
        weights = weigh_images(features, self.rankers, self.search)
        found = self._find(features, keys, weights)
        return rerank_captions(found, features, weights, self.rankers, self.search)

    def find_candidates(
        self, features: Features, keys: Sequence[str], *, traces: Sequence[list[TracedStep]] | None = None
    ) -> list[DecodedCaption]:
        """As `find`, but not re-ranked: where that is asked for, all candidates, in the decoder's order.

        `traces` are as `search_captions` and `draw_captions` take them, one for each part of `searched`.
        """
        weights = weigh_images(features, self.rankers, self.search) if self.reranks else ()
        return self._find(features, keys, weights, traces)

    def _find(
        self,
        features: Features,
        keys: Sequence[str],
        weights: Sequence[Reals],
        traces: Sequence[list[TracedStep]] | None = None,
    ) -> list[DecodedCaption]:
        rule = WordRule.of(self.search, self.vocabulary)
        with np.errstate(invalid="ignore", over="ignore"):  # features that are no numbers have a caption, too
            if self.search.sample:
                trace = traces[0] if traces else None
                return draw_captions(self.steps, features, keys, self.search, rule=rule, trace=trace)
            guide = guide_words(weights, self.rankers, self.search) if self.reranks else None
            margin = MARGIN if self.reranks else math.inf
            found = [
                search_captions(decoder, features, self.widened, rule=rule, guide=guide, margin=margin, trace=trace)
                for decoder, trace in zip(self.searched, traces or itertools.repeat(None), strict=False)
            ]
        return found[0] if len(found) == 1 else list(map(pool_candidates, zip(*found, strict=True)))


def decode_rows(
    finder: CaptionFinder,
    store: KeyedRows,
    keys: Sequence[str],
    *,
    block_rows: int = BLOCK_ROWS,
    progress: Progress = no_progress,
) -> Iterator[tuple[str, Caption]]:
    """The caption of each image of `keys`, in that order, a block of images at a time.

    `block_rows` captions are searched at once. When memory runs out, the block is halved for all that follow;
    InputError if one image is too much.
    """
    block_size = max(1, block_rows // finder.rows_per_image)
    start = 0
    while start < len(keys):
        block = keys[start : start + block_size]
        try:
            rows = store.read([store.position(key) for key in block])
            decoded = finder.find(rows.astype(np.float32), block)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            if len(block) == 1:
                wide = "fewer `candidates`" if finder.reranks else "a smaller `beam_size`"
                smaller = "fewer `alternatives`" if finder.search.sample else wide
                raise InputError(f"not enough memory for one image: use {smaller} or `device` cpu") from exc
            block_size = len(block) // 2
            _logger.warning("not enough memory: continuing with %d images at once", block_size)
            continue
        for key, caption in zip(block, decoded, strict=True):
            yield key, _spell(caption, finder.vocabulary)
        start += len(block)
        progress("caption", start, len(keys))


def _spell(caption: DecodedCaption, vocabulary: Vocabulary) -> Caption:
    alternatives = tuple(_spell(alternative, vocabulary) for alternative in caption.alternatives)
    return Caption(vocabulary.decode(caption.words), caption.confidence, caption.cut, alternatives)


def build_decoders(models: TrainedModels) -> "list[Decoder]":
    """The decoders of `models` in torch, on the CPU, in evaluation mode; ModelError if weights do not fit."""
    from captionmill.stages.decoding.decoder import Decoder

    return [Decoder.of(*sound_weights(*pair)).eval() for pair in models.pairs]
