"""Peak memory of an extraction of large images under `--memory`: what the budget promises against what is measured.

python benchmarks/memory.py [--budgets 0.5 1 2] [--megapixels 20 60 120] [--workers 4]

Two PNGs, two JPEGs and two TIFFs of each size are extracted with each budget, in a process for each. "Above the start"
is the peak less that of the same command over as many images of a few pixels: the budget is for this. Fails if it is
more than the budget and a tenth of a gigabyte.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from photos import Command, run_command
from PIL import Image

Image.MAX_IMAGE_PIXELS = None
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "jpg": {"quality": 50},
    "tif": {"compression": "tiff_adobe_deflate"},
}
SPARE_GB = 0.1


def write_images(folder: Path, megapixels: list[float]) -> Path:
    """Two images of each format and size, in colour."""
    folder.mkdir()
    for size in megapixels:
        image = Image.linear_gradient("L").convert("RGB").resize((round(1250 * size**0.5), round(800 * size**0.5)))
        for suffix, options in FORMATS.items():
            for number in range(2):
                image.save(folder / f"{size}-{number}.{suffix}", **options)
    return folder


def extract(images: Path, budget: float, workers: int) -> Command:
    with tempfile.TemporaryDirectory() as name:
        net = ["--backbone", "scenes-resnet14", "--image-size", 64, "--engine", "torch", "--device", "cpu"]
        command = ["extract", images, "--output", Path(name, "f.h5"), "--memory", budget, "--workers", workers]
        return run_command(*command, "--quiet", *net)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 1, 2])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[20, 60, 120])
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    is_over = False
    with tempfile.TemporaryDirectory() as name:
        small = write_images(Path(name, "small"), [0.001] * len(arguments.megapixels))
        large = write_images(Path(name, "large"), arguments.megapixels)
        start_gb = extract(small, 1, arguments.workers).peak_rss_gb
        print("| budget, GB | images | refused | peak memory, GB | above the start, GB |\n|---|---|---|---|---|")
        for budget in arguments.budgets:
            done = extract(large, budget, arguments.workers)
            failed = re.findall(r"([\d,]+) (?:images? )?(?:failed|cannot be read)", done.output)
            above = done.peak_rss_gb - start_gb
            is_over |= above > budget + SPARE_GB
            count = len(arguments.megapixels) * 2 * len(FORMATS)
            print(f"| {budget} | {count} | {failed} | {done.peak_rss_gb:.2f} | {above:.2f} |", flush=True)
    sys.exit(is_over)


if __name__ == "__main__":
    main()
