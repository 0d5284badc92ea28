"""Peak memory of an extraction of large images under `--memory`: what the budget promises against what is measured.

Two PNGs, two JPEGs and two TIFFs of each size are extracted with each budget, in a process for each. "Above the start"
is the peak less that of the same command over as many images of a few pixels: the budget is for this, and a tenth of a
gigabyte more.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults.attempts import Limits, Tally
from photos import Command, run_command
from PIL import Image

FORMATS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "jpg": {"quality": 50},
    "tif": {"compression": "tiff_adobe_deflate"},
}
BUDGETS_GB = (0.5, 1, 2)
MEGAPIXELS = (20, 60, 120)
WORKERS = 4
SPARE_GB = 0.1
PARTS = 8
"""An image is decoded if its pixels as RGB fit into the budget so many times."""


def write_images(folder: Path, megapixels: Sequence[float]) -> Path:
    """Two images of each format and size, in colour."""
    folder.mkdir()
    for size in megapixels:
        image = Image.linear_gradient("L").convert("RGB").resize((round(1250 * size**0.5), round(800 * size**0.5)))
        for suffix, options in FORMATS.items():
            for number in range(2):
                image.save(folder / f"{size}-{number}.{suffix}", **options)
    return folder


def extract(images: Path, budget: float) -> Command:
    with tempfile.TemporaryDirectory() as name:
        net = ["--backbone", "scenes-resnet14", "--image-size", 64, "--engine", "torch", "--device", "cpu"]
        command = ["extract", images, "--output", Path(name, "f.h5"), "--memory", budget, "--workers", WORKERS]
        return run_command(*command, "--quiet", *net)


def run(limits: Limits) -> Tally:
    Image.MAX_IMAGE_PIXELS = None
    tally, notes = Tally(), []
    with tempfile.TemporaryDirectory(dir=limits.work) as name:
        small = write_images(Path(name, "small"), [0.001] * len(MEGAPIXELS))
        large = write_images(Path(name, "large"), MEGAPIXELS)
        count = len(list(large.iterdir()))
        start_gb = extract(small, 1).peak_rss_gb
        limits = limits.from_now()
        for budget in BUDGETS_GB:
            if not limits.allow(tally.tried):
                break
            done = extract(large, budget)
            refused = sum(map(int, re.findall(r"(\d+) (?:images? )?(?:failed|cannot be read)", done.output)))
            too_large = sum(PARTS * 3 * size / 1000 > budget for size in MEGAPIXELS) * count // len(MEGAPIXELS)
            above = done.peak_rss_gb - start_gb
            tally.tried += count
            tally.held += count if above <= budget + SPARE_GB and refused <= too_large else 0
            notes.append(f"{above:.2f} GB above the start of {budget}, {refused} refused")
    tally.note = "; ".join(notes)
    return tally
