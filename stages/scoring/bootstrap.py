"""How reliable a score is: bootstrap intervals over the images, also for the difference of two models.

The scored images are a sample of all that could have been scored. A resample draws the same number of images from them,
with replacement, and scores these; the middle 95 % of the scores of many resamples is the interval (the percentile
interval of Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). It shows how the score depends on
the images, not on the random seed of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captionmill.data.errors import InputError
from captionmill.stages.scoring.metrics import Floats, Metric
from captionmill.stages.scoring.settings import BootstrapConfig

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of two scores, and its 95 % interval, in the unit of the metric."""

    value: float
    """The score of the images themselves, not the mean over resamples."""
    low: float
    high: float


def estimate(metrics: Sequence[Metric], config: BootstrapConfig = BootstrapConfig()) -> dict[str, Estimate]:
    """The value of each metric with its interval, by name; all metrics use the same resamples.

    A metric is recomputed from the sums over each resample, so BLEU pools counts there as it does over the corpus.
    Raises InputError if the metrics have different numbers of images.
    """
    resampled = _resample(metrics, config)
    return {metric.name: _interval(metric.value, resampled[metric.name]) for metric in metrics}


def compare(
    metrics: Sequence[Metric], others: Sequence[Metric], config: BootstrapConfig = BootstrapConfig()
) -> dict[str, Estimate]:
    """For each metric that both have, `metrics` minus `others` on the same images, with its interval, by name.

    The bootstrap is paired (Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004):
    a resample draws the same images for both, so that the difficulty of an image cancels out. If the interval excludes
    0, the choice of images does not explain the difference. Rows must be in the same order of images; raises InputError
    if their numbers differ.
    """
    shared = {metric.name for metric in metrics} & {metric.name for metric in others}
    mine = [metric for metric in metrics if metric.name in shared]
    theirs = {metric.name: metric for metric in others if metric.name in shared}
    _require_same_images([*mine, *theirs.values()])
    resampled, resampled_theirs = _resample(mine, config), _resample(list(theirs.values()), config)
    return {
        metric.name: _interval(
            metric.value - theirs[metric.name].value, resampled[metric.name] - resampled_theirs[metric.name]
        )
        for metric in mine
    }


def _resample(metrics: Sequence[Metric], config: BootstrapConfig) -> dict[str, Floats]:
    """Each metric's score in each resample, by name: R numbers. The same draws for the same seed and image count."""
    count = _require_same_images(metrics)
    rows = np.hstack([metric.rows for metric in metrics])  # [N, C], the columns of all metrics
    generator = np.random.default_rng(config.seed)
    sums = np.empty((config.resamples, rows.shape[1]))  # [R, C]
    for resample in range(config.resamples):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count)  # [N], how often each image
        sums[resample] = drawn @ rows
    ends = np.cumsum([metric.rows.shape[1] for metric in metrics])
    parts = np.split(sums, ends[:-1], axis=1)
    return {metric.name: metric.combine(part, count) for metric, part in zip(metrics, parts, strict=True)}


def _require_same_images(metrics: Sequence[Metric]) -> int:
    counts = {len(metric.rows) for metric in metrics}
    if len(counts) != 1 or 0 in counts:
        raise InputError(f"metrics of {sorted(counts)} images; a bootstrap needs at least one image, the same for all")
    return counts.pop()


def _interval(value: float, resampled: Floats) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
