"""Training from a store of a million rows and five million captions: memory, and the rate against a small run's.

python benchmarks/train_scale.py [--rows 1000000] [--small-rows 8000] [--seconds 60] [--work DIR]

Rows are random and captions are made of Zipf-distributed words, five per image, of 10 to 14 words; the network is the
default one. Each run is its own process, which reads everything as `captionmill train` does, trains for some
seconds and says how fast, and how much memory it took at most, the network included.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line sets it

import numpy as np

from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.splits import choose_splits
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.stages.machine import choose_device
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.corpus import choose_vocabulary, count_words
from captionmill.stages.training.loop import train_on_captions
from captionmill.stages.training.state import LoopConfig, Training

WORDS = 2500
CAPTIONS_AN_IMAGE = 5
VALIDATION = 100  # images
_BLOCK_ROWS = 10_000


def make_data(folder: Path, rows: int) -> None:
    """A store of random rows and a captions file for all of them."""
    generator = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(WORDS)])
    chances = 1 / np.arange(1, WORDS + 1)
    chances /= chances.sum()
    spec = FeatureSpec("resnet50", "none", "0" * 64, "crop", 224, 256)
    path = folder / "features.h5"
    with (
        FeatureWriter(path, spec, dtype="float16", made_by={}) as writer,
        (folder / "captions.csv").open("w") as captions,
    ):
        captions.write("image,caption,split\n")
        for start in range(0, rows, _BLOCK_ROWS):
            count = min(_BLOCK_ROWS, rows - start)
            keys = [f"folder/{number:09d}.jpg" for number in range(start, start + count)]
            writer.add(keys, generator.random((count, spec.feature_dim), dtype=np.float32))
            chosen = generator.choice(words, (count, CAPTIONS_AN_IMAGE, 14), p=chances)
            lengths = generator.integers(10, 15, (count, CAPTIONS_AN_IMAGE))
            for row, key in enumerate(keys):
                split = "val" if start + row < VALIDATION else "train"
                for place in range(CAPTIONS_AN_IMAGE):
                    captions.write(f"{key},{' '.join(chosen[row, place, : lengths[row, place]])},{split}\n")


class TimeIsUp(BaseException):
    """Ends a training that is measured."""


class Stopwatch:
    """Records nothing of a training but when its first look and its last one were."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.first_step, self.began, self.elapsed = 0, 0.0, 0.0

    def show_step(self, training: Training, steps: int) -> None:
        if not self.first_step:
            self.first_step, self.began = training.state.step, time.perf_counter()
        self.elapsed = time.perf_counter() - self.began
        if self.elapsed >= self.seconds:
            raise TimeIsUp
        if training.state.step == steps:
            raise SystemExit("an epoch is over before these --seconds: pass fewer, or more --small-rows")

    def end_epoch(self, *_: object, **__: object) -> None:
        raise TimeIsUp

    wants_first_score = False
    begin_self_critical = show_first_score = end_epoch


def run_training(folder: Path, seconds: float) -> None:
    """Print captions/s, peak memory in GB, and seconds until the first step."""
    started = time.perf_counter()
    store = FeatureStore.open(folder / "features.h5")
    annotations = read_annotations(folder / "captions.csv")
    splits = choose_splits(annotations, store.keys, seed=0)
    vocabulary = choose_vocabulary(count_words(annotations.captions, splits.train), min_count=5)
    device, loop = choose_device("auto"), LoopConfig(long_epoch=sys.maxsize)  # without a first score
    training = Training(store, annotations.captions, splits, vocabulary, TrainConfig(), device=device, loop=loop)
    del annotations
    stopwatch = Stopwatch(seconds)
    try:
        train_on_captions(training, stopwatch)
    except TimeIsUp:
        ready_s = stopwatch.began - started
    rate = (training.state.step - stopwatch.first_step) * training.config.batch_size / stopwatch.elapsed
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{rate:.1f} {peak_gb:.3f} {ready_s:.1f} {len(training.dataset)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--small-rows", type=int, default=8_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--work", type=Path, help="keeps the data, for a second run")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_training(arguments.run, arguments.seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        print("| rows | captions | captions/s | peak memory, GB | seconds to the first step |\n|---|---|---|---|---|")
        for rows in (arguments.small_rows, arguments.rows):
            folder = (arguments.work or Path(name)) / str(rows)
            if not (folder / "made").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make_data(folder, rows)
                (folder / "made").touch()
            words = [sys.executable, __file__, "--run", str(folder), "--seconds", str(arguments.seconds)]
            output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            rate, peak_gb, ready_s, captions = output.split()
            print(
                f"| {rows:,} | {int(captions):,} | {float(rate):,.0f} | {float(peak_gb):.2f} | {ready_s} |", flush=True
            )


if __name__ == "__main__":
    main()
