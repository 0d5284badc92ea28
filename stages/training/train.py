"""Stage two, training: cached features and reference captions in, a model bundle out.

The bundle appears at `output` when training has ended; until then the best epoch so far is kept beside it, in
`OUTPUT.training`, together with a checkpoint from which an interrupted run goes on.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from captionmill.data.captions.references import Annotations, read_annotations, read_split_list
from captionmill.data.captions.splits import Splits, choose_splits
from captionmill.data.captions.vocabulary import SPECIAL_WORDS, Vocabulary
from captionmill.data.csv_tables import write_table
from captionmill.data.errors import InputError, TrainingError, UnfinishedRunError
from captionmill.data.features.store import FeatureStore
from captionmill.data.files import hold_lock, replace_atomically
from captionmill.data.model import BUNDLE_NAME, bundle_exists, read_bundle, write_bundle
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.machine import is_out_of_memory
from captionmill.stages.parallel import World, join_world
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint, write_checkpoint
from captionmill.stages.training.run_folder import RUN_NAMES, RunFolder, copy_run
from captionmill.stages.training.state import EpochResult
from captionmill.stages.training.trainer import Trainer

_logger = logging.getLogger(__name__)

UNMATCHED_NAME = "unmatched.csv"
_LOCK_NAME = ".lock"
_SECONDS_A_CHECKPOINT = 60.0
_SAMPLE_COUNT = 8  # validation images whose captions are written down after each epoch


@dataclass(frozen=True)
class TrainSummary:
    """What a training run ended with."""

    splits: Splits
    vocab_size: int
    history: tuple[EpochResult, ...]
    duration_s: float

    @property
    def best(self) -> EpochResult:
        """The epoch whose weights are in the bundle."""
        return max(self.history, key=lambda result: (result.val_cider, -result.epoch))


def train(
    features: Path,
    captions: Path,
    output: Path,
    config: TrainConfig = TrainConfig(),
    *,
    train_list: Path | None = None,
    val_list: Path | None = None,
    restval: str = "train",
    overwrite: bool = False,
    restart: bool = False,
    checkpoint_every_s: float = _SECONDS_A_CHECKPOINT,
    on_splits: Callable[[Splits], None] = lambda splits: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    progress: Progress = no_progress,
) -> TrainSummary:
    """Train a decoder on the rows of the store `features` and the reference `captions`; write its bundle to `output`.

    A run that was cut short goes on where its last checkpoint stands, at most `checkpoint_every_s` seconds of training
    back; `restart` begins it anew. `on_splits` hears which images are used, and which are left out and why, before
    training starts; the same list is left as `unmatched.csv` in the bundle's folder. `on_epoch` hears each epoch.
    Started by `torchrun`, several processes share the work, and the first of them writes and speaks.

    Raises InputError if `output` holds a model and `overwrite` is not given, AnnotationError if no usable image is
    left, TrainingError if no word is frequent enough, the loss is not finite, or an unfinished run is there that cannot
    be gone on with (UnfinishedRunError: one of other settings or data) and `restart` is not given.
    """
    if bundle_exists(output) and not overwrite:
        raise InputError(f"{output}: holds a model already; pass --overwrite to replace it, or another --output")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; --output is to be a folder")
    started = time.monotonic()
    store = FeatureStore.open(features)
    annotations = read_annotations(captions, restval=restval, known_keys=store.keys)
    splits = choose_splits(
        annotations,
        store.keys,
        train_list=read_split_list(train_list, known_keys=store.keys) if train_list else None,
        val_list=read_split_list(val_list, known_keys=store.keys) if val_list else None,
        seed=config.seed,
    )
    vocabulary = build_vocabulary(annotations.captions, splits.train, min_count=config.min_count)
    work_dir = output.resolve().with_name(f"{output.resolve().name}.training")
    with _memory_named(), join_world(config.device) as (world, device), _claim(work_dir, world):
        if world.is_first:
            on_splits(splits)
        fingerprint = _fingerprint(store, annotations, splits, config, world)
        unfinished = _open_work_dir(work_dir, fingerprint, splits, restart=restart, world=world)
        trainer = Trainer(store, annotations.captions, splits, vocabulary, config, world=world, device=device)
        del annotations  # of five million captions half a gigabyte
        if unfinished:
            trainer.restore(unfinished)
        if world.is_first:
            _say_what_is_special(work_dir, trainer.state.history if unfinished else None, splits)
        with RunFolder(work_dir) as folder:
            if world.is_first:
                folder.write_config(
                    asdict(trainer.config),
                    data={"features": features, "captions": captions, "train_list": train_list, "val_list": val_list},
                    counts={
                        "train_images": len(splits.train),
                        "val_images": len(splits.val),
                        "train_captions": len(trainer.dataset),
                        "words": len(vocabulary),
                    },
                )
            run = _Run(trainer, folder, work_dir, fingerprint, checkpoint_every_s)
            history = run.to_the_end(on_epoch, progress if world.is_first else no_progress)
        if world.is_first:
            _publish(work_dir, output)
        world.wait()
    return TrainSummary(splits, len(vocabulary), history, time.monotonic() - started)


def build_vocabulary(captions: Mapping[str, Sequence[str]], train_keys: Sequence[str], *, min_count: int) -> Vocabulary:
    """The words of the training captions; TrainingError if none occurs `min_count` times."""
    vocabulary = Vocabulary.build((caption for key in train_keys for caption in captions[key]), min_count=min_count)
    if len(vocabulary) == len(SPECIAL_WORDS):
        if min_count == 1:
            raise TrainingError("the training captions hold no word")
        raise TrainingError(f"no word occurs {min_count} times in the training captions; pass a lower --min-count")
    return vocabulary


class _Run:
    """A trainer and the folder that it leaves its work in."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        work_dir: Path,
        fingerprint: dict[str, str],
        checkpoint_every_s: float,
    ) -> None:
        self._trainer, self._folder, self._work_dir, self._fingerprint = trainer, folder, work_dir, fingerprint
        self._checkpoint_every_s = checkpoint_every_s
        self._saved_at = time.monotonic()

    def to_the_end(self, on_epoch: Callable[[EpochResult], None], progress: Progress) -> tuple[EpochResult, ...]:
        trainer, is_first = self._trainer, self._trainer.world.is_first
        while not self._is_over():
            for _ in trainer.train_epoch(progress):
                if time.monotonic() - self._saved_at >= self._checkpoint_every_s:
                    self._save()
            result, decoded = trainer.end_epoch()
            if is_first:
                if result.best:
                    write_bundle(self._work_dir, trainer.bundle(result, decoded))
                self._folder.write_history(trainer.state.history)
                self._folder.add_epoch_events(trainer.state.history[-1])
                shown = list(decoded)[:_SAMPLE_COUNT]
                self._folder.write_samples(
                    result.epoch, [(key, decoded[key].text, trainer.references(key)) for key in shown]
                )
                self._save()
                on_epoch(result)
            trainer.world.wait()
        return tuple(EpochResult(**row) for row in trainer.state.history)

    def _is_over(self) -> bool:
        trainer = self._trainer
        if not trainer.phase_is_over:
            return False
        if trainer.state.phase == "self-critical" or not trainer.config.self_critical_epochs:
            return True
        best = read_bundle(self._work_dir)
        trainer.begin_self_critical({name: torch.from_numpy(tensor) for name, tensor in best.tensors.items()})
        self._save()  # its first epoch may replace the best weights before the next checkpoint
        return False

    def _save(self) -> None:
        if self._trainer.world.is_first:
            checkpoint = self._trainer.checkpoint()
            state = {"made_from": self._fingerprint, "training": checkpoint.state}
            write_checkpoint(self._work_dir, Checkpoint(state, checkpoint.tensors))
        self._saved_at = time.monotonic()


def _fingerprint(
    store: FeatureStore, annotations: Annotations, splits: Splits, config: TrainConfig, world: World
) -> dict[str, str]:
    """What must be the same for an unfinished run to go on, by name; where and how fast it runs is left out."""
    values = asdict(config.search) | asdict(config) | {"search_length": config.search.max_length}
    left_out = ("device", "search")
    settings = {f"--{name.replace('_', '-')}": str(value) for name, value in values.items() if name not in left_out}
    settings["number of processes"] = str(world.size)
    digest = hashlib.sha256()
    for name, keys in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        for key in keys:
            digest.update(json.dumps((name, key, annotations.captions[key])).encode())
    return settings | {"features": store.digest().hex(), "captions or splits": digest.hexdigest()}


@contextlib.contextmanager
def _memory_named() -> Iterator[None]:
    """Say in one line that memory ran out; the steps of a smaller batch would be other steps, so none is chosen."""
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
        raise TrainingError(
            "not enough memory for this training: pass a smaller --batch-size or --hidden-dim, and --restart"
        ) from exc


@contextlib.contextmanager
def _claim(work_dir: Path, world: World) -> Iterator[None]:
    """Keep every other training from `work_dir` while the block lasts."""
    if not world.is_first:
        yield
        return
    if work_dir.exists() and not work_dir.is_dir():
        raise InputError(f"{work_dir}: needed for the training, but is a file; move it away")
    work_dir.mkdir(parents=True, exist_ok=True)
    error = TrainingError(f"{work_dir}: another process is at this training; wait for it to end")
    with hold_lock(work_dir / _LOCK_NAME, error):
        yield


def _open_work_dir(
    work_dir: Path, fingerprint: dict[str, str], splits: Splits, *, restart: bool, world: World
) -> Checkpoint | None:
    """The checkpoint to go on from; without one `work_dir` is made empty, but never of files that are not a run's."""
    found = None if restart else read_checkpoint(work_dir)
    if found:
        made_from: dict[str, Any] = found.state["made_from"]
        names = [name for name, value in fingerprint.items() if made_from.get(name) != value]
        if names:
            is_digest = names[0] in ("features", "captions or splits")
            was, now = (values.get(names[0], "None").replace("None", "not set") for values in (made_from, fingerprint))
            change = "" if is_digest else f" ({was}, now {now})"
            raise UnfinishedRunError(
                f"{work_dir}: an unfinished training with other {names[0]}{change}; pass --restart to begin anew"
            )
        return Checkpoint(found.state["training"], found.tensors)
    world.wait()  # all have looked before anything is removed
    if world.is_first:
        _empty(work_dir)
        unmatched = [(key, reason) for reason, keys in splits.unmatched.items() for key in keys]
        write_table(work_dir / UNMATCHED_NAME, pd.DataFrame(unmatched, columns=["key", "reason"]))
    world.wait()
    return None


def _say_what_is_special(work_dir: Path, done: Sequence[object] | None, splits: Splits) -> None:
    if done is not None:
        _logger.warning("going on with %s: epochs done: %d; --restart would begin anew", work_dir, len(done))
    if len(splits.val) == 1:
        _logger.warning("one validation image chooses no epoch, as its CIDEr-D is always 0: give the split more images")


def _empty(work_dir: Path) -> None:
    own = (BUNDLE_NAME, CHECKPOINT_NAME, UNMATCHED_NAME, *RUN_NAMES)
    paths = [path for path in work_dir.iterdir() if path.name != _LOCK_NAME]
    for path in paths:
        is_weights = path.name.startswith("decoder-") and path.suffix == ".safetensors"
        if path.name not in own and not is_weights and not path.name.endswith(".partial"):
            raise InputError(f"{work_dir}: needed for the training, but holds other files ({path.name}); move it away")
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _publish(work_dir: Path, output: Path) -> None:
    """Put the finished run in `output`; the bundle replaces an older one in one rename.

    A kill in between leaves a run that can be gone on with, or, as soon as its checkpoint is gone, a finished one.
    """
    copy_run(work_dir, output)
    with replace_atomically(output / UNMATCHED_NAME) as partial_path:
        shutil.copyfile(work_dir / UNMATCHED_NAME, partial_path)
    write_bundle(output, read_bundle(work_dir))
    (work_dir / CHECKPOINT_NAME).unlink()
    shutil.rmtree(work_dir, ignore_errors=True)  # Windows removes no file that is locked
