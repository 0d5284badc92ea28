"""A training: its data, network and optimizer, and its state, which is all that it needs to be resumed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captionmill.data.captions.examples import CaptionDataset
from captionmill.data.captions.splits import Splits
from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import LOW_CONFIDENCE, RERANKED_CIDER, RERANKED_LOW_CONFIDENCE, Model
from captionmill.stages.decoding.captioner import Caption
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.machine import choose_training_dtype, versions
from captionmill.stages.parallel import World
from captionmill.stages.ranking.ranker import Ranker
from captionmill.stages.scoring.collapse import describe_captions_alike
from captionmill.stages.scoring.metrics import CiderD
from captionmill.stages.scoring.tokens import tokenize_for_scores
from captionmill.stages.settings import USUAL_LENGTH, TrainConfig
from captionmill.stages.training.checkpoint import Checkpoint, load_weights, pack_tensors, unpack_tensors
from captionmill.stages.training.choice import last_progress
from captionmill.stages.training.corpus import choose_epochs
from captionmill.stages.training.features import MEMORY_LIMIT, FeatureFeeder, measure_features
from captionmill.stages.training.given.model import GivenModel
from captionmill.stages.training.given.teachers import Teachers
from captionmill.stages.training.losses import WordLogits

Phase = Literal["cross entropy", "self-critical"]

_RATE_FROM_MODEL = 0.3  # share of the learning rate: at the whole of it, few captions overwrite what the model knew
_WARMUP = 0.1  # share of a phase's steps in which the learning rate rises


@dataclass(frozen=True)
class EpochResult:
    """One pass over the training captions, or, if self-critical, over the training images."""

    epoch: int
    """Counted from 1, through both phases."""
    phase: Phase
    loss: float
    """Mean cross entropy per word, in nats, with dropout; self-critical: the mean reward of the samples, CIDEr-D."""
    val_cider: float
    """CIDEr-D of the validation captions, decoded as in captioning."""
    captions_per_s: float
    """Training speed, over all processes."""
    duration_s: float
    """Duration of training and validation."""
    learning_rate: float
    """Learning rate at the end of the epoch."""
    best: bool
    """Whether this is the best epoch so far (`choice`), so that its weights are kept."""
    val_loss: float = math.nan
    """Mean cross entropy per word of the validation captions, in nats, without dropout; NaN where not measured."""


@dataclass
class TrainingState:
    """The progress of a training; with the tensors it is all that is needed to resume exactly."""

    epoch: int = 1
    phase: Phase = "cross entropy"
    step: int = 0
    """Steps of this epoch that are done."""
    phase_start: int = 0
    """Epochs that were complete when this phase began."""
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Sums over this epoch: losses (or rewards), and words (or samples)."""
    learning_rate: float = 0.0
    """Learning rate of the last step."""
    seconds: float = 0.0
    """Time spent on this epoch, also before the training was interrupted; without a first score."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Finished epochs, each with the fields of `EpochResult`."""


@dataclass(frozen=True)
class LoopConfig:
    """How often the loop checks, saves and shows captions, the size of its self-critical steps, and what it keeps."""

    checkpoint_every_s: float = 60.0
    """Seconds of training that an interruption loses at most."""
    steps_per_check: int = 10
    """Steps between two checks of the loss and the time: a check waits for the GPU."""
    images_per_step: int = 50
    """Images per self-critical step: with five samples each, as many captions as four default steps before."""
    long_epoch: int = 200
    """Steps of a first epoch that is long enough for a validation score after a third of it."""
    samples_shown: int = 8
    """Validation images whose captions are recorded after each epoch."""
    memory_limit: int = MEMORY_LIMIT
    """Bytes of features that are kept in main memory; if there are more, they are read from the store in each epoch."""


class Training:
    """The data, network and optimizer of a training; weights, optimizer and `state` change with each step.

    All random numbers depend only on the seed, the epoch, the step and the process's rank, so on the same CPU a
    training that is resumed from a checkpoint ends with the same bits as an uninterrupted one.
    """

    def __init__(
        self,
        store: FeatureStore,
        captions: Mapping[str, Sequence[str]],
        splits: Splits,
        vocabulary: Vocabulary,
        config: TrainConfig,
        *,
        world: World = World(),
        device: torch.device = torch.device("cpu"),
        loop: LoopConfig = LoopConfig(),
        start: GivenModel | None = None,
    ) -> None:
        """Build everything from `config.seed`, and the decoder from `start` if there is one."""
        self.store, self.splits, self.vocabulary = store, splits, vocabulary
        self.world, self.device, self.loop, self.state = world, device, loop, TrainingState()
        kept = (*splits.val, *(splits.train if config.self_critical_epochs else ()))
        self.captions = {key: captions[key] for key in kept}  # the others are needed only as word indices
        self.length = config.max_length or USUAL_LENGTH  # words of a caption at most
        self.references = CaptionDataset.of(captions, splits.train, vocabulary, max_length=self.length)
        self.dataset = self.references  # and what teachers write (`add_captions`)
        self.val_dataset = CaptionDataset.of(captions, splits.val, vocabulary, max_length=self.length)
        epochs, patience = choose_epochs(config, len(self.dataset))
        self.config = replace(config, max_epochs=epochs, patience=patience)
        self.first_epochs, self._patience = epochs, patience
        self.feeder = FeatureFeeder(store, splits.train, device, with_views=True, memory_limit=loop.memory_limit)
        self.val_feeder = FeatureFeeder(store, splits.val, device, memory_limit=loop.memory_limit)
        torch.manual_seed(config.seed)
        self.decoder = Decoder(DecoderConfig.of(config, feature_dim=store.spec.feature_dim, vocab_size=len(vocabulary)))
        self.decoder.bias_forget_gates(config.forget_bias)
        mean, std = measure_features(store, splits.train)
        if start is None:
            self.decoder.fit_features(torch.from_numpy(mean), torch.from_numpy(std))
        else:
            start.copy_into(self.decoder)
        self.peak_learning_rate = config.learning_rate * (_RATE_FROM_MODEL if start else 1)
        self._models_used: dict[str, Any] = {"init": start.name, "init_sha256": start.digest} if start else {}
        self.teachers = Teachers()
        self.start_ranker = start.model.ranker if start else None
        self.rankers: tuple[Ranker, ...] = ()  # of validation captions, if they are re-ranked after each epoch
        self.decoder.to(device)
        self.word_logits = WordLogits(self.decoder, choose_training_dtype(device))
        self.network: nn.Module = self.word_logits
        if world.size > 1:
            self.network = DistributedDataParallel(self.network)
        self.optimizer = self._new_optimizer()
        self.scoring_seconds = 0.0  # of this epoch, spent on a first score
        self.val_scorer = CiderD({key: [*map(self.tokenize, captions[key])] for key in splits.val})

    def learn_from(self, teachers: Teachers) -> None:
        """Learn what `teachers` predict too; they must fit (`Teachers.fit`)."""
        teachers.build(self.device)
        self.teachers = teachers
        if teachers:
            self._models_used["teacher"] = [teacher.name for teacher in teachers.models]
            self._models_used["teacher_sha256"] = [teacher.digest for teacher in teachers.models]

    def add_captions(self, written: Mapping[str, str]) -> None:
        """Learn captions of training images that are no references: scores and re-ranking do not use them."""
        texts = {key: [caption] for key, caption in written.items()}
        self.dataset = self.references.joined(
            CaptionDataset.of(texts, self.splits.train, self.vocabulary, max_length=self.length)
        )

    def measure_cider(self, captions: Mapping[str, Caption]) -> float:
        """The mean CIDEr-D of captions of the validation images."""
        texts = {key: self.tokenize(caption.text) for key, caption in captions.items()}
        return float(self.val_scorer.scores(texts).mean())

    def notes_on(self, captions: Mapping[str, Caption]) -> tuple[str, ...]:
        """What a person should know of captions of the validation images."""
        texts = {key: caption.text for key, caption in captions.items()}
        return tuple(describe_captions_alike(texts, "validation images", self.vocabulary.word_rule))

    def tokenize(self, text: str) -> list[str]:
        """The tokens that a caption is scored by."""
        return tokenize_for_scores(text, self.vocabulary.word_rule)

    @property
    def phase_is_over(self) -> bool:
        """Whether the current phase has had all its epochs, or has not improved for `patience` epochs."""
        done = self.state.epoch - 1 - self.state.phase_start
        if self.state.phase == "self-critical":
            return done >= self.config.self_critical_epochs
        return done >= self.first_epochs or done - last_progress(self.state.history) >= self._patience

    @property
    def max_epochs(self) -> int:
        """Epochs of both phases, without early stopping."""
        if self.state.phase == "self-critical":
            return self.state.phase_start + self.config.self_critical_epochs
        return self.first_epochs + self.config.self_critical_epochs

    @property
    def captions_per_epoch(self) -> int:
        """Captions that an epoch of the current phase trains on."""
        if self.state.phase == "self-critical":
            return len(self.splits.train) * self.config.self_critical_samples
        return len(self.dataset)

    def describe_progress(self, steps: int) -> str:
        """The loss of an epoch of `steps` so far, and the rate: "loss 3.01, best CIDEr-D 0.382, 1,900 captions/s"."""
        name = "loss" if self.state.phase == "cross entropy" else "reward"
        notes = [f"{name} {self.state.sums[0] / self.state.sums[1]:.2f}"]
        if self.state.history:
            notes.append(f"best CIDEr-D {max(row['val_cider'] for row in self.state.history):.3f}")
        rate = self.captions_per_epoch * self.state.step / steps / max(self.state.seconds, 1e-9)
        return ", ".join([*notes, f"{rate:,.0f} captions/s"])

    def seconds_left(self, steps: int) -> float | None:
        """Seconds until training ends without early stopping; None before the last phase."""
        if self.state.phase == "cross entropy" and self.config.self_critical_epochs:
            return None
        steps_left = steps - self.state.step + steps * (self.max_epochs - self.state.epoch)
        return steps_left * self.state.seconds / self.state.step

    def epoch_generator(self) -> np.random.Generator:
        """The random generator for the order of this epoch."""
        return np.random.default_rng((self.config.seed, self.state.epoch))

    def epoch_views(self, count: int) -> Tensor:
        """The view of an image that this epoch trains on, for each of `count` captions or images, [count]."""
        views = np.random.default_rng((self.config.seed, self.state.epoch, 1)).integers(
            self.store.spec.view_count, size=count
        )
        return torch.from_numpy(views)

    def begin_self_critical(self, best: Mapping[str, Tensor]) -> None:
        """Start the second phase from the weights `best`."""
        load_weights(self.decoder, best)
        self.state.phase, self.state.phase_start = "self-critical", self.state.epoch - 1
        self.optimizer = self._new_optimizer()

    def checkpoint(self) -> Checkpoint:
        """All that `restore` needs."""
        return Checkpoint(asdict(self.state), pack_tensors(self.decoder, self.optimizer))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from `checkpoint`, made by a training of the same settings and data."""
        self.state = TrainingState(**checkpoint.state)
        self.optimizer = self._new_optimizer()
        unpack_tensors(checkpoint.tensors, self.decoder, self.optimizer)

    def bundle(self, result: EpochResult, captions: Mapping[str, Caption]) -> Model:
        """The decoder as it is now, with all that captioning needs; `captions` are those of the validation images."""
        confidence = {RERANKED_LOW_CONFIDENCE if self.rankers else LOW_CONFIDENCE: low_confidence(captions)}
        reranked = {RERANKED_CIDER: result.val_cider} if self.rankers else {}
        tensors = dict(self.decoder.named_parameters()) | dict(self.decoder.named_buffers())
        return Model(
            decoder_config=asdict(self.decoder.config),
            vocabulary=self.vocabulary,
            spec=self.store.spec,
            training=asdict(self.config) | self._models_used,
            splits={"train": self.splits.train, "val": self.splits.val, "test": self.splits.test},
            scores={
                "epoch": result.epoch,
                "loss": result.loss,
                "val_cider_d": result.val_cider,
                "val_loss": result.val_loss,
                **confidence,
                **reranked,
            },
            versions=versions(),
            tensors={name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()},
            notes=self.notes_on(captions),
        )

    def _new_optimizer(self) -> torch.optim.AdamW:
        matrices = [parameter for parameter in self.decoder.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.decoder.parameters() if parameter.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, fused=self.device.type != "mps")


def low_confidence(captions: Mapping[str, Caption]) -> float:
    """The confidence that a tenth of `captions` are below."""
    return sorted(caption.confidence for caption in captions.values())[len(captions) // 10]


def learning_rate_factor(step: int, steps: int) -> float:
    """The share of the peak learning rate in `step` (from 0) of `steps`: a linear rise, then half a cosine to 0.

    Source: Loshchilov and Hutter 2017, "SGDR", without restarts.
    """
    rise = _WARMUP * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
