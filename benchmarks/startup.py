"""How long commands take that have little or nothing to do, and where the time goes.

python benchmarks/startup.py PHOTOS MODEL [--weights FILE] [--rounds 3] [--against FOLDER]

Each command runs in its own process with the files in the page cache, `--rounds` times; the median is printed. CPU
seconds depend less than seconds on other programs. The cache is empty at first: the first row makes it. FOLDER holds
another version's folder `captionmill`; its commands run in turn with these, and ratios compare them.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from captionmill.data.images.find import find_images

ERRORS = ("a model that is not there",)
PARTS = ("click", "numpy", "h5py", "PIL.Image", "openvino", "torch", "torch, torchvision")
Measured = tuple[float, float]
"""Seconds and CPU seconds."""


def measure(*words: object, env: dict[str, str], fails: bool = False) -> Measured:
    """Run a program in its own process; it must fail exactly if `fails`."""
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, words)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if (status != 0) != fails:
        raise SystemExit(f"{' '.join(map(str, words))}: ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def median(measured: list[Measured]) -> Measured:
    seconds, cpu_seconds = zip(*measured, strict=True)
    return statistics.median(seconds), statistics.median(cpu_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    sources = [Path(image.path) for image in find_images(arguments.photos)][:10]
    weights = ["--weights", arguments.weights] if arguments.weights else []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        env = os.environ | {"CAPTIONMILL_CACHE": str(work / "cache"), "PYTHONPYCACHEPREFIX": str(work / "compiled")}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # modules stay compiled, as they do where nothing forbids it
        envs = [env, *([env | {"PYTHONPATH": str(arguments.against)}] if arguments.against else [])]
        for folder, count in (("one", 1), ("ten", 10), ("broken", 10)):
            (work / folder).mkdir()
            for source in sources[:count]:
                shutil.copy(source, work / folder)
        last = max((work / "broken").iterdir())
        last.write_bytes(last.read_bytes()[:3000])
        caption = [sys.executable, "-m", "captionmill", "caption", "--quiet", "--model", arguments.model, *weights]
        explain = [sys.executable, "-m", "captionmill", "explain", sources[0], "--model", arguments.model, *weights]
        rows: dict[str, tuple[list[object], bool]] = {  # the words, and whether the table is new each time
            "caption, one image": ([*caption, work / "one", "--output", work / "o" / "one.csv"], True),
            "caption, ten images": ([*caption, work / "ten", "--output", work / "o" / "ten.csv"], True),
            "caption, the same again": ([*caption, work / "ten", "--output", work / "o" / "ten.csv"], False),
            "caption again, one of ten broken": ([*caption, work / "broken", "--output", work / "o" / "b.csv"], False),
            "explain": (explain, False),
            "a model that is not there": ([*explain[: -1 - len(weights)], work / "no"], False),
        }
        print("| | seconds | CPU seconds | of the other version: seconds | CPU seconds | ratio of CPU seconds |")
        print("|---|---|---|---|---|---|")
        (work / "o").mkdir()
        words, _ = rows["caption, one image"]
        measure(*words, env=env)
        shutil.rmtree(work / "cache")
        shutil.rmtree(work / "o")
        (work / "o").mkdir()
        print("| caption, one image, with an empty cache | {:.2f} | {:.2f} | | | |".format(*measure(*words, env=env)))
        for row, (words, is_new) in rows.items():
            if not is_new:
                measure(*words, env=env, fails=row in ERRORS)  # what is repeated has been done before
            each: list[list[Measured]] = [[] for _ in envs]
            for _ in range(arguments.rounds):
                for place, one in enumerate(envs):
                    if is_new:
                        shutil.rmtree(work / "o")
                        (work / "o").mkdir()
                    each[place].append(measure(*words, env=one, fails=row in ERRORS))
            found = [median(measured) for measured in each]
            numbers = " | ".join(f"{seconds:.2f} | {cpu_seconds:.2f}" for seconds, cpu_seconds in found)
            ratio = f"{found[1][1] / found[0][1]:.1f}" if len(found) > 1 else "| |"
            print(f"| {row} | {numbers} | {ratio} |", flush=True)
        for part in PARTS:
            each_part = [measure(sys.executable, "-c", f"import {part}", env=env) for _ in range(arguments.rounds)]
            print("| import {} | {:.2f} | {:.2f} | | | |".format(part, *median(each_part)), flush=True)


if __name__ == "__main__":
    main()
