"""A decoder, its optimizer and its data: one training run, step by step, in one process or several that share it."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captionmill.data.captions.examples import CaptionDataset, Indices
from captionmill.data.captions.splits import Splits
from captionmill.data.captions.vocabulary import PAD, Vocabulary
from captionmill.data.errors import TrainingError
from captionmill.data.features.store import FeatureStore
from captionmill.data.model import LOW_CONFIDENCE, Bundle
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.decoding.captioner import Caption, decode_features
from captionmill.stages.decoding.decoder import Decoder, DecoderConfig
from captionmill.stages.machine import choose_training_dtype, versions
from captionmill.stages.parallel import World
from captionmill.stages.scoring.metrics import CiderD
from captionmill.stages.scoring.tokens import tokenize_ptb
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.checkpoint import Checkpoint, load_weights, pack_tensors, unpack_tensors
from captionmill.stages.training.features import FeatureFeeder, measure_features, prepare_ahead
from captionmill.stages.training.losses import Losses
from captionmill.stages.training.self_critical import Reward, sample_captions
from captionmill.stages.training.state import EpochResult, TrainingState, choose_epochs, scheduled_share

_IMAGES_A_STEP = 50  # of self-critical training: with five samples each, as many captions as two steps of the other
_STEPS_A_LOOK = 10  # steps between two looks at the loss: a look waits for a GPU


class Trainer:
    """One training run from the first step, or from a checkpoint, to the last.

    Everything that is drawn at random depends on the run's seed, the step and the process's rank alone, so a run that
    goes on from a checkpoint ends bit for bit as it would have on the same CPU.
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
    ) -> None:
        """Build everything from `config.seed`."""
        self._store, self._splits, self._vocabulary = store, splits, vocabulary
        self.world, self.device, self.state = world, device, TrainingState()
        kept = (*splits.val, *(splits.train if config.self_critical_epochs else ()))
        self._captions = {key: captions[key] for key in kept}  # of the others their indices suffice
        self.dataset = CaptionDataset(captions, splits.train, vocabulary, max_length=config.max_length)
        self._epochs, self._patience = choose_epochs(config, len(self.dataset))
        self.config = replace(config, max_epochs=self._epochs, patience=self._patience)
        self._feeder = FeatureFeeder(store, splits.train, device)
        torch.manual_seed(config.seed)
        self.decoder = Decoder(DecoderConfig.of(config, feature_dim=store.spec.feature_dim, vocab_size=len(vocabulary)))
        self.decoder.bias_forget_gates(config.forget_bias)
        mean, std = measure_features(store, splits.train)
        self.decoder.fit_features(torch.from_numpy(mean), torch.from_numpy(std))
        self.decoder.to(device)
        self._losses: nn.Module = Losses(self.decoder, config.label_smoothing, choose_training_dtype(device))
        if world.size > 1:
            self._losses = DistributedDataParallel(self._losses)
        self._optimizer = self._new_optimizer()
        self._val_scorer = CiderD({key: [tokenize_ptb(text) for text in captions[key]] for key in splits.val})
        self._reward: Reward | None = None

    def train_epoch(self, progress: Progress = no_progress) -> Iterator[None]:
        """Do what is left of the current epoch, yielding every few steps: wherever `state` is whole."""
        started = time.monotonic() - self.state.seconds
        if self.state.phase == "cross entropy":
            self.decoder.train()
            yield from self._train_captions(started, progress)
        else:
            yield from self._train_images(started, progress)

    def end_epoch(self) -> tuple[EpochResult, dict[str, Caption]]:
        """Validate, and move on to the next epoch; what the epoch gave, and the captions of the validation images."""
        trained_s = self.state.seconds
        started = time.monotonic()
        self._require_finite(all(bool(tensor.isfinite().all()) for tensor in self.decoder.parameters()), "network")
        captions = self.validate()
        texts = {key: tokenize_ptb(caption.text) for key, caption in captions.items()}
        val_cider = float(self._val_scorer.scores(texts).mean())
        result = EpochResult(
            epoch=self.state.epoch,
            phase=self.state.phase,
            loss=self.state.sums[0] / self.state.sums[1],
            val_cider=val_cider,
            captions_per_s=self._captions_an_epoch / max(trained_s, 1e-9),
            duration_s=trained_s + time.monotonic() - started,
            learning_rate=self.state.learning_rate,
            best=val_cider > self.state.best_cider,
        )
        self.state.history.append(asdict(result))
        self.state.epoch += 1
        self.state.step, self.state.sums, self.state.seconds = 0, [0.0, 0.0], 0.0
        return result, captions

    def begin_self_critical(self, best: Mapping[str, Tensor]) -> None:
        """Go over to the second phase, from the weights `best`."""
        load_weights(self.decoder, best)
        self.state.phase, self.state.phase_start = "self-critical", self.state.epoch - 1
        self._optimizer = self._new_optimizer()

    @property
    def phase_is_over(self) -> bool:
        """Whether the current phase has had its epochs, or has not become better for `patience` of them."""
        done = self.state.epoch - 1 - self.state.phase_start
        if self.state.phase == "self-critical":
            return done >= self.config.self_critical_epochs
        ciders = [row["val_cider"] for row in self.state.history]
        best_epoch = 1 + ciders.index(max(ciders)) if ciders else 0
        return done >= self._epochs or done - best_epoch >= self._patience

    def validate(self) -> dict[str, Caption]:
        """The captions of the validation images, each process decoding its share."""
        share = list(self.world.share(self._splits.val))
        decoded = decode_features(self.decoder, self._store, share, self._vocabulary, self.config.search)
        captions = dict(self.world.gather(list(decoded)))
        return {key: captions[key] for key in self._splits.val}

    def references(self, key: str) -> Sequence[str]:
        """The reference captions of the validation image `key`."""
        return self._captions[key]

    def bundle(self, result: EpochResult, captions: Mapping[str, Caption]) -> Bundle:
        """The decoder as it is now, with all that captioning needs; `captions` are those of the validation images."""
        confidences = sorted(caption.confidence for caption in captions.values())
        tensors = dict(self.decoder.named_parameters()) | dict(self.decoder.named_buffers())
        return Bundle(
            decoder_config=asdict(self.decoder.config),
            vocabulary=self._vocabulary,
            spec=self._store.spec,
            training=asdict(self.config),
            splits={"train": self._splits.train, "val": self._splits.val, "test": self._splits.test},
            scores={
                "epoch": result.epoch,
                "loss": result.loss,
                "val_cider_d": result.val_cider,
                LOW_CONFIDENCE: confidences[len(confidences) // 10],
            },
            versions=versions(),
            tensors={name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()},
        )

    def checkpoint(self) -> Checkpoint:
        """All that `restore` needs."""
        return Checkpoint(asdict(self.state), pack_tensors(self.decoder, self._optimizer))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`, made by a trainer of the same settings and data."""
        self.state = TrainingState(**checkpoint.state)
        self._optimizer = self._new_optimizer()
        unpack_tensors(checkpoint.tensors, self.decoder, self._optimizer)

    def _require_finite(self, is_finite: bool, what: str) -> None:
        if not is_finite:
            option = "--self-critical-learning-rate" if self.state.phase == "self-critical" else "--learning-rate"
            raise TrainingError(
                f"the {what} is not finite in epoch {self.state.epoch}; pass a lower {option}, and --restart"
            )

    def _new_optimizer(self) -> torch.optim.AdamW:
        matrices = [parameter for parameter in self.decoder.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.decoder.parameters() if parameter.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, fused=self.device.type != "mps")

    def _train_captions(self, started: float, progress: Progress) -> Iterator[None]:
        order = np.random.default_rng((self.config.seed, self.state.epoch))
        plan = self.dataset.plan_epoch(self.config.batch_size, order)
        sums = torch.zeros(2, device=self.device)
        batches = prepare_ahead(self._prepare, plan[self.state.step :])
        for features, words, total in batches:
            self._begin_step(len(plan), self._epochs, self.config.learning_rate)
            smoothed, entropy = self._losses(features, words)
            self._update(smoothed * (self.world.size / total))
            sums += torch.stack([self.world.sum(entropy.detach()), sums.new_tensor(total)])
            if self._end_step(len(plan), started, sums, progress):
                yield

    def _prepare(self, chosen: Indices) -> tuple[Tensor, Tensor, int]:
        """What this process does of a batch: features [B, D], words [B, T]; and how many words the whole has."""
        total = self.dataset.count_words(chosen)
        share = self._share(chosen)
        words = self.dataset.words(share if len(share) else chosen[:1])
        if not len(share):  # fewer captions than processes
            share, words = chosen[:1], np.full_like(words, PAD)
        return self._feeder.rows(self.dataset.images[share]), torch.from_numpy(words).to(self.device), total

    def _share(self, numbers: Indices) -> Indices:
        return numbers[self.world.rank :: self.world.size]

    def _train_images(self, started: float, progress: Progress) -> Iterator[None]:
        if self._reward is None:
            self._reward = Reward(self._captions, self._splits.train, self._vocabulary)
        samples = self.config.self_critical_samples
        order = np.random.default_rng((self.config.seed, self.state.epoch)).permutation(len(self._splits.train))
        plan = [order[start : start + _IMAGES_A_STEP] for start in range(0, len(order), _IMAGES_A_STEP)]
        sums = torch.zeros(2, device=self.device)
        for chosen in plan[self.state.step :]:
            self._begin_step(len(plan), self.config.self_critical_epochs, self.config.self_critical_learning_rate)
            share = self._share(chosen) if len(chosen) >= self.world.size else chosen
            features = self._feeder.rows(share)
            self._without_dropout()
            sampled = sample_captions(self.decoder, features, samples=samples, max_length=self.config.max_length)
            keys = [self._splits.train[image] for image in share]
            advantages, reward = self._reward.advantages(keys, sampled)
            weighted = self._losses(features, sampled, torch.from_numpy(advantages).to(self.device))[0]
            self._update(weighted / (sampled != PAD).sum())
            rewards = reward * len(sampled) + 0 * weighted.detach()  # a loss that is not finite shows in the sum
            sums += self.world.sum(torch.stack([rewards, sums.new_tensor(len(sampled))]))
            if self._end_step(len(plan), started, sums, progress):
                yield

    def _without_dropout(self) -> None:
        """Self-critical steps follow the very network that drew the captions (with dropout in between, the reward rises
        more slowly: docs/benchmarks.md); cuDNN has gradients only for an LSTM in training mode.
        """
        self.decoder.eval()
        if self.device.type == "cuda":
            self.decoder.lstm.train()

    def _begin_step(self, steps: int, epochs: int, learning_rate: float) -> None:
        """Set the learning rate, and everything that is drawn at random in this step."""
        place = (self.state.epoch - 1 - self.state.phase_start) * steps + self.state.step
        self.state.learning_rate = learning_rate * scheduled_share(place, steps * epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = self.state.learning_rate
        numbers = (self.config.seed, self.state.epoch, self.state.step, self.world.rank)
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _update(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), self.config.clip_norm)
        self._optimizer.step()

    def _end_step(self, steps: int, started: float, sums: Tensor, progress: Progress) -> bool:
        """Count the step; every few steps look at the loss, take over `sums` since the last look, and say True."""
        state = self.state
        state.step += 1
        state.seconds = time.monotonic() - started
        if state.step % _STEPS_A_LOOK and state.step < steps:
            return False
        state.sums = [total + recent for total, recent in zip(state.sums, sums.tolist(), strict=True)]
        sums.zero_()
        self._require_finite(math.isfinite(state.sums[0]), "loss")
        progress(
            f"epoch {state.epoch} of {self.max_epochs}",
            state.step,
            steps,
            note=self._describe_progress(steps),
            left_s=self._seconds_left(steps),
        )
        return True

    def _describe_progress(self, steps: int) -> str:
        """ "loss 3.01, best CIDEr-D 0.382, 1,900 captions/s"."""
        state = self.state
        name = "loss" if state.phase == "cross entropy" else "reward"
        notes = [f"{name} {state.sums[0] / state.sums[1]:.2f}"]
        if state.history:
            notes.append(f"best CIDEr-D {state.best_cider:.3f}")
        rate = self._captions_an_epoch * state.step / steps / max(state.seconds, 1e-9)
        return ", ".join([*notes, f"{rate:,.0f} captions/s"])

    def _seconds_left(self, steps: int) -> float | None:
        """Of training, if every epoch is made; not known before the last phase."""
        state = self.state
        if state.phase == "cross entropy" and self.config.self_critical_epochs:
            return None
        steps_left = steps - state.step + steps * (self.max_epochs - state.epoch)
        return steps_left * state.seconds / state.step

    @property
    def max_epochs(self) -> int:
        """Epochs of both phases, if none is left out."""
        if self.state.phase == "self-critical":
            return self.state.phase_start + self.config.self_critical_epochs
        return self._epochs + self.config.self_critical_epochs

    @property
    def _captions_an_epoch(self) -> int:
        if self.state.phase == "self-critical":
            return len(self._splits.train) * self.config.self_critical_samples
        return len(self.dataset)
