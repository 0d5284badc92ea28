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

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

import numpy as np

from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.splits import choose_splits
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.stages.machine import choose_device
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.train import build_vocabulary
from captionmill.stages.training.trainer import Trainer

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


def run_training(folder: Path, seconds: float) -> None:
    """Print captions/s, peak memory in GB, and seconds until the first step."""
    started = time.perf_counter()
    store = FeatureStore.open(folder / "features.h5")
    annotations = read_annotations(folder / "captions.csv")
    splits = choose_splits(annotations, store.keys, seed=0)
    vocabulary = build_vocabulary(annotations.captions, splits.train, min_count=5)
    trainer = Trainer(store, annotations.captions, splits, vocabulary, TrainConfig(), device=choose_device("auto"))
    del annotations
    steps = trainer.train_epoch()
    next(steps)
    ready_s = time.perf_counter() - started
    first, began = trainer.state.step, time.perf_counter()
    while time.perf_counter() - began < seconds:
        if next(steps, "over") == "over":
            raise SystemExit("an epoch is over before these --seconds: pass fewer, or more --small-rows")
    rate = (trainer.state.step - first) * trainer.config.batch_size / (time.perf_counter() - began)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{rate:.1f} {peak_gb:.3f} {ready_s:.1f} {len(trainer.dataset)}")


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
