"""Install the lowest version of each package that setup.cfg names, and try the main commands with them.

python scripts/lowest_versions.py DIR [--python python3.11] [--dry-run]

DIR gets a virtual environment and a small world of drawn images. Most of what is downloaded, some gigabytes, is torch.
With `--dry-run` pip only finds out whether these versions fit each other.
"""

import argparse
import configparser
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DRAW = """
from pathlib import Path
from captionmill.pipeline.demo.scenes import draw_samples
draw_samples(Path("photos"), 60, seed=0, captions_path=Path("photos.csv"), workers=1)
"""
COMMANDS = (
    "extract photos --output features.h5 --backbone scenes-resnet14 --image-size 64 --device cpu",
    "features verify features.h5",
    "train features.h5 --captions photos.csv --output model --max-epochs 2 --matcher-epochs 1 --device cpu",
    "evaluate features.h5 --model model --captions photos.csv --output scores.json --resamples 10 --device cpu",
    "caption photos --model model --output captions.csv --gallery page.html --sidecar .txt --device cpu",
    "search features.h5 a --model model --device cpu",
    "explain photos/scene_00000.png --model model --output explain.html --device cpu",
    "report model --features features.h5 --scores scores.json --output report.html",
)


def lowest_versions() -> list[str]:
    """`NAME==VERSION` for each requirement of setup.cfg, without its extras."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].strip().splitlines()
    return [re.sub(r"^([\w-]+)>=", r"\1==", line.strip()) for line in lines]


def main() -> None:
    """Read the options, install and try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="python3.11")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    subprocess.run([arguments.python, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    versions = lowest_versions()
    if arguments.dry_run:
        subprocess.run([python, "-m", "pip", "install", "--dry-run", "--quiet", *versions], check=True)
        print("these versions fit each other:", *versions)
        return
    subprocess.run([python, "-m", "pip", "install", "--quiet", *versions], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", ROOT], check=True)
    environment = os.environ | {"CAPTIONMILL_CACHE": str(folder / "cache")}
    subprocess.run([python, "-c", DRAW], cwd=folder, check=True)
    for words in COMMANDS:
        print("captionmill", words, flush=True)
        subprocess.run([python, "-m", "captionmill", *words.split()], cwd=folder, env=environment, check=True)
    print("all commands ended well with", *versions)


if __name__ == "__main__":
    main()
