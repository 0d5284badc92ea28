"""What the quality levers of stage one cost, and what they do for captions on Flickr8k.

python benchmarks/levers.py FLICKR8K --weights resnet50.pth --work DIR [--rate-images 256] [--max-epochs 4]

FLICKR8K is as for benchmarks/flickr8k.py, with some images at full size in `originals/`: the cost is measured on
these. The captions are scored on the 1,000 dev images, since a lever is a choice; the test images are left for the
finished one. DIR keeps the features, so that a second run resumes.
"""

import argparse
import csv
import tempfile
from pathlib import Path

from photos import link_photos, run_command

LEVERS: dict[str, list[object]] = {
    "squash, 224": ["--preprocess", "squash"],
    "squash, 224, flip": ["--preprocess", "squash", "--views", "flip"],
    "squash, 320": ["--preprocess", "squash", "--image-size", 320],
    "squash, 448": ["--preprocess", "squash", "--image-size", 448],
    "crop, 224": ["--preprocess", "crop"],
    "whole, 224": ["--preprocess", "whole"],
    "whole, 448": ["--preprocess", "whole", "--image-size", 448],
}
TRAINED = ("squash, 224", "squash, 224, flip", "squash, 320")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rate-images", type=int, default=256, help="images to measure a rate with; 0: no rates")
    parser.add_argument("--max-epochs", type=int, default=4, help="0: no captions")
    arguments = parser.parse_args()
    flickr8k, work = arguments.flickr8k, arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if arguments.rate_images:
        print("| lever | images/s | cost |\n|---|---|---|")
        first = 0.0
        with tempfile.TemporaryDirectory() as name:
            originals = flickr8k / "originals"
            photos = originals if originals.exists() else flickr8k / "images"
            folder = link_photos(photos, Path(name) / "photos", arguments.rate_images)
            for number, (lever, options) in enumerate(LEVERS.items()):
                output = Path(name) / f"{number}.h5"
                rate = run_command("extract", folder, "--output", output, "--weights", arguments.weights, *options).rate
                first = first or rate
                print(f"| {lever} | {rate:.1f} | {first / rate:.1f} x |", flush=True)
    if not arguments.max_epochs:
        return
    print("\n| lever | best validation CIDEr-D | epoch | every epoch |\n|---|---|---|---|")
    lists = [flickr8k / f"Flickr_8k.{split}Images.txt" for split in ("train", "dev")]
    for lever in TRAINED:
        stem = lever.replace(", ", "-")
        features, model = work / f"{stem}.h5", work / stem
        run_command(
            "extract", flickr8k / "images", "--output", features, "--weights", arguments.weights, *LEVERS[lever]
        )
        run_command(
            *("train", features, "--captions", flickr8k / "Flickr8k.token.txt", "--output", model, "--overwrite"),
            *("--train-list", lists[0], "--val-list", lists[1], "--max-epochs", arguments.max_epochs),
            *("--embed-dim", 256, "--hidden-dim", 256),  # a small decoder shows a difference as well, in half the time
        )
        with (model / "history.csv").open(newline="") as file:
            scores = [float(row["val_cider"]) for row in csv.DictReader(file)]
        best = max(scores)
        shown = ", ".join(f"{score:.3f}" for score in scores)
        print(f"| {lever} | {best:.3f} | {1 + scores.index(best)} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
