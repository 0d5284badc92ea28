"""Training of the matcher: each caption's cosine with its own image is made higher than with the others of a batch.

The loss is the symmetric cross entropy of Radford et al. 2021, "Learning transferable visual models from natural
language supervision" (CLIP); other captions of the same image are left out of a caption's negatives.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from captionmill.data.captions.examples import Indices
from captionmill.data.captions.vocabulary import PAD
from captionmill.data.errors import TrainingError
from captionmill.data.progress import Progress
from captionmill.stages.machine import choose_training_dtype
from captionmill.stages.ranking.matcher import Matcher, MatcherConfig
from captionmill.stages.ranking.ngrams import FlatCaptions
from captionmill.stages.training.checkpoint import (
    MATCHER_NAME,
    Checkpoint,
    pack_tensors,
    read_checkpoint,
    unpack_tensors,
    write_checkpoint,
)
from captionmill.stages.training.features import prepare_ahead
from captionmill.stages.training.reranking.network import MatcherNetwork
from captionmill.stages.training.state import learning_rate_factor

BATCH_SIZE = 384  # captions
TEMPERATURE = 0.07
PEAK_LEARNING_RATE = 2e-3
CLIP_NORM = 2.0


class MatcherTraining:
    """A matcher in training; weights, optimizer and `epoch` change.

    All random numbers depend only on the seed and the epoch, so a training that is resumed from a checkpoint, which is
    written after each epoch, ends with the same bits on the same CPU.
    """

    def __init__(
        self,
        config: MatcherConfig,
        captions: FlatCaptions,
        images: Indices,
        rows: Callable[[Indices, torch.Generator], Tensor],
        *,
        scale: tuple[Tensor, Tensor],
        seed: int,
        device: torch.device,
    ) -> None:
        """Train on `captions`, each of the image that `images` [C] names, whose features `rows` gives [B, D]; of
        several views each row is of one that the generator draws. Another thread calls it.

        `scale` is the mean and the deviation of the features, each [D].
        """
        torch.manual_seed(seed)
        self.matcher = MatcherNetwork(config)
        self.matcher.feature_mean.copy_(scale[0])
        self.matcher.feature_std.copy_(scale[1])
        self.matcher.to(device)
        self.epoch = 0
        """Epochs that are done."""
        self._captions, self._images, self._rows = captions, images, rows
        self._seed, self._device = seed, device
        self._optimizer = torch.optim.AdamW(
            self.matcher.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type != "mps"
        )

    def run(self, epochs: int, work_dir: Path, progress: Progress) -> Matcher:
        """Train for the rest of `epochs`, with a checkpoint in `work_dir` after each."""
        if (found := read_checkpoint(work_dir, MATCHER_NAME)) is not None:
            self.epoch = int(found.state["epoch"])
            unpack_tensors(found.tensors, self.matcher, self._optimizer)
        steps = -(-len(self._captions) // BATCH_SIZE)
        started, first = time.monotonic(), self.epoch * steps
        while self.epoch < epochs:
            self.matcher.train()
            order = np.random.default_rng((self._seed, self.epoch)).permutation(len(self._captions))
            done = self.epoch * steps
            plan = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
            for batch in prepare_ahead(self._prepare, list(enumerate(plan, done))):
                torch.manual_seed(self._seed_of(done))  # what dropout draws
                for group in self._optimizer.param_groups:
                    group["lr"] = PEAK_LEARNING_RATE * learning_rate_factor(done, steps * epochs)
                loss = self._step(*batch)
                done += 1
                left_s = (time.monotonic() - started) / (done - first) * (steps * epochs - done)
                progress("matcher", done, steps * epochs, left_s=left_s)
            if not math.isfinite(loss.item()):
                raise TrainingError("the loss of the matcher is not finite; pass `matcher_epochs` 0 to train without")
            self.epoch += 1
            state = Checkpoint({"epoch": self.epoch}, pack_tensors(self.matcher, self._optimizer))
            write_checkpoint(work_dir, state, MATCHER_NAME)
        return self.matcher.trained()

    def _prepare(self, job: tuple[int, Indices]) -> tuple[Tensor, Tensor, Tensor]:
        """For a step, counted from 0, on so many captions: features [I, D], words [B, T], and each one's image [B]."""
        step, chosen = job
        images, owners = np.unique(self._images[chosen], return_inverse=True)  # [I], [B]
        captions = [torch.from_numpy(words.astype(np.int64)) for words in self._captions.take(chosen).split()]
        words = pad_sequence(captions, batch_first=True, padding_value=PAD).to(self._device)  # [B, T]
        rows = self._rows(images, torch.Generator().manual_seed(self._seed_of(step)))  # [I, D]
        return rows, words, torch.from_numpy(owners).to(self._device)

    def _seed_of(self, step: int) -> int:
        return int(np.random.SeedSequence((self._seed, step)).generate_state(1)[0])

    def _step(self, rows: Tensor, words: Tensor, own: Tensor) -> Tensor:
        """One step on what `_prepare` returns -> the loss."""
        dtype = choose_training_dtype(self._device)
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            image_vectors = self.matcher.embed_images(rows)  # [I, M]
            caption_vectors = self.matcher(words)  # [B, M]
        logits = image_vectors.float() @ caption_vectors.float().t() / TEMPERATURE  # [I, B]
        is_other = own.unsqueeze(1) == own  # [B, B]: captions of the same image ...
        is_other.fill_diagonal_(False)  # ... but not the caption itself
        of_images = logits[own].masked_fill(is_other, -math.inf)  # [B, B]
        loss = F.cross_entropy(logits.t(), own) + F.cross_entropy(
            of_images, torch.arange(len(own), device=self._device)
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.matcher.parameters(), CLIP_NORM)
        self._optimizer.step()
        return loss.detach()
