"""Where a training run stands: the epochs so far and the one under way, how many are made, the rate of a step."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from captionmill.stages.settings import TrainConfig

Phase = Literal["cross entropy", "self-critical"]

_MANY_CAPTIONS = 30_000  # for which the least epochs are enough; a quarter of them needs twice as many
_LEAST_PATIENCE = 3  # epochs
_LEAST_EPOCHS, _MOST_EPOCHS = 6, 100
_WARMUP = 0.1  # share of a phase's steps in which the learning rate rises


@dataclass(frozen=True)
class EpochResult:
    """One pass over the training captions, or, self-critically, over the training images."""

    epoch: int
    """Counted from 1, through both phases."""
    phase: Phase
    loss: float
    """Mean cross entropy a word, in nats, with dropout; self-critical: the mean reward of the samples, CIDEr-D."""
    val_cider: float
    """CIDEr-D of the validation captions, decoded as captions are."""
    captions_per_s: float
    """Training speed, over all processes."""
    duration_s: float
    """Training and validation."""
    learning_rate: float
    """At the epoch's end."""
    best: bool
    """The best validation CIDEr-D so far: this epoch's weights are kept."""


@dataclass
class TrainingState:
    """Where a run stands; together with the tensors all that a run needs to go on exactly."""

    epoch: int = 1
    phase: Phase = "cross entropy"
    step: int = 0
    """Steps of this epoch that are done."""
    phase_start: int = 0
    """Epochs that were done when this phase began."""
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Of this epoch: losses (or rewards), and words (or samples)."""
    learning_rate: float = 0.0
    """Of the last step."""
    seconds: float = 0.0
    """Spent on this epoch before the run was cut short."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Finished epochs, the fields of `EpochResult`."""

    @property
    def best_cider(self) -> float:
        """Of all epochs so far."""
        return max((row["val_cider"] for row in self.history), default=-math.inf)


def choose_epochs(config: TrainConfig, captions: int) -> tuple[int, int]:
    """`max_epochs` and `patience`; where `config` leaves them open, what is usual for so many captions.

    Few captions need more passes, or they would make few steps. Source: measured on parts of Flickr8k
    (docs/benchmarks.md).
    """
    fitting = round(_LEAST_EPOCHS * math.sqrt(_MANY_CAPTIONS / max(captions, 1)))
    epochs = config.max_epochs or min(max(fitting, _LEAST_EPOCHS), _MOST_EPOCHS)
    return epochs, config.patience or max(_LEAST_PATIENCE, epochs // 2)


def scheduled_share(step: int, steps: int) -> float:
    """The share of the largest learning rate in `step` (from 0) of `steps`: a linear rise, then half a cosine to 0.

    Source: Loshchilov and Hutter 2017, "SGDR", without restarts.
    """
    rise = _WARMUP * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
