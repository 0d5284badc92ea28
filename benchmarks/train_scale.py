"""Training from stores of Flickr8k's size, COCO's and a million rows: its rate and memory, and the ranker's size.

python benchmarks/train_scale.py [--rows 8000 113287 1000000] [--seconds 60] [--work DIR]

Rows are random, which changes no size; the network is the default one. Each image has five captions of 8 to 13 words,
which repeat n-grams about as often as Flickr8k's do; with words drawn independently, the ranker's index would have a
third fewer entries. The captions of 6,000 images, real and made, have 67,000 and 57,000 n-grams that two images share,
and 785,000 and 772,000 index entries.

Each size is its own process, which reads everything as `captionmill train` does, trains for some seconds, and writes
the model; then it makes the ranker as `train` does, but trains the matcher for one epoch, not ten: its size is the
same. "Peak memory" is that of the process, first without and then with the ranker.
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line sets it

import numpy as np
import numpy.typing as npt

from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.splits import choose_splits
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.models.bundle import model_paths, write_model
from captionmill.stages.decoding.captioner import Caption
from captionmill.stages.machine import choose_device
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.corpus import choose_vocabulary, count_words
from captionmill.stages.training.loop import end_epoch, train_on_captions
from captionmill.stages.training.reranking.build import add_ranker
from captionmill.stages.training.state import EpochResult, LoopConfig, Training

WORDS = 12_000  # those that occur often enough: 2,700 in captions of 8,000 images, 10,000 in those of COCO
CAPTIONS_AN_IMAGE = 5
LONGEST = 13  # words
USUAL = 10  # words that usually follow a word
VALIDATION = 100  # images, beside those that are trained on
_BLOCK_ROWS = 10_000


def make_data(folder: Path, images: int) -> None:
    """A store of random rows and a captions file for all of them."""
    generator = np.random.default_rng(0)
    followers = generator.choice(WORDS, (WORDS, USUAL), p=_word_chances())
    rows = images + VALIDATION
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
            words = draw_words(generator, followers, count)
            lengths = generator.integers(8, LONGEST + 1, (count, CAPTIONS_AN_IMAGE))
            for row, key in enumerate(keys):
                split = "val" if start + row < VALIDATION else "train"
                for place in range(CAPTIONS_AN_IMAGE):
                    caption = " ".join(f"word{word}" for word in words[row, place, : lengths[row, place]])
                    captions.write(f"{key},{caption},{split}\n")


def draw_words(generator: np.random.Generator, followers: npt.NDArray[np.int64], images: int) -> npt.NDArray[np.int64]:
    """Words for the captions of so many images: three of four are one of the `followers` of the word before."""
    words = generator.choice(WORDS, (images, CAPTIONS_AN_IMAGE, LONGEST), p=_word_chances())
    ranks = 1 / np.arange(1, USUAL + 1)
    usual = generator.choice(USUAL, words.shape, p=ranks / ranks.sum())
    follows = generator.random(words.shape) < 0.75
    for place in range(1, LONGEST):
        after = followers[words[..., place - 1], usual[..., place]]
        words[..., place] = np.where(follows[..., place], after, words[..., place])
    return words


def _word_chances() -> npt.NDArray[np.float64]:
    """Zipf's law, with rarer rare words: more captions have more words, as real ones do."""
    ranks = np.arange(1, WORDS + 1)
    chances = 1 / (ranks * (ranks + 2500.0))
    return np.asarray(chances / chances.sum())


class TimeIsUp(BaseException):
    """Ends a training that is measured."""


class Stopwatch:
    """Records of a training when its first look and its last one were, and writes its model."""

    def __init__(self, seconds: float, model: Path) -> None:
        self.seconds, self.model = seconds, model
        self.first_step, self.began, self.elapsed = 0, 0.0, 0.0

    def show_step(self, training: Training, steps: int) -> None:
        if not self.first_step:
            self.first_step, self.began = training.state.step, time.perf_counter()
        self.elapsed = time.perf_counter() - self.began
        if self.elapsed >= self.seconds:
            raise TimeIsUp
        if training.state.step == steps:
            raise SystemExit("an epoch is over before these --seconds: pass fewer, or more --rows")

    def end_epoch(self, training: Training, result: EpochResult, captions: Mapping[str, Caption]) -> None:
        write_model(self.model, training.bundle(result, captions))

    wants_first_score = False

    def show_first_score(self, *_: object) -> None:
        """Never called."""

    begin_self_critical = show_first_score


def run_training(folder: Path, model: Path, seconds: float) -> str:
    """Train, write the model, give it its ranker -> a row of the table."""
    started = time.perf_counter()
    store = FeatureStore.open(folder / "features.h5")
    annotations = read_annotations(folder / "captions.csv")
    splits = choose_splits(annotations, store.keys, seed=0)
    vocabulary = choose_vocabulary(count_words(annotations.captions, splits.train), min_count=5)
    device, loop = choose_device("auto"), LoopConfig(long_epoch=sys.maxsize)  # without a first score
    config = TrainConfig(matcher_epochs=1)
    training = Training(store, annotations.captions, splits, vocabulary, config, device=device, loop=loop)
    del annotations
    stopwatch = Stopwatch(seconds, model)
    with contextlib.suppress(TimeIsUp):
        train_on_captions(training, stopwatch)
    ready_s = stopwatch.began - started
    rate = (training.state.step - stopwatch.first_step) * training.config.batch_size / stopwatch.elapsed
    trained_gb = peak_memory_gb()
    end_epoch(training, stopwatch)
    model_mb = size_mb(model)
    times = [time.perf_counter()]

    def show_progress(label: str, done: int, *_: object, **__: object) -> None:
        if label == "re-ranking" and not done:  # the matcher is trained
            times.append(time.perf_counter())

    add_ranker(training, model, show_progress)
    matcher_s, rest_s = np.diff([*times, time.perf_counter()])
    return (
        f"| {len(splits.train):,} | {len(training.dataset):,} | {len(vocabulary):,} | {rate:,.0f} | {ready_s:.1f} "
        f"| {trained_gb:.2f} | {peak_memory_gb():.2f} | {matcher_s:.0f} + {rest_s:.0f} "
        f"| {model_mb:.1f} | {size_mb(model) - model_mb:.1f} |"
    )


def peak_memory_gb() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def size_mb(model: Path) -> float:
    """The size of a model's files on disk."""
    return sum(path.stat().st_size for path in model_paths(model)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8_000, 113_287, 1_000_000], help="training images")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--work", type=Path, help="keeps the data, for a second run")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        with tempfile.TemporaryDirectory() as name:
            print(run_training(arguments.run, Path(name), arguments.seconds), flush=True)
        return
    columns = (
        *("training images", "captions", "words", "captions/s", "seconds to the first step", "peak memory, GB"),
        *("with the ranker, GB", "matcher, an epoch + rest of the ranker, s", "model without ranker, MB", "ranker, MB"),
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for rows in arguments.rows:
            folder = (arguments.work or Path(name)) / str(rows)
            if not (folder / "made").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make_data(folder, rows)
                (folder / "made").touch()
            words = [sys.executable, __file__, "--run", str(folder), "--seconds", str(arguments.seconds)]
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
