"""The ranker of a finished training: its neighbours, their captions, and the matcher."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from captionmill.data.captions.examples import Indices
from captionmill.data.models.bundle import RERANKED_CIDER, RERANKED_LOW_CONFIDENCE, read_model, write_model
from captionmill.data.progress import Progress
from captionmill.stages.decoding.captioner import decode_features
from captionmill.stages.decoding.reranking import choose_rerank
from captionmill.stages.ranking.consensus import CaptionCorpus
from captionmill.stages.ranking.matcher import Matcher, MatcherConfig
from captionmill.stages.ranking.neighbours import Neighbours, Reduction
from captionmill.stages.ranking.ngrams import FlatCaptions, Reals
from captionmill.stages.ranking.ranker import Ranker, RankerConfig
from captionmill.stages.training.checkpoint import load_weights
from captionmill.stages.training.reranking.matching import MatcherTraining, choose_matcher_epochs
from captionmill.stages.training.state import Training

FEWEST_IMAGES = 100
"""Training images from which a ranker is made by default: the neighbours among fewer have little in common."""
MOST_IMAGES = 250_000
"""Training images among which neighbours are looked for, evenly spaced; COCO's 113,000 take 70 MB in a model."""
_SAMPLE_ROWS = 20_000  # for the directions of the reduced features
_BLOCK_ROWS = 4096
_FAR = 0.05  # share of the images whose nearest neighbour is farther than usual


def add_ranker(training: Training, work_dir: Path, progress: Progress) -> None:
    """Give the best model in `work_dir` its ranker, and the scores of the validation captions that it re-ranks.

    An interrupted one is resumed from its checkpoint in `work_dir`.
    """
    config = training.config
    is_wanted = config.search.rerank != "auto" or len(training.splits.train) >= FEWEST_IMAGES
    if config.search.rerank == "none" or not is_wanted:
        return
    model = read_model(work_dir)
    load_weights(training.decoder, {name: torch.from_numpy(tensor) for name, tensor in model.tensors.items()})
    parts = fit_ranker(training, work_dir, progress).pack()
    ranker = Ranker.unpack(parts, str(work_dir), len(training.vocabulary)).to(training.device)  # as it is stored
    search = choose_rerank(config.search, [ranker])
    scores = dict(model.scores)
    if search.rerank != "none":
        decoded = decode_features(
            training.decoder, training.store, training.splits.val, training.vocabulary, search, rankers=[ranker]
        )
        captions = dict(decoded)
        texts = {key: training.tokenize(caption.text) for key, caption in captions.items()}
        confidences = sorted(caption.confidence for caption in captions.values())
        scores |= {
            RERANKED_CIDER: float(training.val_scorer.scores(texts).mean()),
            RERANKED_LOW_CONFIDENCE: confidences[len(confidences) // 10],
        }
    write_model(work_dir, replace(model, ranker=parts, scores=scores))


def fit_ranker(training: Training, work_dir: Path, progress: Progress) -> Ranker:
    """The ranker for the decoder of `training`."""
    words, lengths = training.dataset.sentences()
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    captions, images = FlatCaptions(words, starts), training.dataset.images
    matcher = _train_matcher(training, captions, images, work_dir, progress)
    neighbours, corpus = _fit_neighbours(training, captions, images)
    usual = _usual_cosine(training, neighbours)
    return Ranker(replace(RankerConfig(), usual_cosine=usual), neighbours, corpus, matcher)


def _train_matcher(
    training: Training, captions: FlatCaptions, images: Indices, work_dir: Path, progress: Progress
) -> Matcher | None:
    epochs = choose_matcher_epochs(training.config.matcher_epochs, len(captions))
    if not epochs:
        return None
    config = MatcherConfig(training.store.spec.feature_dim, len(training.vocabulary))
    matching = MatcherTraining(
        config,
        captions,
        images,
        training.feeder.rows,
        scale=(training.decoder.feature_mean.cpu(), training.decoder.feature_std.cpu()),
        seed=training.config.seed,
        device=training.device,
    )

    def show(step: int, steps: int, left_s: float) -> None:
        progress("matcher", step, steps, left_s=left_s)

    return matching.run(epochs, work_dir, show)


def _fit_neighbours(training: Training, captions: FlatCaptions, images: Indices) -> tuple[Neighbours, CaptionCorpus]:
    used = np.unique(images)
    if len(used) > MOST_IMAGES:
        used = used[np.linspace(0, len(used) - 1, MOST_IMAGES).astype(np.int64)]
    is_used = np.isin(images, used)
    kept = captions.take(np.flatnonzero(is_used))
    counts = np.bincount(np.searchsorted(used, images[is_used]), minlength=len(used))
    sample = used[np.linspace(0, len(used) - 1, min(len(used), _SAMPLE_ROWS)).astype(np.int64)]
    mean, deviation = (
        part.float().cpu().numpy() for part in (training.decoder.feature_mean, training.decoder.feature_std)
    )
    reduction = Reduction.fit(_rows_of(training, sample), mean, deviation)
    reduced = [
        reduction.reduce(_rows_of(training, used[start : start + _BLOCK_ROWS]))
        for start in range(0, len(used), _BLOCK_ROWS)
    ]
    return Neighbours(reduction, np.concatenate(reduced)), CaptionCorpus.of(kept, counts)


def _rows_of(training: Training, images: Indices) -> Reals:
    rows: Reals = training.feeder.rows(images).float().cpu().numpy()
    return rows


def _usual_cosine(training: Training, neighbours: Neighbours) -> float:
    """The cosine to the nearest training image that 95 % of the validation images reach."""
    count = len(training.splits.val)
    with torch.inference_mode():
        rows = [
            training.val_feeder.rows(np.arange(start, min(start + _BLOCK_ROWS, count))).float().cpu().numpy()
            for start in range(0, count, _BLOCK_ROWS)
        ]
    cosines = [found[1].max() for block in rows for found in neighbours.find(block, 1)]
    return max(0.0, float(np.quantile(cosines, _FAR)))
