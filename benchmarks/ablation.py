"""What each choice of the decoder and its training does for validation CIDEr-D on Flickr8k, several seeds per row.

python benchmarks/ablation.py FEATURES FLICKR8K --work DIR [--seeds 3] [--jobs 1] [--rows "default" "two layers" ...]

FEATURES is the store that benchmarks/flickr8k.py makes, FLICKR8K as there. Each row changes the default only in what
its name says. The 1,000 dev images score it: a choice must not be made on the test images. Several trainings can share
a GPU (`--jobs`). A second run resumes: DIR keeps each training's history. Rows like "1,500 images" train on that many
of the 6,000 images, drawn at random, the same in each seed.
"""

import argparse
import csv
import random
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from photos import run_command

ROWS: dict[str, list[object]] = {
    "default": [],
    "hidden 1024": ["--hidden-dim", 1024],
    "hidden 2048": ["--hidden-dim", 2048],
    "embedding 256": ["--embed-dim", 256],
    "two layers": ["--layers", 2],
    "forget bias 0": ["--forget-bias", 0],
    "forget bias 1": ["--forget-bias", 1],
    "forget bias 3": ["--forget-bias", 3],
    "own output weights": ["--no-tie-weights"],
    "image before the first word": ["--image-input", "first"],
    "image beside every word": ["--image-input", "every"],
    "features standardised only": ["--feature-scaling", "standardize"],
    "features to one length only": ["--feature-scaling", "unit"],
    "feature dropout 0.1": ["--feature-dropout", 0.1],
    "feature dropout 0.5": ["--feature-dropout", 0.5],
    "dropout 0.3": ["--dropout", 0.3],
    "no label smoothing": ["--label-smoothing", 0],
    "weight decay 0.05": ["--weight-decay", 0.05],
    "batch 32": ["--batch-size", 32],
    "batch 128": ["--batch-size", 128],
    "batch 256, learning rate 0.002": ["--batch-size", 256, "--learning-rate", 0.002],
    "learning rate 0.0005": ["--learning-rate", 0.0005],
    "learning rate 0.002": ["--learning-rate", 0.002],
    "3 epochs": ["--max-epochs", 3],
    "12 epochs": ["--max-epochs", 12],
    "words from 3 occurrences on": ["--min-count", 3],
}
FEWER_IMAGES: dict[str, tuple[int, list[object]]] = {
    **{f"{count:,} images": (count, []) for count in (3000, 1500, 750, 300, 60)},
    **{f"{count:,} images, 12 epochs": (count, ["--max-epochs", 12]) for count in (300, 60)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings in parallel")
    parser.add_argument("--rows", nargs="+", default=[*ROWS, *FEWER_IMAGES])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    train_list = arguments.flickr8k / "Flickr_8k.trainImages.txt"
    images = train_list.read_text().split()
    random.Random(0).shuffle(images)

    def options_of(row: str) -> list[object]:
        if row not in FEWER_IMAGES:
            return ["--train-list", train_list, *ROWS[row]]
        count, options = FEWER_IMAGES[row]
        fewer = arguments.work / f"{count}.txt"
        fewer.write_text("".join(f"{image}\n" for image in images[:count]))
        return ["--train-list", fewer, *options]

    def best_cider(job: tuple[str, int]) -> float:
        row, seed = job
        name = f"{row.replace(' ', '-').replace(',', '')}-{seed}"
        history, model = arguments.work / f"{name}.csv", arguments.work / name
        if not history.exists():
            run_command(
                *("train", arguments.features, "--captions", arguments.flickr8k / "Flickr8k.token.txt"),
                *("--val-list", arguments.flickr8k / "Flickr_8k.devImages.txt"),
                *("--output", model, "--overwrite", "--restart", "--quiet", "--seed", seed, *options_of(row)),
            )
            (model / "history.csv").replace(history)
            shutil.rmtree(model)
        with history.open(newline="") as file:
            best = max(float(epoch["val_cider"]) for epoch in csv.DictReader(file))
        print(f"{row}, seed {seed}: {best:.3f}", flush=True)
        return best

    seeds = range(arguments.seeds)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [(row, seed) for row in arguments.rows for seed in seeds]
        scores = dict(zip(jobs, pool.map(best_cider, jobs), strict=True))
    print("\n| | mean validation CIDEr-D | each seed |\n|---|---|---|")
    for row in arguments.rows:
        values = [scores[row, seed] for seed in seeds]
        print(f"| {row} | {statistics.mean(values):.3f} | {', '.join(f'{value:.3f}' for value in values)} |")


if __name__ == "__main__":
    main()
