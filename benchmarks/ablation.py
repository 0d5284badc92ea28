"""What each choice of the decoder and its training does for validation CIDEr-D on Flickr8k, several seeds per row.

python benchmarks/ablation.py FEATURES FLICKR8K --work DIR [--seeds 3] [--jobs 1] [--no-matcher] [--rows "default" ...]

FEATURES is the store that benchmarks/flickr8k.py makes, FLICKR8K as there. Each row changes the default only in what
its name says. The 1,000 dev images score it, by the best epoch's captions and by those that the finished model
re-ranks: a choice must not be made on the test images. Several trainings can share a GPU (`--jobs`). A second run
resumes: DIR keeps each training's scores. Rows like "1,500 images" train on that many of the 6,000 images, drawn at
random, the same in each seed. For several views per image, FEATURES is a store of these; use another DIR. With
`--no-matcher`, captions are re-ranked by consensus only, and trainings take two thirds of the time. `--options` are
further ones for each training, such as "--teacher A --captions written.csv"; use another DIR for them, too.
"""

import argparse
import csv
import json
import random
import shlex
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from photos import run_command

from captionmill.data.models.bundle import RERANKED_CIDER, read_bundle

Scores = tuple[float, float]
"""Validation CIDEr-D of a training's best epoch, and of the captions that its model re-ranks."""

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
    "6 self-critical epochs": ["--self-critical-epochs", 6],
    "matcher of 20 epochs": ["--matcher-epochs", 20],
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
    parser.add_argument("--no-matcher", action="store_true", help="re-rank by consensus only")
    parser.add_argument("--options", type=shlex.split, default=[], help="more options of `train`, as one word")
    parser.add_argument("--rows", nargs="+", default=[*ROWS, *FEWER_IMAGES])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    train_list = arguments.flickr8k / "Flickr_8k.trainImages.txt"
    images = train_list.read_text().split()
    random.Random(0).shuffle(images)

    def options_of(row: str) -> list[object]:
        matcher = ["--matcher-epochs", 0] if arguments.no_matcher else []
        if row not in FEWER_IMAGES:
            return ["--train-list", train_list, *matcher, *ROWS[row]]
        count, options = FEWER_IMAGES[row]
        fewer = arguments.work / f"{count}.txt"
        fewer.write_text("".join(f"{image}\n" for image in images[:count]))
        return ["--train-list", fewer, *matcher, *options]

    def score(job: tuple[str, int]) -> Scores:
        row, seed = job
        name = f"{row.replace(' ', '-').replace(',', '')}-{seed}"
        kept, model = arguments.work / f"{name}.json", arguments.work / name
        if not kept.exists():
            run_command(
                *("train", arguments.features, "--captions", arguments.flickr8k / "Flickr8k.token.txt"),
                *("--val-list", arguments.flickr8k / "Flickr_8k.devImages.txt"),
                *(
                    "--output",
                    model,
                    "--overwrite",
                    "--restart",
                    "--quiet",
                    "--seed",
                    seed,
                    *options_of(row),
                    *arguments.options,
                ),
            )
            with (model / "history.csv").open(newline="") as file:
                best = max(float(epoch["val_cider"]) for epoch in csv.DictReader(file))
            kept.write_text(json.dumps([best, read_bundle(model).scores.get(RERANKED_CIDER, best)]))
            shutil.rmtree(model)
        plain, reranked = json.loads(kept.read_text())
        print(f"{row}, seed {seed}: {plain:.3f}, re-ranked {reranked:.3f}", flush=True)
        return plain, reranked

    seeds = range(arguments.seeds)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [(row, seed) for row in arguments.rows for seed in seeds]
        scores = dict(zip(jobs, pool.map(score, jobs), strict=True))
    print("\n| | mean validation CIDEr-D | each seed | re-ranked | each seed |\n|---|---|---|---|---|")
    for row in arguments.rows:
        shown = [
            f"{statistics.mean(values):.3f} | {', '.join(f'{value:.3f}' for value in values)}"
            for values in zip(*(scores[row, seed] for seed in seeds), strict=True)
        ]
        print(f"| {row} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
