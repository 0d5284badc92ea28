"""Extract, train and evaluate on Flickr8k with the commands a user would type; print the table of docs/benchmarks.md.

python benchmarks/flickr8k.py FLICKR8K --weights resnet50.pth --work DIR [--seeds 3] [--precisions fp32 bf16 int8]

FLICKR8K holds `images/`, `Flickr8k.token.txt` and the official lists `Flickr_8k.{train,dev,test}Images.txt`. For each
precision, features are made (DIR/bf16.h5), and one decoder per seed is trained on them without a matcher, and evaluated
without re-ranking: on the test images, and on the dev images, which choose the epoch. Decoders of the first precision
caption the dev images from the features of the others, too. A second run resumes: DIR keeps stores, models and scores.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from photos import run_command

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")


class Runs:
    """Extracts, trains and evaluates, and keeps what each command makes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.flickr8k, self.weights, self.work = arguments.flickr8k, arguments.weights, arguments.work
        self.captions = self.flickr8k / "Flickr8k.token.txt"

    def split_list(self, split: str) -> Path:
        path: Path = self.flickr8k / f"Flickr_8k.{split}Images.txt"
        return path

    def store(self, precision: str) -> Path:
        path: Path = self.work / f"{precision}.h5"
        return path

    def extract(self, precision: str) -> None:
        """Make the store of all images, or what it lacks."""
        words = ("--output", self.store(precision), "--weights", self.weights, "--precision", precision)
        command = run_command("extract", self.flickr8k / "images", *words)
        print(f"extract, {precision}: {command.seconds:.0f} s", flush=True)

    def train(self, precision: str, seed: int) -> Path:
        """The decoder of a seed, trained on the features of a precision."""
        model: Path = self.work / f"{precision}-{seed}"
        if not (model / "bundle.json").exists():
            lists = ("--train-list", self.split_list("train"), "--val-list", self.split_list("dev"))
            words = ("--captions", self.captions, "--output", model, "--seed", seed, "--matcher-epochs", 0, "--quiet")
            command = run_command("train", self.store(precision), *lists, *words)
            print(f"train, {precision}, seed {seed}: {command.seconds:.0f} s", flush=True)
        return model

    def evaluate(self, model: Path, precision: str, split: str) -> list[float]:
        """The METRICS of a decoder's captions of a split, made from the features of a precision."""
        output = self.work / f"{model.name}-{precision}-{split}.json"
        if not output.exists():
            words = ("--captions", self.captions, "--list", self.split_list(split), "--rerank", "none", "--quiet")
            run_command("evaluate", self.store(precision), "--model", model, "--output", output, *words)
        scores = json.loads(output.read_text(encoding="utf-8"))["scores"]
        return [scores[metric] for metric in METRICS]


def show(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--weights", required=True, help="state_dict of a ResNet-50, or a torchvision name")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each precision, with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="trainings in parallel")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs, seeds, first = Runs(arguments), range(arguments.seeds), arguments.precisions[0]
    for precision in arguments.precisions:
        runs.extract(precision)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [(precision, seed) for precision in arguments.precisions for seed in seeds]
        models = dict(zip(jobs, pool.map(lambda job: runs.train(*job), jobs), strict=True))

    print(f"\n{time.strftime('%Y-%m-%d')}\n")
    print(f"| features | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | ROUGE-L | CIDEr-D | dev | dev, decoders of {first} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for precision in arguments.precisions:
        own = [models[precision, seed] for seed in seeds]
        test = list(zip(*(runs.evaluate(model, precision, "test") for model in own), strict=True))
        dev, moved = (
            [runs.evaluate(model, precision, "dev")[-1] for model in decoders]
            for decoders in (own, [models[first, seed] for seed in seeds])
        )
        means = " | ".join(f"{statistics.mean(values):.3f}" for values in test[:-1])
        print(f"| {precision} | {means} | {show(test[-1])} | {show(dev)} | {show(moved)} |", flush=True)


if __name__ == "__main__":
    main()
