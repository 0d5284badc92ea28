"""Stage two, training: turns cached features and reference captions into a model.

The model is written to `output` when training has ended; until then the best epoch so far is kept beside it, in
`OUTPUT.training`, together with a checkpoint from which an interrupted training is resumed.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from captionmill.data.captions.files import CaptionFiles, Captions, as_caption_files
from captionmill.data.captions.references import Annotations, read_annotations, read_split_list
from captionmill.data.captions.splits import Splits, choose_splits
from captionmill.data.errors import TrainingError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import RERANKED_CIDER, read_bundle
from captionmill.data.paths import AnyPath, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.machine import is_out_of_memory
from captionmill.stages.parallel import World, join_world
from captionmill.stages.scoring.collapse import describe_equal_features
from captionmill.stages.settings import TrainConfig
from captionmill.stages.split_settings import SplitLists
from captionmill.stages.training.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from captionmill.stages.training.choice import best_epoch, describe_choice
from captionmill.stages.training.corpus import (
    choose_vocabulary,
    count_words,
    describe_size,
    describe_words,
    with_lengths,
)
from captionmill.stages.training.given.captions import learn_teacher_captions
from captionmill.stages.training.given.model import GivenModel
from captionmill.stages.training.given.teachers import Teachers
from captionmill.stages.training.loop import run_training
from captionmill.stages.training.origin import NO_MODEL, as_it_began, describe_origin, describe_processes, require_same
from captionmill.stages.training.recorder import FolderRecorder, TrainListener
from captionmill.stages.training.reranking.build import NO_RANKER, add_ranker, lacks_images, rerank_validation
from captionmill.stages.training.run_folder import RunFolder, begin_folder, claim_folder, publish, require_place
from captionmill.stages.training.state import EpochResult, Training

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSummary:
    """The result of a training."""

    splits: Splits
    vocab_size: int
    history: tuple[EpochResult, ...]
    duration_s: float
    reranked_cider: float | None = None
    """CIDEr-D of the validation captions that the ranker chose; None without one, or in a process but the first."""
    reranks_validation: bool = False
    """Whether the captions of every epoch were re-ranked."""

    @property
    def best(self) -> EpochResult:
        """The epoch whose weights are in the bundle."""
        kept = best_epoch([asdict(result) for result in self.history])
        return next(result for result in self.history if result.epoch == kept)


def train(
    features: AnyPath,
    captions: Captions,
    output: AnyPath,
    config: TrainConfig = TrainConfig(),
    *,
    data: SplitLists = SplitLists(),
    overwrite: bool = False,
    restart: bool = False,
    listener: TrainListener = TrainListener(),
    progress: Progress = no_progress,
) -> TrainSummary:
    """Train a decoder on the rows of the store `features` and the reference `captions`; write its bundle to `output`.

    `captions` is a file, a folder of text files beside images, several of these, or `CaptionFiles` to name columns.
    With `config.teacher` the decoder also learns what other models predict, and the captions that these together write
    of the training images; they must have the same words (InputError) and features. With `config.init` it starts from a
    model, which must fit the features (SpecMismatchError) and the settings (SettingError); its words keep their places,
    and frequent words of `captions` are added.

    An interrupted training is resumed from its last checkpoint, which is at most `listener.loop.checkpoint_every_s`
    seconds of training old; `restart` starts from scratch. `data` names the images for training and validation if the
    captions do not; images that are left out are listed in `unmatched.csv` in the bundle's folder. Started by
    `torchrun`, several processes share the work, and the first of them writes and calls `listener` and `progress`.

    Raises InputError if `output` holds a model and `overwrite` is not given, AnnotationError if no usable image is
    left, TrainingError if no word is frequent enough, the loss is not finite, or an unfinished training exists that
    cannot be resumed (UnfinishedRunError: its settings or data differ) and `restart` is not given.
    """
    started = time.monotonic()
    features, captions, output = Path(features), as_caption_files(captions), Path(output)
    work_dir = require_place(output, overwrite=overwrite)
    store = FeatureStore.open(features)
    word_rule, config = as_it_began(work_dir, config, restart=restart)
    start = GivenModel.read(config.init) if config.init is not None else None
    teachers = Teachers(config.teacher)
    if start is not None:
        word_rule = start.model.vocabulary.word_rule
        config = start.fit(config, store.spec, features=features, output=output)
    annotations = read_annotations(captions, restval=data.restval, known_keys=store.keys, word_rule=word_rule)
    splits = _chosen_splits(annotations, store, data, config.seed)
    counts, val_counts = (count_words(annotations.captions, keys, word_rule) for keys in (splits.train, splits.val))
    vocabulary = choose_vocabulary(counts, min_count=config.min_count, known=start.model.vocabulary if start else None)
    vocabulary = teachers.fit(store, vocabulary, may_reorder=start is None)
    fitted = with_lengths(config, counts)
    with _memory_named(), join_world(config.device) as (world, device), _claim(work_dir, world):
        if world.is_first:
            listener.on_splits(splits)
        origin = describe_origin(
            store,
            annotations,
            splits,
            config,
            word_rule=word_rule,
            start=start.digest if start else NO_MODEL,
            teachers=[teacher.digest for teacher in teachers.models],
        )
        fingerprint = origin | describe_processes(world.size, listener.loop.images_per_step)
        unfinished = _open_work_dir(work_dir, fingerprint, splits, restart=restart, world=world)
        training = Training(
            store,
            annotations.captions,
            splits,
            vocabulary,
            fitted,
            world=world,
            device=device,
            loop=listener.loop,
            start=start,
        )
        training.learn_from(teachers)
        del annotations  # half a gigabyte for five million captions
        if unfinished:
            training.restore(unfinished)
        notes: list[str] = []
        if world.is_first:
            notes += describe_words(counts, val_counts, vocabulary, fitted)
            notes += describe_size(len(splits.train), vocabulary, fitted) + [NO_RANKER] * lacks_images(training)
            notes += describe_equal_features(store, splits.train, "training images")
            _warn_at_start(work_dir, training.state.history if unfinished else None, splits, notes)
        with RunFolder(work_dir) as folder:
            if world.is_first:
                _write_config(folder, training, features, captions, _lists_of(data))
                if unfinished and training.state.history:
                    folder.write_history(training.state.history)  # its curves may be those of an earlier epoch
            shown = progress if world.is_first else no_progress
            recorder = FolderRecorder(folder, work_dir, fingerprint, listener, shown)
            _make_before_epochs(training, work_dir, recorder, shown)
            run_training(training, recorder)
        if world.is_first:
            add_ranker(training, work_dir, progress)
            publish(work_dir, output, (*notes, *describe_choice(training.state.history)))
            _log_notes(read_bundle(output).notes[len(notes) :])
        world.wait()
    history = tuple(EpochResult(**row) for row in training.state.history)
    reranked = read_bundle(output).scores.get(RERANKED_CIDER) if world.is_first else None
    return TrainSummary(
        splits, len(vocabulary), history, time.monotonic() - started, reranked, config.reranks_validation
    )


def _make_before_epochs(training: Training, work_dir: Path, recorder: FolderRecorder, progress: Progress) -> None:
    """Make what is needed before the first epoch: captions of the teachers, and what re-ranks validation captions."""
    config = training.config
    has_captions = bool(training.teachers) and config.teacher_captions
    if (has_captions or config.reranks_validation) and not (work_dir / CHECKPOINT_NAME).exists():
        recorder.save(training)  # from now on it is resumed
    training.world.wait()
    if has_captions:
        learn_teacher_captions(training, work_dir, progress)
    if config.reranks_validation:
        rerank_validation(training, work_dir, progress)


def _lists_of(data: SplitLists) -> dict[str, Path | None]:
    return {"train_list": as_path(data.train_list), "val_list": as_path(data.val_list)}


def _chosen_splits(annotations: Annotations, store: FeatureStore, data: SplitLists, seed: int) -> Splits:
    train_list, val_list = (
        read_split_list(path, known_keys=store.keys) if path else None for path in _lists_of(data).values()
    )
    splits = choose_splits(annotations, store.keys, train_list=train_list, val_list=val_list, seed=seed)
    return splits.without(set(store.verify((*splits.train, *splits.val, *splits.test))))


def _write_config(
    folder: RunFolder, training: Training, features: Path, captions: CaptionFiles, lists: Mapping[str, Path | None]
) -> None:
    folder.write_config(
        asdict(training.config),
        data={"features": features, **captions.to_json(), **lists},
        counts={
            "train_images": len(training.splits.train),
            "val_images": len(training.splits.val),
            "train_captions": len(training.dataset),
            "words": len(training.vocabulary),
        },
    )


@contextlib.contextmanager
def _memory_named() -> Iterator[None]:
    """Turn an out-of-memory error into one line; no smaller batch is chosen, as it would change the training."""
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
        raise TrainingError(
            "not enough memory for this training: pass a smaller `batch_size` or `hidden_dim`, and `restart`"
        ) from exc


def _claim(work_dir: Path, world: World) -> contextlib.AbstractContextManager[None]:
    return claim_folder(work_dir) if world.is_first else contextlib.nullcontext()


def _open_work_dir(
    work_dir: Path, fingerprint: dict[str, str], splits: Splits, *, restart: bool, world: World
) -> Checkpoint | None:
    """The checkpoint to resume from; if there is none, files of earlier trainings are removed from `work_dir`."""
    found = None if restart else read_checkpoint(work_dir)
    if found:
        require_same(work_dir, found.state["made_from"], fingerprint)
        return Checkpoint(found.state["training"], found.tensors)
    world.wait()  # all processes have read it before anything is removed
    if world.is_first:
        begin_folder(work_dir, splits.unmatched)
    world.wait()
    return None


def _warn_at_start(work_dir: Path, done: Sequence[object] | None, splits: Splits, notes: Sequence[str]) -> None:
    if done is not None:
        _logger.warning("resuming %s: epochs done: %d; pass `restart` to start from scratch", work_dir, len(done))
    if len(splits.val) == 1:
        _logger.warning(
            "one validation image: its CIDEr-D is always 0, so the cross entropy of its captions chooses the epoch; "
            "give the split more images"
        )
    _log_notes(notes)


def _log_notes(notes: Sequence[str]) -> None:
    for note in notes:
        _logger.warning("%s", note)
