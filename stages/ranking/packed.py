"""A ranker as a model keeps it: a few settings and tensors. They are checked when they are read."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from captionmill.data.errors import ModelError
from captionmill.data.models.bundle import RankerParts
from captionmill.stages.ranking.consensus import CaptionIndex
from captionmill.stages.ranking.matcher import Matcher, MatcherConfig
from captionmill.stages.ranking.ngrams import FlatCaptions, NGramIdf, starts_of
from captionmill.stages.ranking.ranker import Ranker, RankerConfig
from captionmill.stages.ranking.regression import ImageRegression, Reduction

_OF_EARLIER_VERSIONS = {"repetition_weight": 0.0, "length_weight": 0.0}  # their settings do not have them
_MATCHER = "matcher."  # prefix of the names of its tensors


def pack_ranker(ranker: Ranker) -> RankerParts:
    """All of `ranker`, as a model keeps it."""
    regression, index, captions = ranker.regression, ranker.index, ranker.captions
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
        "captions_per_image": ranker.counts.astype(np.int32),
        "ngrams": index.idf.keys,
        "ngram_weights": index.idf.weights,
        "entry_counts": np.diff(index.starts).astype(np.int32),
        "entry_images": index.images,
        "entry_lengths": index.lengths,
        "entry_shares": index.shares,
    }
    settings: dict[str, Any] = asdict(ranker.config) | {"unseen_weight": index.idf.unseen}
    if ranker.matcher is not None:
        settings["matcher"] = asdict(ranker.matcher.config)
        weights = ranker.matcher.weights.items()
        tensors |= {f"{_MATCHER}{name}": tensor.astype(np.float16) for name, tensor in weights}
    return RankerParts(settings, tensors)


def unpack_ranker(parts: RankerParts, where: str, vocab_size: int) -> Ranker:
    """The ranker that `pack_ranker` took apart; ModelError, which names the model `where`, if the parts do not fit."""
    try:
        return _build(dict(parts.settings), parts.tensors, vocab_size)
    except ModelError:  # of a file that is read only now
        raise
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as exc:
        raise ModelError(f"{where}: what re-ranks its captions is not sound ({exc}); train it again") from exc


def _build(settings: dict[str, Any], tensors: Mapping[str, Any], vocab_size: int) -> Ranker:
    unseen = float(settings.pop("unseen_weight"))
    _require_sound(tensors, unseen, vocab_size)
    reduction = Reduction(tensors["mean"], tensors["deviation"], tensors["components"].astype(np.float32))
    index = CaptionIndex(
        NGramIdf(tensors["ngrams"], tensors["ngram_weights"], unseen),
        starts_of(tensors["entry_counts"]),
        *(tensors[f"entry_{name}"] for name in ("images", "lengths", "shares")),
    )
    matcher = None
    if "matcher" in settings:
        own = [name for name in tensors if name.startswith(_MATCHER)]
        weights = {name.removeprefix(_MATCHER): tensors[name].astype(np.float32) for name in own}
        matcher = Matcher(MatcherConfig(**settings.pop("matcher")), weights)
        if (matcher.config.vocab_size, matcher.config.feature_dim) != (vocab_size, len(reduction.mean)):
            raise ValueError("the matcher is for other words or features")
    captions = FlatCaptions(tensors["words"], starts_of(tensors["lengths"]))
    regression = ImageRegression(reduction, tensors["rows"], tensors["vectors"], tensors["gains"])
    counts = tensors["captions_per_image"]
    config = RankerConfig(**_OF_EARLIER_VERSIONS | settings)
    return Ranker(config, regression, captions, counts, index, vocab_size, matcher)


def _require_sound(tensors: Mapping[str, Any], unseen: float, vocab_size: int) -> None:
    """Raise ValueError if the shapes of a packed ranker do not fit each other or a number is out of range."""
    images = len(tensors["rows"])
    dim, reduced = tensors["components"].shape
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
