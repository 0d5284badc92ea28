"""Choosing among the candidates of a search by what the training images say, and by what words fit the image.

A candidate's score is its consensus with the captions of the training images, plus its match with the image, plus a
little of the decoder's own log probability. The weights were chosen on Flickr8k's dev images (docs/benchmarks.md).
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
from captionmill.stages.ranking.consensus import CaptionIndex
from captionmill.stages.ranking.matcher import Matcher, MatcherConfig
from captionmill.stages.ranking.ngrams import FlatCaptions, Integers, Rarities, Reals
from captionmill.stages.ranking.regression import ImageRegression, Reduction

Words = Sequence[int]


@dataclass(frozen=True)
class RankerConfig:
    """How the parts of a score are made and weighed; stored in the model."""

    likelihood_weight: float = 0.3
    """Of the mean natural logarithm of a candidate's word probabilities."""
    match_weight: float = 0.25
    """Of the cosine of image and caption, beside the consensus."""
    match_weight_alone: float = 1.2
    """The same, without the consensus."""
    usual_cosine: float = 0.0
    """Cosine to the nearest training image that 95 % of them reach; below it, consensus counts for less."""


@dataclass(frozen=True)
class Neighbour:
    """A training image that takes part in a consensus."""

    image: int
    """Its number among the training images of the ranker."""
    cosine: float
    weight: float
    """What its captions count; the weights of all training images add up to about 1, and some are negative."""
    captions: tuple[tuple[int, ...], ...]
    """Its captions, as word indices."""


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
        self,
        config: RankerConfig,
        regression: ImageRegression,
        captions: FlatCaptions,
        counts: Integers,
        matcher: Matcher | None,
    ) -> None:
        """`captions` are those of the images of `regression`, in its order; `counts` is their number per image, [N]."""
        index = CaptionIndex.of(captions, np.repeat(np.arange(len(counts)), counts))
        self._set(config, regression, index, (captions, counts), matcher)

    def _set(
        self,
        config: RankerConfig,
        regression: ImageRegression,
        index: CaptionIndex,
        captions: tuple[FlatCaptions, Integers],
        matcher: Matcher | None,
    ) -> None:
        self.config, self.regression, self.index = config, regression, index
        self.captions, self.counts = captions
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
        match_weight = config.match_weight_alone if by == "matcher" else config.match_weight
        return [
            [
                CandidateScore(
                    own_likelihood,
                    own_consensus,
                    own_match,
                    own_consensus + config.likelihood_weight * own_likelihood + match_weight * own_match,
                )
                for own_likelihood, own_consensus, own_match in zip(
                    likelihood, image_consensus.tolist(), image_match.tolist(), strict=True
                )
            ]
            for likelihood, image_consensus, image_match in zip(likelihoods, consensus, match, strict=True)
        ]

    def consensus(self, features: Reals, candidates: Sequence[Sequence[Words]]) -> list[Reals]:
        """The consensus of the candidates of each image, features [B, D], with the captions of the training images."""
        weights, cosines = self.regression.weights(features)
        trusted = weights * self.trust(cosines)
        return [self.index.score(FlatCaptions.of(own), row) for own, row in zip(candidates, trusted, strict=True)]

    def trust(self, cosines: Reals) -> Reals:
        """How much the consensus counts, 0 to 1, [B, 1]: less for an image that is far from all training images.

        From the cosines to these, [B, N].
        """
        if self.config.usual_cosine <= 0:
            return np.ones((len(cosines), 1), np.float32)
        return np.clip(cosines.max(axis=1, keepdims=True) / self.config.usual_cosine, 0.0, 1.0)

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

    def strongest(self, features: Reals, count: int) -> list[Neighbour]:
        """The training images with the largest weights for one image, features [D], positive or negative."""
        weights, cosines = self.regression.weights(features[np.newaxis])
        row = (weights * self.trust(cosines))[0]
        images = np.argsort(-np.abs(row), kind="stable")[:count]
        starts = _starts(self.counts)
        return [
            Neighbour(image, float(cosines[0, image]), float(row[image]), self._captions_of(starts, image))
            for image in images.tolist()
        ]

    def _captions_of(self, starts: Integers, image: int) -> tuple[tuple[int, ...], ...]:
        flat = self.captions.take(np.arange(starts[image], starts[image + 1]))
        return tuple(tuple(words.tolist()) for words in np.split(flat.words, flat.starts[1:-1]))

    def to(self, device: torch.device) -> "Ranker":
        """Put the matcher on `device`; the neighbours stay in main memory."""
        if self.matcher is not None:
            self.matcher.to(device)
        return self

    def pack(self) -> RankerParts:
        """All of it, as a model keeps it."""
        regression, index, captions = self.regression, self.index, self.captions
        word_type = np.uint16 if captions.words.max() < 2**16 else np.int32
        tensors: dict[str, Any] = {
            "mean": regression.reduction.mean,
            "deviation": regression.reduction.deviation,
            "components": regression.reduction.components.astype(np.float16),
            "rows": regression.rows,
            "vectors": regression.vectors.astype(np.float16),
            "gains": regression.gains,
            "words": captions.words.astype(word_type),
            "lengths": captions.lengths.astype(np.int32),
            "captions_per_image": self.counts.astype(np.int32),
            "ngrams": index.rarities.keys,
            "ngram_weights": index.rarities.weights,
            "entry_counts": np.diff(index.starts).astype(np.int32),
            "entry_images": index.images,
            "entry_lengths": index.lengths,
            "entry_shares": index.shares,
        }
        settings: dict[str, Any] = asdict(self.config) | {"unseen_weight": index.rarities.unseen}
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
        require_sound(tensors, unseen, vocab_size)
        reduction = Reduction(tensors["mean"], tensors["deviation"], tensors["components"].astype(np.float32))
        index = CaptionIndex(
            Rarities(tensors["ngrams"], tensors["ngram_weights"], unseen),
            _starts(tensors["entry_counts"]),
            *(tensors[f"entry_{name}"] for name in ("images", "lengths", "shares")),
        )
        matcher = None
        if matcher_config is not None:
            matcher = Matcher(MatcherConfig(**matcher_config))
            prefix = "matcher."
            weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            matcher.load_state_dict({name: torch.from_numpy(value).float() for name, value in weights.items()})
            if (matcher.config.vocab_size, matcher.config.feature_dim) != (vocab_size, len(reduction.mean)):
                raise ValueError("the matcher is for other words or features")
        ranker = cls.__new__(cls)
        ranker._set(
            RankerConfig(**settings),
            ImageRegression(reduction, tensors["rows"], tensors["vectors"], tensors["gains"]),
            index,
            (FlatCaptions(tensors["words"], _starts(tensors["lengths"])), tensors["captions_per_image"]),
            matcher,
        )
        return ranker


def _starts(lengths: Any) -> Integers:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def require_sound(tensors: Mapping[str, Any], unseen: float, vocab_size: int) -> None:
    """Raise ValueError if the shapes of a packed ranker do not fit each other or a number is out of range."""
    images, dim, reduced = len(tensors["rows"]), *tensors["components"].shape
    ngrams, entries = len(tensors["ngrams"]), len(tensors["entry_images"])
    shapes = {
        "mean": (dim,),
        "deviation": (dim,),
        "rows": (images, reduced),
        "vectors": (images, len(tensors["gains"]) - 1),
        "captions_per_image": (images,),
        "lengths": (int(tensors["captions_per_image"].sum()),),
        "words": (int(tensors["lengths"].sum()),),
        "ngram_weights": (ngrams,),
        "entry_counts": (ngrams,),
        "entry_lengths": (entries,),
        "entry_shares": (entries,),
    }
    whole = {"rows": "i", "ngrams": "u", "words": "iu", "lengths": "i", "entry_images": "i", "entry_lengths": "u"}
    limits = {"words": vocab_size, "entry_images": images}
    is_sound = (
        images > 0
        and all(tensors[name].shape == shape for name, shape in shapes.items())
        and all(tensors[name].dtype.kind in kinds for name, kinds in whole.items())
        and int(tensors["entry_counts"].sum()) == entries
        and int(tensors["lengths"].min()) > 0
        and int(min(tensors["captions_per_image"].min(), tensors["entry_counts"].min(initial=1))) > 0
        and all(
            int(tensors[name].min(initial=0)) >= 0 and int(tensors[name].max(initial=0)) < limit
            for name, limit in limits.items()
        )
        and all(np.isfinite(tensor).all() for tensor in tensors.values() if tensor.dtype.kind == "f")
    )
    if not is_sound or not math.isfinite(unseen):
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
