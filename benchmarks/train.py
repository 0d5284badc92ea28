"""Training speed: the loop against the one that tutorials write, and against its own network fed from memory.

python benchmarks/train.py FEATURES FLICKR8K [--seconds 30]

FEATURES is the store that benchmarks/flickr8k.py makes, FLICKR8K as there. All three train the same kind of network (an
LSTM of 512 numbers whose initial state is the image) on the same captions, each for some seconds, in one process. The
plain trainer is fp32, reads HDF5 row by row through a DataLoader of two workers, pads each batch of shuffled captions
to its longest and scores padding too. The limit is what the matrix products of the default network, forward and
backward, would take at the rate of large ones. Last, `captionmill train` runs until its first validation score.
Nothing else should run on the machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line sets it

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from captionmill.data.captions.references import read_annotations, read_split_list
from captionmill.data.captions.splits import choose_splits
from captionmill.data.captions.vocabulary import END, PAD, START, Vocabulary
from captionmill.data.features.store import FeatureStore
from captionmill.stages.machine import choose_device, choose_training_dtype
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.corpus import choose_vocabulary, count_words
from captionmill.stages.training.loop import prepare_batch, seed_step, train_on_captions
from captionmill.stages.training.losses import cross_entropy
from captionmill.stages.training.state import LoopConfig, Training

FIRST_SCORE = "a third of epoch 1"  # what `train` prints of it
_WARM_UP = 2  # steps, or looks of the loop
_PLAIN_BATCH_SIZE = 128  # captions per step, of the same network in captionmill too


class PlainDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Captions as a tutorial reads them: one HDF5 access an item."""

    def __init__(self, path: Path, rows: Sequence[int], captions: Sequence[list[int]]) -> None:
        self.path, self.rows, self.captions = path, rows, captions
        self.file: h5py.File | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.file is None:  # each worker opens the file for itself
            self.file = h5py.File(self.path, "r")
        row = torch.from_numpy(self.file["features"][self.rows[index]]).float()
        return row, torch.tensor([START, *self.captions[index], END])


def collate(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    rows, words = zip(*items, strict=True)
    return torch.stack(rows), pad_sequence(list(words), batch_first=True, padding_value=PAD)


class PlainDecoder(nn.Module):
    """The network as a tutorial writes it."""

    def __init__(self, vocab_size: int, size: int) -> None:
        super().__init__()
        self.to_hidden, self.to_cell = nn.Linear(2048, size), nn.Linear(2048, size)
        self.embedding = nn.Embedding(vocab_size, size)
        self.lstm = nn.LSTM(size, size, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.to_logits = nn.Linear(size, vocab_size)

    def forward(self, rows: Tensor, words: Tensor) -> Tensor:
        state = torch.tanh(self.to_hidden(rows)).unsqueeze(0), torch.tanh(self.to_cell(rows)).unsqueeze(0)
        outputs, _ = self.lstm(self.dropout(self.embedding(words)), state)
        logits: Tensor = self.to_logits(self.dropout(outputs))
        return logits


def run_plain(
    store: FeatureStore, captions: dict[str, tuple[str, ...]], keys: list[str], vocabulary: Vocabulary, size: int
) -> Iterator[int]:
    """The number of captions in each step of the plain trainer."""
    device = choose_device("auto")
    pairs = [(store.position(key), vocabulary.encode(caption)[:20]) for key in keys for caption in captions[key]]
    dataset = PlainDataset(store.path, [row for row, _ in pairs], [words for _, words in pairs])
    loader = torch.utils.data.DataLoader(dataset, _PLAIN_BATCH_SIZE, shuffle=True, num_workers=2, collate_fn=collate)
    network = PlainDecoder(len(vocabulary), size).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    while True:
        for rows, padded in loader:
            words = padded.to(device)
            logits = network(rows.to(device), words[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=PAD)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            loss.item()
            yield len(words)


class TimeIsUp(BaseException):
    """Ends a training that is measured."""


class Stopwatch:
    """Records nothing of a training but its captions; ends it when its time, after a warm-up, or an epoch is over."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.looks, self.captions, self.elapsed = seconds, 0, 0, 0.0
        self.step, self.started = 0, 0.0

    def show_step(self, training: Training, steps: int) -> None:
        self.looks += 1
        if self.looks > _WARM_UP:
            self.captions += (training.state.step - self.step) * training.config.batch_size
            self.elapsed = time.perf_counter() - self.started
        else:
            self.started = time.perf_counter()
        self.step = training.state.step
        if self.elapsed >= self.seconds or training.state.step == steps:
            raise TimeIsUp

    def end_epoch(self, *_: object, **__: object) -> None:
        raise TimeIsUp

    wants_first_score = False
    begin_self_critical = show_first_score = end_epoch


def measure_training(training: Training, seconds: float) -> float:
    """Captions/s of the loop, over one epoch after another, without validation."""
    captions, elapsed = 0, 0.0
    while elapsed < seconds:
        training.state.step = 0
        stopwatch = Stopwatch(seconds - elapsed)
        try:
            train_on_captions(training, stopwatch)
        except TimeIsUp:
            if not stopwatch.elapsed:
                raise SystemExit("an epoch is over before anything is measured: pass more captions") from None
            captions, elapsed = captions + stopwatch.captions, elapsed + stopwatch.elapsed
    return captions / elapsed


def run_from_memory(training: Training) -> Iterator[int]:
    """The network and optimizer of a training, and nothing else: batches that were made before, no look at anything."""
    plan = training.dataset.plan_epoch(training.config.batch_size, np.random.default_rng(0))
    views = training.epoch_views(len(training.dataset))
    batches = [prepare_batch(training, views, chosen) for chosen in plan]
    training.decoder.train()
    seed_step(training)
    while True:
        for features, words, word_count in batches:
            logits, targets, _ = training.network(features, words)
            loss, _ = cross_entropy(logits, targets, label_smoothing=training.config.label_smoothing)
            training.optimizer.zero_grad(set_to_none=True)
            (loss / word_count).backward()
            nn.utils.clip_grad_norm_(training.decoder.parameters(), training.config.clip_norm)
            training.optimizer.step()
            yield len(words)


def measure(steps: Iterator[int], seconds: float) -> float:
    """Captions/s, after a warm-up."""
    for _ in range(_WARM_UP):
        next(steps)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += next(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


def measure_limit(training: Training) -> float:
    """Captions/s if a step were nothing but its matrix products, each as fast as those of 4096 x 4096 numbers."""
    config, dataset = training.decoder.config, training.dataset
    size = 4096
    left = right = torch.rand(size, size, device=training.device).to(choose_training_dtype(training.device))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        (left @ right)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    rate = 2 * size**3 / min(seconds)
    of_word = 4 * config.hidden_dim * (config.embed_dim + config.hidden_dim)  # the LSTM's multiplications
    of_word += config.embed_dim * (config.hidden_dim + config.vocab_size)
    of_caption = 2 * config.feature_dim * config.hidden_dim
    words = dataset.count_words(np.arange(len(dataset))) / len(dataset)
    operations = 3 * 2 * (words * of_word + of_caption)  # of a caption; backward takes twice as many as forward
    print(f"\nlarge matrix products: {rate / 1e12:.2f} TFLOP/s; a caption: {operations / 1e9:.2f} GFLOP")
    return rate / operations


def measure_first_score(features: Path, flickr8k: Path) -> float:
    """Seconds from the start of `captionmill train`, with the default settings, to its first validation score."""
    lists = (
        "--train-list",
        f"{flickr8k}/Flickr_8k.trainImages.txt",
        "--val-list",
        f"{flickr8k}/Flickr_8k.devImages.txt",
    )
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", str(features), "--captions", str(flickr8k / "Flickr8k.token.txt"), *lists]
        started = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "captionmill", *words, "--output", f"{folder}/model"],
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            line = next((line for line in process.stdout if FIRST_SCORE in line), None)
            seconds = time.perf_counter() - started
            process.terminate()
            process.communicate()
    if line is None:
        raise SystemExit("`captionmill train` showed no first score")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument(
        "--rounds", type=int, default=2, help="times that each is measured, in turn; the fastest counts"
    )
    arguments = parser.parse_args()
    store = FeatureStore.open(arguments.features)
    annotations = read_annotations(arguments.flickr8k / "Flickr8k.token.txt")
    lists = [read_split_list(arguments.flickr8k / f"Flickr_8k.{name}Images.txt") for name in ("train", "dev")]
    splits = choose_splits(annotations, store.keys, train_list=lists[0], val_list=lists[1], seed=0)
    vocabulary = choose_vocabulary(count_words(annotations.captions, splits.train), min_count=5)

    def build(config: TrainConfig) -> Training:
        device, loop = choose_device("auto"), LoopConfig(long_epoch=sys.maxsize)  # without a first score
        return Training(store, annotations.captions, splits, vocabulary, config, device=device, loop=loop)

    same = TrainConfig(hidden_dim=512, tie_weights=False, label_smoothing=0.0, batch_size=_PLAIN_BATCH_SIZE)
    plain_steps = run_plain(store, dict(annotations.captions), splits.train, vocabulary, 512)
    loops = {
        "plain trainer, 512": partial(measure, plain_steps),
        "captionmill, 512": partial(measure_training, build(same)),
        "its network from memory, 512": partial(measure, run_from_memory(build(same))),
        "captionmill, default": partial(measure_training, build(TrainConfig())),
        "its network from memory, default": partial(measure, run_from_memory(build(TrainConfig()))),
    }
    rates = dict.fromkeys(loops, 0.0)
    for _ in range(arguments.rounds):
        for name, measured in loops.items():
            rates[name] = max(rates[name], measured(arguments.seconds))
    plain = rates["plain trainer, 512"]
    print("| | captions/s | x plain |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / plain:.1f} |")
    for size in ("512", "default"):
        share = rates[f"captionmill, {size}"] / rates[f"its network from memory, {size}"]
        print(f"\ncaptionmill, {size}: {share:.2f} of its network's own rate")
    limit = measure_limit(build(TrainConfig()))
    print(
        f"limit of the default network: {limit:,.0f} captions/s, of which {rates['captionmill, default'] / limit:.2f}"
    )
    print(f"\nfirst validation score after {measure_first_score(arguments.features, arguments.flickr8k):.1f} s")


if __name__ == "__main__":
    main()
