"""Which cosine separates a slightly changed image from a different one, and whether centring features helps.

python benchmarks/leaks.py FLICKR8K --features features.h5 --weights resnet50.pth --work DIR [--images 150]

FEATURES are those of FLICKR8K/images. Some of these images are changed in seven ways; each row of the tables is a
threshold, with how many pairs of the images as they are reach it, and what share of the changed images reach it with
their original. DIR keeps the changed images and their features.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from photos import run_command
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from captionmill.data.features.store import FeatureStore

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "a quarter brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "6 pixels cut off": lambda image: image.crop((6, 6, image.width - 6, image.height - 6)),
    "mirrored": ImageOps.mirror,
    "17 pixels cut off": lambda image: image.crop((17, 17, image.width - 17, image.height - 17)),
    "JPEG quality 40": lambda image: image,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
}
THRESHOLDS = (0.95, 0.92, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8)


def change_images(images: Path, output: Path, count: int) -> None:
    names = sorted(path.name for path in images.glob("*.jpg"))
    for name in random.Random(0).sample(names, count):
        with Image.open(images / name) as image:
            original = image.convert("RGB")
        for change, apply in CHANGES.items():
            (output / change).mkdir(parents=True, exist_ok=True)
            apply(original).save(output / change / name, quality=40 if "JPEG" in change else 90)


def read_all(path: Path) -> tuple[list[str], Tensor]:
    store = FeatureStore.open(path)
    return store.keys, torch.from_numpy(store.read(np.arange(len(store))).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=150)
    arguments = parser.parse_args()
    changed_path = arguments.work / "changed.h5"
    change_images(arguments.flickr8k / "images", arguments.work / "changed", arguments.images)
    run_command(
        *("extract", arguments.work / "changed", "--output", changed_path),
        *("--weights", arguments.weights),
    )
    keys, originals = read_all(arguments.features)
    changed_keys, changed = read_all(changed_path)
    changes = np.array([key.split("/")[0] for key in changed_keys])
    own = torch.tensor([keys.index(key.split("/")[1]) for key in changed_keys])
    first, second = torch.triu_indices(len(keys), len(keys), 1)
    reached: tuple[int, ...] = ()
    for measure, centre in (("as they are", torch.zeros(1)), ("mean taken away", originals.mean(0))):
        rows, changed_rows = F.normalize(originals - centre, dim=1), F.normalize(changed - centre, dim=1)
        found = (changed_rows * rows[own]).sum(1).numpy()
        between = np.sort((rows @ rows.T)[first, second].numpy())[::-1]
        thresholds = [float(between[count - 1]) for count in reached] or THRESHOLDS  # as many pairs as the first found
        print(f"\n| {measure}: cosine | pairs | {' | '.join(CHANGES)} |\n|{'---|' * (len(CHANGES) + 2)}")
        for threshold in thresholds:
            shares = [f"{100 * (found[changes == change] >= threshold).mean():.0f} %" for change in CHANGES]
            print(f"| {threshold:.3f} | {(between >= threshold).sum()} | {' | '.join(shares)} |")
        reached = tuple(int((between >= threshold).sum()) for threshold in thresholds)


if __name__ == "__main__":
    main()
