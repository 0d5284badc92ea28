"""The ranker of a finished training: its images, their captions, and the matcher."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from captionmill.data.captions.examples import Indices
from captionmill.data.models.bundle import (
    LOW_CONFIDENCE,
    RERANKED_CIDER,
    RERANKED_LOW_CONFIDENCE,
    RankerParts,
    read_bundle,
    write_model,
)
from captionmill.data.progress import Progress
from captionmill.stages.decoding.captioner import Caption, CaptionFinder, decode_rows
from captionmill.stages.decoding.decoder import choose_steps
from captionmill.stages.decoding.trained import choose_rerank
from captionmill.stages.ranking.consensus import CaptionIndex
from captionmill.stages.ranking.matcher import Matcher, MatcherConfig
from captionmill.stages.ranking.ngrams import FlatCaptions, starts_of
from captionmill.stages.ranking.packed import pack_ranker, unpack_ranker
from captionmill.stages.ranking.ranker import Ranker, RankerConfig
from captionmill.stages.ranking.regression import ImageRegression, Reduction
from captionmill.stages.settings import SearchConfig
from captionmill.stages.training.checkpoint import load_weights
from captionmill.stages.training.corpus import fit_epochs
from captionmill.stages.training.reranking.grow import can_grow, grow_ranker, thin_out
from captionmill.stages.training.reranking.matching import MatcherTraining
from captionmill.stages.training.state import Training, low_confidence

FEWEST_IMAGES = 100
"""Training images from which a ranker is made by default: the neighbours among fewer have little in common."""
NO_RANKER = (
    f"under {FEWEST_IMAGES} training images: the model gets nothing to re-rank captions by, and no matcher to search "
    "or audit a store with; pass `rerank` both to make them"
)
MOST_IMAGES = 16_384
"""Training images that take part in a consensus, evenly spaced; so many take 1 GB of memory in training."""
_LEAST_EPOCHS, _MOST_EPOCHS = 10, 40  # of the matcher
_BLOCK_ROWS = 4096
_FAR = 0.05  # share of the images whose nearest neighbour is farther than usual


def rerank_validation(training: Training, work_dir: Path, progress: Progress) -> None:
    """Let `training` re-rank the captions of each validation by the ranker of its model, which is made before.

    The first process makes it, and the others get it.
    """
    made = make_ranker(training, work_dir, progress) if training.world.is_first else None
    training.rankers = tuple(training.world.gather([made] if made is not None else []))


def add_ranker(training: Training, work_dir: Path, progress: Progress) -> None:
    """Give the best model in `work_dir` its ranker, and the scores of validation captions with it and without it."""
    ranker = training.rankers[0] if training.rankers else make_ranker(training, work_dir, progress)
    if ranker is None:
        return
    model = read_bundle(work_dir)
    load_weights(training.decoder, {name: torch.from_numpy(tensor) for name, tensor in model.tensors.items()})
    parts = pack_ranker(ranker)
    search = training.config.search
    if not training.rankers:
        if search.rerank == "auto" and search.beam_size == 1:  # what is not re-ranked; the model's captions will be
            search = replace(search, beam_size=SearchConfig().beam_size)
        search = choose_rerank(search, {"": parts})
    scores, notes = dict(model.scores), model.notes
    if training.rankers:  # validation has measured the captions with it
        captions = _decode_alone(training, replace(search, rerank="none"), ranker)
        scores[LOW_CONFIDENCE] = low_confidence(captions)
    elif search.rerank != "none":
        captions = _decode_alone(training, search, ranker)
        scores |= {
            RERANKED_CIDER: training.measure_cider(captions),
            RERANKED_LOW_CONFIDENCE: low_confidence(captions),
        }
        notes = training.notes_on(captions)  # they are what the model writes by default
    write_model(work_dir, replace(model, ranker=parts, scores=scores, notes=notes))


def make_ranker(training: Training, work_dir: Path, progress: Progress) -> Ranker | None:
    """The ranker of the model that `training` makes, rounded as the model keeps it; None if it gets none.

    An interrupted one is resumed from its checkpoint in `work_dir`. If the model that the training starts from has a
    ranker that knows more images, that one grows by the new ones, unless `matcher_epochs` asks for another.
    """
    if training.config.search.rerank == "none" or lacks_images(training):
        return None
    if (start := _ranker_to_grow(training)) is not None:
        made = grow_ranker(start, training, most_images=MOST_IMAGES)
    else:
        made = fit_ranker(training, work_dir, progress)
    return unpack_ranker(pack_ranker(made), str(work_dir), len(training.vocabulary))


def lacks_images(training: Training) -> bool:
    """Whether `training` has too few images for a ranker, which it does not ask for by its settings."""
    config = training.config
    is_chosen = config.search.rerank != "auto" or bool(config.matcher_epochs)
    return not is_chosen and len(training.splits.train) < FEWEST_IMAGES and _ranker_to_grow(training) is None


def _ranker_to_grow(training: Training) -> RankerParts | None:
    start = training.start_ranker
    return start if training.config.matcher_epochs is None and can_grow(start, training) else None


def _decode_alone(training: Training, search: SearchConfig, ranker: Ranker) -> dict[str, Caption]:
    """The captions of the validation images, all decoded by this process."""
    finder = CaptionFinder(choose_steps(training.decoder), training.vocabulary, search, (ranker,))
    return dict(decode_rows(finder, training.store, training.splits.val))


def fit_ranker(training: Training, work_dir: Path, progress: Progress) -> Ranker:
    """The ranker for the decoder of `training`."""
    words, lengths = training.references.sentences()
    captions, images = FlatCaptions(words, starts_of(lengths)), training.references.images
    matcher = _train_matcher(training, captions, images, work_dir, progress)
    progress("re-ranking", 0, 1)
    used = np.unique(images)
    used = used[thin_out(len(used), MOST_IMAGES)]
    is_used = np.isin(images, used)
    regression = _fit_regression(training, used)
    config = replace(RankerConfig(), usual_cosine=_usual_cosine(training, regression))
    counts = np.bincount(np.searchsorted(used, images[is_used]), minlength=len(used))
    kept = captions.take(np.flatnonzero(is_used))
    index = CaptionIndex.of(kept, np.repeat(np.arange(len(used)), counts))
    progress("re-ranking", 1, 1)
    return Ranker(config, regression, kept, counts, index, len(training.vocabulary), matcher)


def _train_matcher(
    training: Training, captions: FlatCaptions, images: Indices, work_dir: Path, progress: Progress
) -> Matcher | None:
    epochs = training.config.matcher_epochs
    if epochs is None:
        epochs = fit_epochs(len(captions), _LEAST_EPOCHS, _MOST_EPOCHS)
    if not epochs:
        return None
    config = MatcherConfig(training.store.spec.feature_dim, len(training.vocabulary))
    matching = MatcherTraining(
        config,
        captions,
        images,
        lambda images, generator: _draw_rows(training, images, generator),
        scale=(training.decoder.feature_mean, training.decoder.feature_std),
        seed=training.config.seed,
        device=training.device,
    )
    return matching.run(epochs, work_dir, progress)


def _draw_rows(training: Training, images: Indices, generator: torch.Generator) -> torch.Tensor:
    """The features of images, each of a view that `generator` draws, if there are several."""
    view_count = training.store.spec.view_count
    views = torch.randint(view_count, (len(images),), generator=generator) if view_count > 1 else None
    return training.feeder.rows(images, views)


def _fit_regression(training: Training, used: Indices) -> ImageRegression:
    """From the training images with the numbers `used`."""
    decoder = training.decoder
    mean, deviation = (part.cpu().numpy() for part in (decoder.feature_mean, decoder.feature_std))
    rows = training.feeder.array(used)
    reduction = Reduction.fit(rows, mean, deviation)
    reduced = [reduction.reduce(rows[start : start + _BLOCK_ROWS]) for start in range(0, len(rows), _BLOCK_ROWS)]
    return ImageRegression.fit(reduction, np.concatenate(reduced))


def _usual_cosine(training: Training, regression: ImageRegression) -> float:
    """The cosine to the nearest training image that 95 % of the validation images reach."""
    count = len(training.splits.val)
    nearest = []
    for start in range(0, count, _BLOCK_ROWS):
        rows = training.val_feeder.array(np.arange(start, min(start + _BLOCK_ROWS, count)))
        nearest.append(regression.weights(rows)[1].max(axis=1))
    return max(0.0, float(np.quantile(np.concatenate(nearest), _FAR)))
