"""The training loop: one function per phase, in the order of time.

Shapes: B captions of a step (self-critical: B images, each with S sampled captions), T words of the longest of them,
N words of all of them (in the logits padded to a multiple of 32), D features per image, V words of the vocabulary. With
several processes, each has its share of B.
"""

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from captionmill.data.captions.examples import Indices
from captionmill.data.captions.vocabulary import PAD
from captionmill.data.errors import TrainingError
from captionmill.stages.decoding.captioner import Caption, CaptionFinder, decode_rows
from captionmill.stages.decoding.decoder import choose_steps
from captionmill.stages.training.choice import is_best
from captionmill.stages.training.features import prepare_ahead
from captionmill.stages.training.losses import (
    LENGTH_GROUPS,
    cross_entropy,
    distillation_loss,
    weighted_cross_entropy,
)
from captionmill.stages.training.self_critical import Reward, sample_captions
from captionmill.stages.training.state import EpochResult, Training, learning_rate_factor

_FIRST_SCORE_IMAGES = 500  # of validation, at most


class Recorder(Protocol):
    """Shows, saves and draws a training; with several processes, only the first has its epochs recorded."""

    def show_step(self, training: Training, steps: int) -> None:
        """Called every few of an epoch's `steps`, where a checkpoint is possible: show the loss, sometimes save one."""

    @property
    def wants_first_score(self) -> bool:
        """Whether anybody looks at the validation CIDEr-D after a third of the first epoch."""

    def show_first_score(self, val_cider: float) -> None:
        """Show it."""

    def end_epoch(self, training: Training, result: EpochResult, captions: Mapping[str, Caption]) -> None:
        """Keep the weights if they are best, write the history, save a checkpoint; `captions`: of validation."""

    def begin_self_critical(self, training: Training) -> None:
        """Start the second phase from the best weights that were kept, and save a checkpoint."""


def run_training(training: Training, recorder: Recorder) -> None:
    """Run both phases, or the rest of them."""
    if training.state.phase == "cross entropy":
        train_on_captions(training, recorder)
        if training.config.self_critical_epochs:
            recorder.begin_self_critical(training)
    if training.state.phase == "self-critical":
        train_on_rewards(training, recorder)


def train_on_captions(training: Training, recorder: Recorder) -> None:
    """Phase one, cross entropy: make each word of the reference captions likely after the words before it."""
    config, state, world, optimizer = training.config, training.state, training.world, training.optimizer
    while not training.phase_is_over:
        started = time.monotonic() - state.seconds
        plan = training.dataset.plan_epoch(config.batch_size, training.epoch_generator())
        sums = torch.zeros(2, device=training.device)  # cross entropy and words, since the last check
        training.decoder.train()
        views = training.epoch_views(len(training.dataset))
        batches = prepare_ahead(functools.partial(prepare_batch, training, views), plan[state.step :])
        for features, words, word_count in batches:  # [B, D], [B, T], words of all processes
            seed_step(training)  # what dropout draws
            set_learning_rate(training, training.peak_learning_rate, len(plan), training.first_epochs)
            logits, targets, _ = training.network(features, words)  # [N, V], [N]
            loss, entropy = cross_entropy(logits, targets, label_smoothing=config.label_smoothing)  # sums over N
            if training.teachers:
                taught = distillation_loss(logits, training.teachers.probabilities(features, words), len(targets))
                loss = (1 - config.teacher_weight) * loss + config.teacher_weight * taught
            del logits  # by far the largest tensor of a step
            optimizer.zero_grad(set_to_none=True)
            (loss * (world.size / word_count)).backward()  # the mean per word, since processes average their gradients
            nn.utils.clip_grad_norm_(training.decoder.parameters(), config.clip_norm)
            optimizer.step()
            sums += torch.stack([world.sum(entropy.detach()), sums.new_tensor(word_count)])
            if count_step(training, len(plan), started, sums):
                recorder.show_step(training, len(plan))  # now and then a checkpoint
            if is_time_for_first_score(training, len(plan)):
                show_first_score(training, recorder)
                started += training.scoring_seconds
        end_epoch(training, recorder)


def train_on_rewards(training: Training, recorder: Recorder) -> None:
    """Phase two, self-critical: make sampled captions more likely if they have a higher CIDEr-D (`self_critical`)."""
    config, state, world, optimizer = training.config, training.state, training.world, training.optimizer
    rewards = Reward(training.captions, training.splits.train, training.vocabulary)
    while not training.phase_is_over:
        started = time.monotonic() - state.seconds
        plan = plan_images(training)
        views = training.epoch_views(len(training.splits.train))
        sums = torch.zeros(2, device=training.device)  # rewards and sampled captions, since the last check
        for chosen in plan[state.step :]:
            seed_step(training)  # what the samples are drawn from
            set_learning_rate(training, config.self_critical_learning_rate, len(plan), config.self_critical_epochs)
            images = chosen[world.rank :: world.size] if len(chosen) >= world.size else chosen  # [B]
            features = training.feeder.rows(images, views[torch.from_numpy(images)])  # [B, D]
            stop_dropout(training)
            sampled = sample_captions(
                training.decoder, features, samples=config.self_critical_samples, max_length=training.length
            )  # [B * S, T]
            keys = [training.splits.train[image] for image in images]
            advantages, reward = rewards.advantages(keys, sampled)  # [B * S], and the mean over them
            logits, targets, rows = training.network(features, sampled, LENGTH_GROUPS)  # [N, V], [N], [N]
            weights = torch.from_numpy(advantages).to(training.device)[rows]  # [N]
            loss = weighted_cross_entropy(logits, targets, weights)  # the sum over N
            del logits
            optimizer.zero_grad(set_to_none=True)
            (loss / (sampled != PAD).sum()).backward()
            nn.utils.clip_grad_norm_(training.decoder.parameters(), config.clip_norm)
            optimizer.step()
            earned = reward * len(sampled) + 0 * loss.detach()  # a loss that is not finite makes the sum so too
            sums += world.sum(torch.stack([earned, sums.new_tensor(len(sampled))]))
            if count_step(training, len(plan), started, sums):
                recorder.show_step(training, len(plan))  # now and then a checkpoint
        end_epoch(training, recorder)


def prepare_batch(training: Training, views: Tensor, chosen: Indices) -> tuple[Tensor, Tensor, int]:
    """Features [B, D] and words [B, T] of this process's share of the captions `chosen`.

    The features are those of the view of the image that `views` names for each of all captions.

    The third value is the number of words to predict in all of `chosen`.
    """
    world, dataset = training.world, training.dataset
    share = chosen[world.rank :: world.size]
    words = dataset.words(share if len(share) else chosen[:1])
    if not len(share):  # fewer captions than processes
        share, words = chosen[:1], np.full_like(words, PAD)
    features = training.feeder.rows(dataset.images[share], views[torch.from_numpy(share)])
    return features, torch.from_numpy(words).to(training.device), dataset.count_words(chosen)


def plan_images(training: Training) -> list[Indices]:
    """The indices of the training images in this epoch's order, divided into steps."""
    order, size = training.epoch_generator().permutation(len(training.splits.train)), training.loop.images_per_step
    return [order[start : start + size] for start in range(0, len(order), size)]


def seed_step(training: Training) -> None:
    """Seed torch, so that all random numbers of this step depend only on the seed, the step and the process."""
    numbers = (training.config.seed, training.state.epoch, training.state.step, training.world.rank)
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def set_learning_rate(training: Training, peak: float, steps: int, epochs: int) -> None:
    """Set the learning rate of this step by the schedule of a phase of `epochs` with `steps` each."""
    state = training.state
    step = (state.epoch - 1 - state.phase_start) * steps + state.step
    state.learning_rate = peak * learning_rate_factor(step, steps * epochs)
    for group in training.optimizer.param_groups:
        group["lr"] = state.learning_rate


def stop_dropout(training: Training) -> None:
    """Turn dropout off, so that self-critical steps use the same network that drew the captions.

    cuDNN has gradients only for an LSTM in training mode.
    """
    training.decoder.eval()
    if training.device.type == "cuda":
        training.decoder.lstm.train()


def count_step(training: Training, steps: int, started: float, sums: Tensor) -> bool:
    """Count the step; every few steps check the loss, add `sums` to the epoch's, and return True."""
    state = training.state
    state.step += 1
    state.seconds = time.monotonic() - started
    if state.step % training.loop.steps_per_check and state.step < steps:
        return False
    state.sums = [total + recent for total, recent in zip(state.sums, sums.tolist(), strict=True)]
    sums.zero_()
    require_finite(training, math.isfinite(state.sums[0]), "loss")
    return True


def is_time_for_first_score(training: Training, steps: int) -> bool:
    """Whether a third of a long first epoch of `steps` has just been done."""
    return training.state.epoch == 1 and training.state.step == steps // 3 and steps >= training.loop.long_epoch


def show_first_score(training: Training, recorder: Recorder) -> None:
    """Decode validation images long before the epoch ends, so that a mistake shows early.

    The training continues as if it had not happened.
    """
    if not any(training.world.gather([recorder.wants_first_score])):
        return
    started = time.monotonic()
    val_cider = training.measure_cider(decode_validation(training, _FIRST_SCORE_IMAGES))
    if training.world.is_first:
        recorder.show_first_score(val_cider)
    training.decoder.train()
    training.scoring_seconds = time.monotonic() - started


def end_epoch(training: Training, recorder: Recorder) -> None:
    """Validate by decoding, advance to the next epoch, and let `recorder` record this one."""
    state, trained_s, started = training.state, training.state.seconds, time.monotonic()
    is_finite = all(bool(tensor.isfinite().all()) for tensor in training.decoder.parameters())
    require_finite(training, is_finite, "network")
    captions = decode_validation(training)
    val_cider = training.measure_cider(captions)
    val_loss = measure_validation(training)
    result = EpochResult(
        epoch=state.epoch,
        phase=state.phase,
        loss=state.sums[0] / state.sums[1],
        val_cider=val_cider,
        captions_per_s=training.captions_per_epoch / max(trained_s, 1e-9),
        duration_s=trained_s + training.scoring_seconds + time.monotonic() - started,
        learning_rate=state.learning_rate,
        best=is_best(state.history, val_cider, val_loss),
        val_loss=val_loss,
    )
    state.history.append(asdict(result))
    state.epoch += 1
    state.step, state.sums, state.seconds, training.scoring_seconds = 0, [0.0, 0.0], 0.0, 0.0
    if training.world.is_first:
        recorder.end_epoch(training, result, captions)
    training.world.wait()


def decode_validation(training: Training, most: int | None = None) -> dict[str, Caption]:
    """The captions of the validation images, or of the first `most`, each process decoding its share."""
    val = training.splits.val[:most]
    steps = choose_steps(training.decoder)
    finder = CaptionFinder(steps, training.vocabulary, training.config.search, training.rankers)
    captions = dict(training.world.gather(list(decode_rows(finder, training.store, training.world.own(val)))))
    return {key: captions[key] for key in val}


@torch.no_grad()
def measure_validation(training: Training) -> float:
    """The mean cross entropy per word of the validation captions, in nats; each process measures its share."""
    dataset, world = training.val_dataset, training.world
    training.decoder.eval()
    sums = torch.zeros(2, device=training.device)  # cross entropy and words
    for chosen in world.own(dataset.batches_by_length(training.config.batch_size)):
        features = training.val_feeder.rows(dataset.images[chosen])  # [B, D]
        words = torch.from_numpy(dataset.words(chosen)).to(training.device)  # [B, T]
        logits, targets, _ = training.word_logits(features, words)  # [N, V], [N]
        sums += torch.stack([cross_entropy(logits, targets)[1], sums.new_tensor(len(targets))])
    entropy, count = world.sum(sums).tolist()
    return float(entropy / max(count, 1))


def require_finite(training: Training, is_finite: bool, what: str) -> None:
    """Raise TrainingError, with advice, if `what` is not finite."""
    if not is_finite:
        state = training.state
        rate = "self_critical_learning_rate" if state.phase == "self-critical" else "learning_rate"
        raise TrainingError(f"the {what} is not finite in epoch {state.epoch}; pass a lower `{rate}`, and `restart`")
