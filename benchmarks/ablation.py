"""What each choice of the decoder and its training does for validation CIDEr-D on Flickr8k, several seeds per row.

python benchmarks/ablation.py FEATURES FLICKR8K --work DIR [--views STORE ...] [--seeds 3] [--jobs 1] [--rows ...]

FEATURES is a store that benchmarks/flickr8k.py makes, FLICKR8K as there. Each row changes the default only in what its
name says; each of the further stores, made with `--views`, is a row by its name. The 1,000 dev images score it, by the
best epoch's captions and by those that the finished model re-ranks by consensus: a choice must not be made on the test
images. The teachers are the models of the row "default", the only ones with a matcher. A second run resumes: DIR keeps
each training's scores, and these models.
"""

import argparse
import csv
import json
import random
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from photos import run_command

Scores = tuple[float, float]
"""Validation CIDEr-D of a training's best epoch, and of the captions that its model re-ranks."""

FEW = 750  # of the 6,000 training images, drawn at random, the same for each seed
ROWS: dict[str, list[object]] = {
    "default": [],
    "own output weights": ["--no-tie-weights"],
    "embedding 256": ["--embed-dim", 256],
    "forget bias 0": ["--forget-bias", 0],
    f"{FEW} images": [],
    "teachers": [],
    "teachers, not their captions": ["--no-teacher-captions"],
}


class Runs:
    """Trains, and keeps each training's scores in a file."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.flickr8k, self.work, self.seeds = arguments.flickr8k, arguments.work, range(arguments.seeds)
        self.stores = {"default": arguments.features, **{store.stem: store for store in arguments.views}}
        self.work.mkdir(parents=True, exist_ok=True)

    def model(self, row: str, seed: int) -> Path:
        path: Path = self.work / f"{row.replace(' ', '-').replace(',', '')}-{seed}"
        return path

    def options(self, row: str) -> list[object]:
        """The options of `train` for a row."""
        words = list(ROWS.get(row, []))
        if row.startswith("teachers"):
            words += [word for seed in self.seeds for word in ("--teacher", self.model("default", seed))]
        return ["--train-list", self.train_list(FEW if row == f"{FEW} images" else None), *words]

    def train_list(self, count: int | None) -> Path:
        """The official list of training images, or one of so many of them."""
        official: Path = self.flickr8k / "Flickr_8k.trainImages.txt"
        if count is None:
            return official
        images = official.read_text().split()
        random.Random(0).shuffle(images)
        fewer: Path = self.work / f"{count}.txt"
        fewer.write_text("".join(f"{image}\n" for image in images[:count]))
        return fewer

    def scores(self, job: tuple[str, int]) -> Scores:
        """Of the training of a row with a seed."""
        row, seed = job
        model = self.model(row, seed)
        kept = model.with_name(f"{model.name}.json")
        if not kept.exists():
            features = self.stores.get(row, self.stores["default"])
            captions, dev = self.flickr8k / "Flickr8k.token.txt", self.flickr8k / "Flickr_8k.devImages.txt"
            if not (model / "bundle.json").exists():
                run_command(
                    *("train", features, "--captions", captions, "--output", model, "--seed", seed, "--val-list", dev),
                    *(*self.options(row), *([] if row == "default" else ["--matcher-epochs", 0]), "--quiet"),
                )
            with (model / "history.csv").open(newline="") as file:
                best = max(float(epoch["val_cider"]) for epoch in csv.DictReader(file))
            scores = model.with_name(f"{model.name}-scores.json")
            run_command(
                *("evaluate", features, "--model", model, "--captions", captions, "--list", dev, "--output", scores),
                *("--rerank", "consensus", "--quiet"),
            )
            kept.write_text(json.dumps([best, json.loads(scores.read_text())["scores"]["cider_d"]]))
            if row != "default":
                shutil.rmtree(model)
        plain, reranked = json.loads(kept.read_text())
        print(f"{row}, seed {seed}: {plain:.3f}, re-ranked {reranked:.3f}", flush=True)
        return plain, reranked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--views", type=Path, nargs="+", default=[], help="stores of several views per image")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings in parallel")
    parser.add_argument("--rows", nargs="+", help='without "default", which always is one')
    arguments = parser.parse_args()
    runs = Runs(arguments)
    rows = arguments.rows or [*ROWS, *(store.stem for store in arguments.views)]
    rows = ["default", *(row for row in rows if row != "default")]
    jobs = [(row, seed) for row in rows for seed in runs.seeds]
    of_default = len(runs.seeds)  # the teachers must be there before their pupils
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = [*pool.map(runs.scores, jobs[:of_default]), *pool.map(runs.scores, jobs[of_default:])]
    scores = dict(zip(jobs, found, strict=True))
    print("\n| row | not re-ranked: mean, each seed | re-ranked: mean, each seed |\n|---|---|---|")
    for row in rows:
        shown = [
            f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
            for values in zip(*(scores[row, seed] for seed in runs.seeds), strict=True)
        ]
        print(f"| {row} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
