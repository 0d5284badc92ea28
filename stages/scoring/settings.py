"""The settings of scoring, written once as in `stages/settings.py`: intervals, evaluation, leaks."""

from dataclasses import dataclass, field

from captionmill.stages.fields import Configuration, setting
from captionmill.stages.settings import GREATEST_SEED, SearchConfig, device_setting


@dataclass(frozen=True)
class BootstrapConfig(Configuration):
    """How the intervals of scores are computed."""

    resamples: int = setting(
        1000,
        "Bootstrap resamples for the 95 % intervals; more make the intervals steadier, not narrower.",
        least=1,
        most=1_000_000,
    )
    seed: int = setting(0, "Random seed of the resampling.", least=0, most=GREATEST_SEED)


@dataclass(frozen=True)
class EvaluateConfig(Configuration):
    """How a model is scored: how its captions are decoded, and which metrics are computed."""

    java_metrics: bool = setting(False, "Compute METEOR and SPICE too; needs Java and captionmill[java].")
    device: str = device_setting()
    search: SearchConfig = field(default=SearchConfig())
    """How the captions are decoded."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """How the intervals of the scores are computed."""


@dataclass(frozen=True)
class LeakConfig(Configuration):
    """Which images of two splits count as nearly the same."""

    threshold: float = setting(  # about half of the 30 such pairs of Flickr8k show one scene
        0.86, "Minimum cosine of the features of a pair.", least=0, most=1
    )
    within: bool = setting(
        False, "Compare the images of each split with each other too; without splits, all images of the store."
    )
