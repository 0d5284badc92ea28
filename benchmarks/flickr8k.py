"""Extract, train and evaluate on Flickr8k with the commands a user would type; print the table of docs/benchmarks.md.

python benchmarks/flickr8k.py FLICKR8K --weights resnet50.pth [--seeds 1] [--work DIR]

FLICKR8K holds `images/`, `Flickr8k.token.txt` and the official lists `Flickr_8k.{train,dev,test}Images.txt`.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import time
from pathlib import Path

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")


def run(*words: object) -> float:
    """Run one captionmill command, showing it; the seconds that it took."""
    command = ["captionmill", *map(str, words)]
    print("$", shlex.join(command), flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--weights", required=True, help="state_dict of a ResNet-50, or a torchvision name")
    parser.add_argument("--seeds", type=int, default=1, help="trainings, with seeds 0, 1, ...")
    parser.add_argument("--work", type=Path, default=Path("flickr8k-work"))
    arguments = parser.parse_args()
    flickr8k, work = arguments.flickr8k, arguments.work
    features, captions = work / "features.h5", flickr8k / "Flickr8k.token.txt"

    extract_s = run(
        "extract", flickr8k / "images", "--output", features, "--weights", arguments.weights, "--preprocess", "squash"
    )
    rows = []
    for seed in range(arguments.seeds):
        model, scores_path = work / f"model-{seed}", work / f"scores-{seed}.json"
        lists = [
            "--train-list",
            flickr8k / "Flickr_8k.trainImages.txt",
            "--val-list",
            flickr8k / "Flickr_8k.devImages.txt",
        ]
        train_s = run(
            "train",
            features,
            "--captions",
            captions,
            *lists,
            "--output",
            model,
            "--seed",
            seed,
            "--overwrite",
            "--quiet",
        )
        test_list = flickr8k / "Flickr_8k.testImages.txt"
        evaluate_s = run(
            "evaluate", features, "--model", model, "--captions", captions, "--list", test_list, "--output", scores_path
        )
        scores = json.loads(scores_path.read_text())["scores"]
        rows.append((str(seed), [scores[name] for name in METRICS], train_s, evaluate_s))
    if len(rows) > 1:
        means = [statistics.mean(row[1][place] for row in rows) for place in range(len(METRICS))]
        train_mean, evaluate_mean = statistics.mean(row[2] for row in rows), statistics.mean(row[3] for row in rows)
        rows.append(("mean", means, train_mean, evaluate_mean))

    print(f"\n{time.strftime('%Y-%m-%d')}, {platform.machine()}, extraction {extract_s:.0f} s\n")
    print("| seed | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | ROUGE-L | CIDEr-D | training | evaluation |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, values, train_s, evaluate_s in rows:
        shown = " | ".join(f"{value:.3f}" for value in values)
        print(f"| {name} | {shown} | {train_s / 60:.1f} min | {evaluate_s:.0f} s |")


if __name__ == "__main__":
    main()
