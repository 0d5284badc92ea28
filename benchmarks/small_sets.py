"""What helps where images are few: trainings on 100, 300 and 600 images of Flickr8k, or on 50 and 100 from a model.

python benchmarks/small_sets.py FEATURES FLICKR8K --work DIR [--seeds 3] [--images 100 300 600] [--rows "default" ...]

FEATURES is the store that benchmarks/flickr8k.py makes, FLICKR8K as there. The training images are drawn from the
official 6,000, others for each seed; 100 of the dev images choose the epoch and 500 others score it. The rows "dogs"
are about another kind of image than a model was trained on: it saw 3,000 images without a dog in any caption, and the
50 or 100 new ones all have dogs, as have the images that choose and score. A second run resumes: DIR keeps the scores.
"""

import argparse
import json
import random
import shutil
import statistics
from collections import defaultdict
from pathlib import Path

from photos import run_command

ROWS: dict[str, list[object]] = {
    "default": [],
    "words that occur twice": ["--min-count", 2],
    "network of 256": ["--embed-dim", 256, "--hidden-dim", 256],
    "batches of 16": ["--batch-size", 16],
    "feature dropout 0.5": ["--feature-dropout", 0.5],
}
DOG_ROWS: dict[str, list[object] | None] = {
    "dogs: the model as it is": None,
    "dogs: the model as it is, not re-ranked": None,
    "dogs: from scratch": [],
    "dogs: --init": ["--init"],
}
DOG_IMAGES = (50, 100)


class Flickr8k:
    """The lists of the data set, and which images have a dog."""

    def __init__(self, folder: Path) -> None:
        self.token_file = folder / "Flickr8k.token.txt"
        captions: dict[str, str] = defaultdict(str)
        for line in self.token_file.read_text(encoding="utf-8").splitlines():
            name, _, caption = line.partition("#")
            captions[name] += f" {caption.lower()}"
        self.dogs = {name for name, text in captions.items() if " dog" in text or " puppy" in text}
        train, dev = (
            (folder / f"Flickr_8k.{split}Images.txt").read_text(encoding="utf-8").split() for split in ("train", "dev")
        )
        random.Random(0).shuffle(dev)
        self.train, self.dev = train, dev

    def choose(self, *, dogs: bool | None, count: int, seed: int) -> list[str]:
        """So many training images: with dogs, without, or of both kinds."""
        images = [name for name in self.train if dogs is None or (name in self.dogs) == dogs]
        return random.Random(seed).sample(images, count)

    def held_out(self, *, dogs: bool) -> tuple[list[str], list[str]]:
        """The dev images that choose the epoch, and those that score it."""
        images = [name for name in self.dev if name in self.dogs or not dogs]
        return images[:100], images[100:600]


class Runs:
    """Trains and scores, and keeps each score in a file."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.data, self.features, self.work = Flickr8k(arguments.flickr8k), arguments.features, arguments.work
        self.work.mkdir(parents=True, exist_ok=True)

    def score(self, row: str, count: int, seed: int) -> float:
        """CIDEr-D of the training of `row` on `count` images, or of the model that it starts from."""
        has_dogs = row in DOG_ROWS
        options = (DOG_ROWS if has_dogs else ROWS)[row]
        name = "".join(mark if mark.isalnum() else "-" for mark in f"{row}-{count}-{seed}")
        path, model = self.work / f"{name}.json", self.work / name
        if not path.exists():
            val, test = self.data.held_out(dogs=has_dogs)
            if options is None:
                model = self.base_model()
            else:
                images = self.data.choose(dogs=True if has_dogs else None, count=count, seed=seed)
                self.train(
                    model, images, val, seed, [*options, self.base_model()] if options == ["--init"] else options
                )
            listed = self.write_list(f"{name}-test", test)
            words = ("--captions", self.data.token_file, "--list", listed, "--output", path, "--quiet")
            search = ["--rerank", "none"] if "not re-ranked" in row else []
            run_command("evaluate", self.features, "--model", model, *words, *search)
            if options is not None:
                shutil.rmtree(model)
        return float(json.loads(path.read_text(encoding="utf-8"))["scores"]["cider_d"])

    def base_model(self) -> Path:
        """The model that never saw a dog."""
        model: Path = self.work / "no-dogs"
        if not (model / "bundle.json").exists():
            images = self.data.choose(dogs=False, count=3000, seed=0)
            val = [name for name in self.data.dev if name not in self.data.dogs][:100]
            self.train(model, images, val, 0, [])
        return model

    def train(self, model: Path, images: list[str], val: list[str], seed: int, options: list[object]) -> None:
        run_command(
            *("train", self.features, "--captions", self.data.token_file, "--output", model, "--seed", seed),
            *("--train-list", self.write_list(f"{model.name}-train", images)),
            *("--val-list", self.write_list(f"{model.name}-val", val), "--quiet", *options),
        )

    def write_list(self, name: str, images: list[str]) -> Path:
        path: Path = self.work / f"{name}.txt"
        path.write_text("".join(f"{image}\n" for image in images), encoding="utf-8")
        return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300, 600])
    parser.add_argument("--rows", nargs="+", default=[*ROWS, *DOG_ROWS])
    arguments = parser.parse_args()
    runs = Runs(arguments)
    print("\n| row | images | CIDEr-D: mean, each seed |\n|---|---|---|")
    for row in arguments.rows:
        for count in DOG_IMAGES if row in DOG_ROWS else arguments.images:
            found = [runs.score(row, count, seed) for seed in range(arguments.seeds)]
            each = ", ".join(f"{score:.3f}" for score in found)
            print(f"| {row} | {count} | {statistics.mean(found):.3f} ({each}) |", flush=True)


if __name__ == "__main__":
    main()
