"""Records a training: its checkpoint and best model in the work folder, its files for people, and its listener."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from captionmill.data.captions.splits import Splits
from captionmill.data.models.bundle import read_bundle, write_model
from captionmill.data.progress import Progress
from captionmill.stages.decoding.captioner import Caption
from captionmill.stages.training.checkpoint import Checkpoint, write_checkpoint
from captionmill.stages.training.run_folder import RunFolder
from captionmill.stages.training.state import EpochResult, LoopConfig, Training


@dataclass(frozen=True)
class TrainListener:
    """The functions that are called during a training, and how often it is checked and saved."""

    on_splits: Callable[[Splits], None] = lambda splits: None
    """Called before training starts with the images that are used, and those left out with the reason."""
    on_first_score: Callable[[float], None] | None = None
    """Called with the validation CIDEr-D of up to 500 images after a third of the first epoch, unless it is short."""
    on_epoch: Callable[[EpochResult], None] = lambda result: None
    """Called after each epoch."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How often the training is checked and saved, and how large self-critical steps are."""


class FolderRecorder:
    """Saves a training in its work folder and reports it to the listener, as `loop.Recorder` asks."""

    def __init__(
        self, folder: RunFolder, work_dir: Path, made_from: dict[str, str], listener: TrainListener, progress: Progress
    ) -> None:
        self._folder, self._work_dir, self._made_from = folder, work_dir, made_from
        self._listener, self._progress = listener, progress
        self.wants_first_score = listener.on_first_score is not None
        self._saved_at = time.monotonic()

    def show_step(self, training: Training, steps: int) -> None:
        """Show the loss; save a checkpoint if it is time."""
        state = training.state
        self._progress(
            f"epoch {state.epoch} of {training.max_epochs}",
            state.step,
            steps,
            note=training.describe_progress(steps),
            left_s=training.seconds_left(steps),
        )
        if time.monotonic() - self._saved_at >= training.loop.checkpoint_every_s:
            self.save(training)

    def show_first_score(self, val_cider: float) -> None:
        """Show it to the listener."""
        if self._listener.on_first_score:
            self._listener.on_first_score(val_cider)

    def end_epoch(self, training: Training, result: EpochResult, captions: Mapping[str, Caption]) -> None:
        """Keep the weights if they are best, write the history and a checkpoint, and call the listener."""
        if result.best:
            write_model(self._work_dir, training.bundle(result, captions))
        self._folder.write_history(training.state.history)
        self._folder.add_epoch_events(training.state.history[-1])
        shown = list(captions)[: training.loop.samples_shown]
        self._folder.write_samples(result.epoch, [(key, captions[key].text, training.captions[key]) for key in shown])
        self.save(training)
        self._listener.on_epoch(result)

    def begin_self_critical(self, training: Training) -> None:
        """Start the second phase from the best weights, and save a checkpoint."""
        best = read_bundle(self._work_dir)
        training.begin_self_critical({name: torch.from_numpy(tensor) for name, tensor in best.tensors.items()})
        self.save(training)  # its first epoch may replace the best weights before the next checkpoint

    def save(self, training: Training) -> None:
        """Save a checkpoint, in the first process."""
        if training.world.is_first:
            checkpoint = training.checkpoint()
            state = {"made_from": self._made_from, "training": checkpoint.state}
            write_checkpoint(self._work_dir, Checkpoint(state, checkpoint.tensors))
        self._saved_at = time.monotonic()
