"""Choosing among the candidates of a search by what the training images say, and by what words fit the image.

A candidate's score is its consensus with the captions of the most similar training images, plus its match with the
image, plus a little of the decoder's own log probability. The weights were chosen on Flickr8k's dev images
(docs/benchmarks.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captionmill.data.errors import ModelError
from captionmill.data.models.bundle import RankerParts
from captionmill.stages.ranking.consensus import CaptionCorpus
from captionmill.stages.ranking.matcher import Matcher, MatcherConfig
from captionmill.stages.ranking.neighbours import Neighbours, Reduction
from captionmill.stages.ranking.ngrams import FlatCaptions, Integers, Rarities, Reals

Words = Sequence[int]


@dataclass(frozen=True)
class RankerConfig:
    """How the parts of a score are made and weighed; stored in the model."""

    neighbours: int = 200
    """Training images whose captions are compared."""
    temperature: float = 0.07
    """Of the softmax over their cosines, which weighs them."""
    likelihood_weight: float = 0.3
    """Of the mean natural logarithm of a candidate's word probabilities."""
    match_weight: float = 0.5
    """Of the cosine of image and caption."""
    usual_cosine: float = 0.0
    """Cosine to the nearest training image that 95 % of them reach; below it, consensus counts for less."""


@dataclass(frozen=True)
class Neighbour:
    """A training image that takes part in a consensus."""

    image: int
    """Its number among the training images of the ranker."""
    cosine: float
    weight: float
    """Share of the consensus, 0 to 1."""


@dataclass(frozen=True)
class CandidateScore:
    """What speaks for a candidate."""

    log_probability: float
    """Mean natural logarithm of its words' probabilities, by the decoder."""
    consensus: float
    """0 to 10."""
    match: float
    """Cosine with the image, -1 to 1."""
    total: float
    """The weighted sum of these that are used."""


class Ranker:
    """Scores candidates by one model's training images and its matcher."""

    def __init__(
        self, config: RankerConfig, neighbours: Neighbours, corpus: CaptionCorpus, matcher: Matcher | None
    ) -> None:
        """`corpus` holds the captions of the images of `neighbours`, in the same order."""
        self.config, self.neighbours, self.corpus = config, neighbours, corpus
        self.matcher = matcher.eval() if matcher is not None else None

    @torch.inference_mode()
    def score(
        self, features: Tensor, candidates: Sequence[Sequence[Words]], likelihoods: Sequence[Sequence[float]], by: str
    ) -> list[list[CandidateScore]]:
        """The scores of the candidates of each image, from features [B, D].

        `likelihoods` are the mean log probabilities of their words. `by` is consensus, matcher or both.
        """
        rows = features.float().cpu().numpy()
        zeros = [np.zeros(len(own), np.float32) for own in candidates]
        consensus = self.consensus(rows, candidates) if by != "matcher" else zeros
        match = self.match(features, candidates) if by != "consensus" else zeros
        config = self.config
        return [
            [
                CandidateScore(
                    own_likelihood,
                    own_consensus,
                    own_match,
                    own_consensus + config.likelihood_weight * own_likelihood + config.match_weight * own_match,
                )
                for own_likelihood, own_consensus, own_match in zip(
                    likelihood, image_consensus.tolist(), image_match.tolist(), strict=True
                )
            ]
            for likelihood, image_consensus, image_match in zip(likelihoods, consensus, match, strict=True)
        ]

    def consensus(self, features: Reals, candidates: Sequence[Sequence[Words]]) -> list[Reals]:
        """The consensus of the candidates of each image, features [B, D], with the captions of its neighbours."""
        found = self.neighbours.find(features, self.config.neighbours)
        return [
            self.trust(cosines) * self.corpus.score(FlatCaptions.of(own), images, self.weigh(cosines))
            for own, (images, cosines) in zip(candidates, found, strict=True)
        ]

    def weigh(self, cosines: Reals) -> Reals:
        """The share of each neighbour, which add up to 1: a softmax of the cosines."""
        weights = np.exp((cosines - cosines.max()) / self.config.temperature)
        return np.asarray(weights / weights.sum(), dtype=np.float32)

    def trust(self, cosines: Reals) -> float:
        """How much the consensus counts, 0 to 1: less for an image that is far from all training images."""
        usual = self.config.usual_cosine
        return float(np.clip(cosines.max() / usual, 0.0, 1.0)) if usual > 0 else 1.0

    def match(self, features: Tensor, candidates: Sequence[Sequence[Words]]) -> list[Reals]:
        """The cosine of each image, features [B, D], with each of its candidates; 0 without a matcher."""
        if self.matcher is None:
            return [np.zeros(len(own), np.float32) for own in candidates]
        images = self.matcher.embed_images(features)  # [B, M]
        counts = [len(own) for own in candidates]
        captions = self.matcher.embed_captions([caption for own in candidates for caption in own])  # [C, M]
        owners = torch.repeat_interleave(torch.tensor(counts, device=images.device))  # [C]
        cosines: Reals = (images[owners] * captions).sum(dim=1).cpu().numpy()
        return np.split(cosines, np.cumsum(counts)[:-1])

    def nearest(self, features: Reals) -> list[Neighbour]:
        """The neighbours of one image, features [D], the nearest first."""
        ((images, cosines),) = self.neighbours.find(features[np.newaxis], self.config.neighbours)
        weights = self.trust(cosines) * self.weigh(cosines)
        found = [Neighbour(*values) for values in zip(images.tolist(), cosines.tolist(), weights.tolist(), strict=True)]
        return sorted(found, key=lambda neighbour: (-neighbour.cosine, neighbour.image))

    def to(self, device: torch.device) -> "Ranker":
        """Put the matcher on `device`; the neighbours stay in main memory."""
        if self.matcher is not None:
            self.matcher.to(device)
        return self

    def pack(self) -> RankerParts:
        """All of it, as a model keeps it."""
        reduction, rarities = self.neighbours.reduction, self.corpus.rarities
        captions = self.corpus.captions
        word_type = np.uint16 if not len(captions.words) or captions.words.max() < 2**16 else np.int32
        tensors: dict[str, Any] = {
            "mean": reduction.mean,
            "deviation": reduction.deviation,
            "components": reduction.components.astype(np.float16),
            "rows": self.neighbours.rows,
            "words": captions.words.astype(word_type),
            "lengths": captions.lengths.astype(np.int32),
            "captions_per_image": np.diff(self.corpus.image_starts).astype(np.int32),
            "norms": self.corpus.norms,
            "ngrams": rarities.keys,
            "ngram_weights": rarities.weights,
        }
        settings: dict[str, Any] = asdict(self.config) | {"unseen_weight": rarities.unseen}
        if self.matcher is not None:
            settings["matcher"] = asdict(self.matcher.config)
            weights = self.matcher.state_dict().items()
            tensors |= {f"matcher.{name}": tensor.detach().cpu().half().numpy() for name, tensor in weights}
        return RankerParts(settings, tensors)

    @classmethod
    def unpack(cls, parts: RankerParts, where: str, vocab_size: int) -> "Ranker":
        """The ranker that `pack` took apart; ModelError, which names the model `where`, if the parts do not fit."""
        try:
            return cls._build(dict(parts.settings), parts.tensors, vocab_size)
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as exc:
            raise ModelError(f"{where}: what re-ranks its captions is not sound ({exc}); train it again") from exc

    @classmethod
    def _build(cls, settings: dict[str, Any], tensors: Mapping[str, Any], vocab_size: int) -> "Ranker":
        unseen, matcher_config = float(settings.pop("unseen_weight")), settings.pop("matcher", None)
        reduction = Reduction(tensors["mean"], tensors["deviation"], tensors["components"].astype(np.float32))
        captions = FlatCaptions(tensors["words"], _starts(tensors["lengths"]))
        rarities = Rarities(tensors["ngrams"], tensors["ngram_weights"], unseen)
        corpus = CaptionCorpus(captions, _starts(tensors["captions_per_image"]), rarities, tensors["norms"])
        _require_sound(reduction, tensors, corpus, vocab_size)
        matcher = None
        if matcher_config is not None:
            matcher = Matcher(MatcherConfig(**matcher_config))
            prefix = "matcher."
            weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            matcher.load_state_dict({name: torch.from_numpy(value).float() for name, value in weights.items()})
            if (matcher.config.vocab_size, matcher.config.feature_dim) != (vocab_size, len(reduction.mean)):
                raise ValueError("the matcher is for other words or features")
        return cls(RankerConfig(**settings), Neighbours(reduction, tensors["rows"]), corpus, matcher)


def _starts(lengths: Any) -> Integers:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _require_sound(reduction: Reduction, tensors: Mapping[str, Any], corpus: CaptionCorpus, vocab_size: int) -> None:
    """Raise ValueError if shapes do not fit each other or a number is out of range."""
    rows, captions = tensors["rows"], corpus.captions
    dim, reduced = reduction.components.shape
    is_sound = (
        reduction.mean.shape == reduction.deviation.shape == (dim,)
        and rows.shape == (len(corpus.image_starts) - 1, reduced)
        and rows.dtype == np.int8
        and len(rows) > 0
        and corpus.image_starts[-1] == len(captions) == len(corpus.norms)
        and captions.starts[-1] == len(captions.words)
        and int(min(tensors["lengths"].min(), tensors["captions_per_image"].min())) > 0
        and int(captions.words.max()) < vocab_size
        and len(corpus.rarities.keys) == len(corpus.rarities.weights)
        and corpus.rarities.keys.dtype == np.uint64
        and all(np.isfinite(tensor).all() for tensor in (*tensors.values(),) if tensor.dtype.kind == "f")
    )
    if not is_sound or not math.isfinite(corpus.rarities.unseen):
        raise ValueError("its parts do not fit each other")


def mean_scores(scores: Sequence[list[list[CandidateScore]]]) -> list[list[CandidateScore]]:
    """The mean of what several rankers say of the same candidates of the same images."""
    if len(scores) == 1:
        return scores[0]
    count = len(scores)
    return [
        [
            CandidateScore(*(sum(getattr(one, name) for one in each) / count for name in _SCORES))
            for each in zip(*of_image, strict=True)
        ]
        for of_image in zip(*scores, strict=True)
    ]


_SCORES = ("log_probability", "consensus", "match", "total")
