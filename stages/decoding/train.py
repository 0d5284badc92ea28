"""Stage two, training: cached features and reference captions in, a model bundle out.

The bundle appears at `output` when training has ended; until then the best epoch so far is kept beside it, in
`OUTPUT.training`, where an interrupted run leaves it.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from captionmill.data.annotations import read_annotations, read_split_list
from captionmill.data.bundle import BUNDLE_NAME, Bundle, bundle_exists, read_bundle, write_bundle
from captionmill.data.dataset import CaptionDataset, TrainingBatch, measure_features
from captionmill.data.errors import InputError, TrainingError
from captionmill.data.feature_store import FeatureStore
from captionmill.data.splits import Splits, choose_splits
from captionmill.data.tables import write_table
from captionmill.data.vocabulary import PAD, SPECIAL_WORDS, Vocabulary
from captionmill.stages.config import TrainConfig
from captionmill.stages.decoding.caption import decode_features
from captionmill.stages.decoding.decoder import Decoder, DecoderConfig
from captionmill.stages.runtime import Progress, choose_device, choose_dtype, no_progress, versions
from captionmill.stages.scoring.metrics import CiderD
from captionmill.stages.scoring.ptb_tokenizer import tokenize_ptb

HISTORY_NAME = "history.csv"
UNMATCHED_NAME = "unmatched.csv"


@dataclass(frozen=True)
class EpochResult:
    """One pass over the training captions."""

    epoch: int
    """Counted from 1."""
    loss: float
    """Mean cross entropy a word, in nats, with dropout."""
    val_cider: float
    """CIDEr-D of the validation captions, decoded as captions are."""
    captions_per_s: float
    """Training speed."""
    duration_s: float
    """Training and validation."""
    best: bool
    """The best validation CIDEr-D so far: this epoch's weights are kept."""


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
    on_splits: Callable[[Splits], None] = lambda splits: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    progress: Progress = no_progress,
) -> TrainSummary:
    """Train a decoder on the rows of the store `features` and the reference `captions`; write its bundle to `output`.

    `on_splits` hears which images are used, and which are left out and why, before training starts; the same list is
    left as `unmatched.csv` in the bundle's folder. `on_epoch` hears each epoch.

    Raises InputError if `output` holds a model and `overwrite` is not given, AnnotationError if no usable image is
    left, TrainingError if no word is frequent enough or the loss is not finite.
    """
    if bundle_exists(output) and not overwrite:
        raise InputError(f"{output}: holds a model already; pass --overwrite to replace it, or another --output")
    started = time.monotonic()
    store = FeatureStore.open(features)
    annotations = read_annotations(captions, restval=restval)
    splits = choose_splits(
        annotations,
        store.keys,
        train_list=read_split_list(train_list) if train_list else None,
        val_list=read_split_list(val_list) if val_list else None,
        seed=config.seed,
    )
    on_splits(splits)
    vocabulary = build_vocabulary(annotations.captions, splits.train, min_count=config.min_count)

    work_dir = _empty_work_dir(output)
    unmatched = [(key, reason) for reason, keys in splits.unmatched.items() for key in keys]
    write_table(work_dir / UNMATCHED_NAME, pd.DataFrame(unmatched, columns=["key", "reason"]))

    trainer = Trainer(store, annotations.captions, splits, vocabulary, config)
    history: list[EpochResult] = []
    for result in trainer.epochs(progress):
        history.append(result)
        write_table(work_dir / HISTORY_NAME, pd.DataFrame([asdict(epoch) for epoch in history]))
        if result.best:
            write_bundle(work_dir, trainer.bundle(result))
        on_epoch(result)
    _publish(work_dir, output)
    return TrainSummary(splits, len(vocabulary), tuple(history), time.monotonic() - started)


def build_vocabulary(captions: Mapping[str, Sequence[str]], train_keys: Sequence[str], *, min_count: int) -> Vocabulary:
    """The words of the training captions; TrainingError if none occurs `min_count` times."""
    vocabulary = Vocabulary.build((caption for key in train_keys for caption in captions[key]), min_count=min_count)
    if len(vocabulary) == len(SPECIAL_WORDS):
        raise TrainingError(f"no word occurs {min_count} times in the training captions; pass a lower --min-count")
    return vocabulary


class Trainer:
    """A decoder, its optimizer and its data: one training run from the first epoch to the last."""

    def __init__(
        self,
        store: FeatureStore,
        captions: Mapping[str, Sequence[str]],
        splits: Splits,
        vocabulary: Vocabulary,
        config: TrainConfig,
    ) -> None:
        """Build everything from `config.seed`."""
        self.config, self._store, self._splits, self._vocabulary = config, store, splits, vocabulary
        self._dataset = CaptionDataset(store, captions, splits.train, vocabulary, max_length=config.max_length)
        self._generator = np.random.default_rng(config.seed)
        torch.manual_seed(config.seed)
        self.device = choose_device(config.device)
        self._dtype = choose_dtype("auto", self.device)
        self.decoder = Decoder(
            DecoderConfig(
                feature_dim=store.spec.feature_dim,
                vocab_size=len(vocabulary),
                embed_dim=config.embed_dim,
                hidden_dim=config.hidden_dim,
                dropout=config.dropout,
                feature_dropout=config.feature_dropout,
            )
        )
        mean, std = measure_features(store, splits.train)
        self.decoder.fit_features(torch.from_numpy(mean), torch.from_numpy(std))
        self.decoder.to(self.device)
        self._optimizer = torch.optim.Adam(self.decoder.parameters(), lr=config.learning_rate)
        self._val_scorer = CiderD({key: [tokenize_ptb(text) for text in captions[key]] for key in splits.val})

    def epochs(self, progress: Progress = no_progress) -> Iterator[EpochResult]:
        """Train until the validation CIDEr-D has not risen for `patience` epochs, or `max_epochs` are done."""
        best_cider, best_epoch = -math.inf, 0
        for epoch in range(1, self.config.max_epochs + 1):
            started = time.monotonic()
            loss = self._train_epoch(epoch, progress)
            trained_s = time.monotonic() - started
            val_cider = self.validate()
            if best := val_cider > best_cider:
                best_cider, best_epoch = val_cider, epoch
            yield EpochResult(
                epoch=epoch,
                loss=loss,
                val_cider=val_cider,
                captions_per_s=len(self._dataset) / trained_s,
                duration_s=time.monotonic() - started,
                best=best,
            )
            if epoch - best_epoch >= self.config.patience:
                return

    def validate(self) -> float:
        """Mean CIDEr-D of captions decoded for the validation images."""
        captions = decode_features(self.decoder, self._store, self._splits.val, self._vocabulary, self.config.search)
        return float(self._val_scorer.scores({key: tokenize_ptb(caption.text) for key, caption in captions}).mean())

    def bundle(self, result: EpochResult) -> Bundle:
        """The decoder as it is now, with all that captioning needs."""
        return Bundle(
            decoder_config=asdict(self.decoder.config),
            vocabulary=self._vocabulary,
            spec=self._store.spec,
            training=asdict(self.config),
            splits={"train": self._splits.train, "val": self._splits.val, "test": self._splits.test},
            scores={"epoch": result.epoch, "loss": result.loss, "val_cider_d": result.val_cider},
            versions=versions(),
            tensors={name: tensor.cpu().numpy() for name, tensor in self.decoder.state_dict().items()},
        )

    def _train_epoch(self, epoch: int, progress: Progress) -> float:
        self.decoder.train()
        loss_sum, word_count, caption_count = 0.0, 0, 0
        for batch in self._dataset.batches(self.config.batch_size, self._generator):
            loss, words = self._train_batch(batch)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss became {loss} in epoch {epoch}; pass a lower --learning-rate")
            loss_sum, word_count = loss_sum + loss, word_count + words
            caption_count += len(batch.words)
            progress(f"epoch {epoch}", caption_count, len(self._dataset))
        return loss_sum / word_count

    def _train_batch(self, batch: TrainingBatch) -> tuple[float, int]:
        """One optimizer step; the sum of the cross entropy over the batch's words, and their number."""
        features, inputs, targets = (
            torch.from_numpy(array).to(self.device) for array in (batch.features, batch.inputs, batch.targets)
        )
        is_word = targets != PAD  # [B, T]; N words in all
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self.decoder.to_logits(self.decoder.unroll(features, inputs)[is_word])  # [N, V]
        loss_sum = F.cross_entropy(logits.float(), targets[is_word], reduction="sum")
        words = len(logits)
        self._optimizer.zero_grad()
        (loss_sum / words).backward()
        nn.utils.clip_grad_value_(self.decoder.parameters(), self.config.clip_value)
        self._optimizer.step()
        return float(loss_sum.detach()), words


def _empty_work_dir(output: Path) -> Path:
    """The folder beside `output` for the run that begins; what an earlier run left there is removed, and only that."""
    work_dir = output.resolve().with_name(f"{output.resolve().name}.training")
    own = (BUNDLE_NAME, HISTORY_NAME, UNMATCHED_NAME)
    for path in work_dir.iterdir() if work_dir.exists() else ():
        if path.name not in own and not (path.name.startswith("decoder-") and path.suffix == ".safetensors"):
            raise InputError(f"{work_dir}: needed for the training, but holds other files ({path.name}); move it away")
    shutil.rmtree(work_dir, ignore_errors=True)
    return work_dir


def _publish(work_dir: Path, output: Path) -> None:
    """Put the finished run in `output`; the bundle replaces an older one in one rename."""
    output.mkdir(parents=True, exist_ok=True)
    write_bundle(output, read_bundle(work_dir))
    for name in (HISTORY_NAME, UNMATCHED_NAME):
        (work_dir / name).replace(output / name)
    shutil.rmtree(work_dir)
