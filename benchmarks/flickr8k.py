"""Extract, train and evaluate on Flickr8k with the commands a user would type; print the tables of docs/benchmarks.md.

python benchmarks/flickr8k.py FLICKR8K --weights resnet50.pth [--seeds 3] [--features STORE]

FLICKR8K holds `images/`, `Flickr8k.token.txt` and the official lists `Flickr_8k.{train,dev,test}Images.txt`. Each seed
is trained without a matcher, and evaluated without re-ranking. A second run resumes: `--work` keeps the models.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")


def run(*words: object) -> float:
    """Run one captionmill command, showing it; the seconds that it took."""
    command = list(map(str, words))
    print("$ captionmill", shlex.join(command), flush=True)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "captionmill", *command], check=True)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--weights", required=True, help="state_dict of a ResNet-50, or a torchvision name")
    parser.add_argument("--features", type=Path, help="a store made before; nothing is extracted then")
    parser.add_argument("--seeds", type=int, default=1, help="trainings, with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="trainings in parallel, on a GPU")
    parser.add_argument("--work", type=Path, default=Path("flickr8k-work"))
    arguments = parser.parse_args()
    flickr8k, work = arguments.flickr8k, arguments.work
    features, captions = arguments.features or work / "features.h5", flickr8k / "Flickr8k.token.txt"
    test_list = flickr8k / "Flickr_8k.testImages.txt"
    work.mkdir(parents=True, exist_ok=True)

    if not arguments.features:
        extract_s = run("extract", flickr8k / "images", "--output", features, "--weights", arguments.weights)
        print(f"extraction: {extract_s:.0f} s")

    def score(seed: int) -> tuple[list[float], float, float]:
        """The scores of the test images, and the seconds of training and of evaluation."""
        model, output = work / f"model-{seed}", work / f"scores-{seed}.json"
        train_s = 0.0
        if not (model / "bundle.json").exists():
            train_list, val_list = (flickr8k / f"Flickr_8k.{split}Images.txt" for split in ("train", "dev"))
            lists = ("--train-list", train_list, "--val-list", val_list)
            options = ("--seed", seed, "--matcher-epochs", 0, "--overwrite", "--quiet")
            train_s = run("train", features, "--captions", captions, "--output", model, *lists, *options)
        chosen = ("--list", test_list, "--output", output, "--rerank", "none", "--quiet")
        evaluate_s = run("evaluate", features, "--model", model, "--captions", captions, *chosen)
        scores = json.loads(output.read_text())["scores"]
        return [scores[metric] for metric in METRICS], train_s, evaluate_s

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(score, range(arguments.seeds)))
    rows = [(f"seed {seed}", *result) for seed, result in enumerate(results)]
    means = [statistics.mean(values) for values in zip(*(scores for scores, _, _ in results), strict=True)]
    rows.append(("mean", means, *(statistics.mean(times) for times in zip(*(r[1:] for r in results), strict=True))))

    print(f"\n{time.strftime('%Y-%m-%d')}, {platform.machine()}\n")
    print("| | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | ROUGE-L | CIDEr-D | training | evaluation |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, scores, train_s, evaluate_s in rows:
        shown = " | ".join(f"{value:.3f}" for value in scores)
        print(f"| {name} | {shown} | {f'{train_s / 60:.1f} min' if train_s else ''} | {evaluate_s:.0f} s |")


if __name__ == "__main__":
    main()
