"""What captioning a folder adds to extracting its features, and what a second run takes.

python benchmarks/folder.py PHOTOS MODEL [--weights FILE] [--images 500] [--rounds 2] [--options --beam-size 5]

`extract` only and `caption`, each of the same images into a fresh cache, as a user runs them, one after the other,
`--rounds` times; then `caption` again, on the finished folder and with one image more. CPU seconds depend less than
seconds on other programs.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line sets it

from photos import link_photos, run_command

from captionmill.data.models.bundle import read_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of caption, such as --beam-size 1")
    arguments = parser.parse_args()
    spec = read_bundle(arguments.model).spec
    weights = arguments.weights or spec.weights
    how = ["--backbone", spec.backbone, "--preprocess", spec.preprocess, "--image-size", spec.image_size]
    print("| | seconds | | CPU seconds, both cores | |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = link_photos(arguments.photos, work / "photos", arguments.images + 1)
        last = max(folder.iterdir())
        kept = last.rename(work / last.name)
        words = ["--model", arguments.model, "--weights", weights, "--quiet", *arguments.options]
        for number in range(1, arguments.rounds + 1):
            features = work / f"{number}.h5"
            extracted = run_command("extract", folder, "--output", features, "--weights", weights, "--quiet", *how)
            table = work / f"{number}.csv"
            captioned = run_command("caption", folder, "--output", table, *words)
            print(
                f"| extract, {arguments.images:,} images, round {number} | {extracted.seconds:.1f} | "
                f"| {extracted.cpu_seconds:.1f} | |"
            )
            print(
                f"| caption, the same | {captioned.seconds:.1f} | {captioned.seconds / extracted.seconds - 1:+.1%} "
                f"| {captioned.cpu_seconds:.1f} | {captioned.cpu_seconds / extracted.cpu_seconds - 1:+.1%} |",
                flush=True,
            )
        again = run_command("caption", folder, "--output", table, *words)
        print(f"| caption again | {again.seconds:.1f} | | {again.cpu_seconds:.1f} | |")
        shutil.move(kept, folder)
        more = run_command("caption", folder, "--output", table, *words)
        print(f"| caption, one image more | {more.seconds:.1f} | | {more.cpu_seconds:.1f} | |")
        print(more.output)


if __name__ == "__main__":
    main()
