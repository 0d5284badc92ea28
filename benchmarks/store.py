"""The feature store at a million rows: writing, opening, reading, checking, merging, search; and a finished folder.

python benchmarks/store.py PHOTOS [--rows 1000000] [--images 100000] [--model MODEL] [--work DIR]

The rows are random numbers, 2048 float16 each (4.1 GB at a million; DIR needs three times that). Each line is its own
process. MODEL, whose features have one view, searches the rows by words. PHOTOS is a folder of images, used over and
over by symbolic links for the finished folder.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from photos import link_photos, run_command

from captionmill.data.features.merge import merge_stores
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.models.bundle import read_bundle

RANDOM_ROWS = 20_000


def write(path: Path, first: int, count: int, spec: FeatureSpec) -> str:
    generator = np.random.default_rng(first)
    with FeatureWriter(path, spec, dtype="float16", made_by={}) as writer:
        for start in range(first, first + count, 1000):
            keys = [f"photos/{number // 1000:06d}/{number:09d}.jpg" for number in range(start, start + 1000)]
            writer.add(keys, generator.random((1000, 2048), dtype=np.float32).astype(np.float16))
    return f"{count:,} rows"


def open_and_read_one(path: Path) -> str:
    store = FeatureStore.open(path)
    return f"{len(store):,} rows; {store[store.keys[len(store) // 2]].shape} of one key"


def read_random(path: Path) -> str:
    store = FeatureStore.open(path)
    keys = [store.keys[number] for number in np.random.default_rng(0).integers(0, len(store), RANDOM_ROWS)]
    started = time.perf_counter()
    for key in keys:
        store[key]
    return f"{RANDOM_ROWS / (time.perf_counter() - started):,.0f} rows/s, one key at a time"


def read_all(path: Path) -> str:
    store = FeatureStore.open(path)
    started = time.perf_counter()
    total = sum(len(rows) for _, rows in store.blocks())
    return f"{total / (time.perf_counter() - started):,.0f} rows/s in blocks"


def append(path: Path) -> str:
    before = path.stat()
    store = FeatureStore.open(path)
    started = time.perf_counter()
    write(path, len(store), 10_000, store.spec)
    seconds = time.perf_counter() - started
    same = (before.st_ino, before.st_mtime_ns, before.st_size) == (
        path.stat().st_ino,
        path.stat().st_mtime_ns,
        path.stat().st_size,
    )
    return f"10,000 rows in {seconds:.1f} s; the main file is {'the same' if same else 'REWRITTEN'}"


def verify(path: Path) -> str:
    store = FeatureStore.open(path)
    started = time.perf_counter()
    damaged = store.verify()
    return f"{len(store) / (time.perf_counter() - started):,.0f} rows/s, {len(damaged)} damaged"


def merge_both(path: Path) -> str:
    half = path.with_name("other.h5")
    return f"{merge_stores([path, half], path.with_name('merged.h5')).rows:,} rows of 2 stores"


STEPS: dict[str, Callable[[Path], str]] = {
    "open, read one row": open_and_read_one,
    "random rows": read_random,
    "all rows": read_all,
    "append": append,
    "open after appending": open_and_read_one,
    "verify": verify,
    "merge": merge_both,
}


def run_step(path: Path, name: str, rows: int, spec: FeatureSpec) -> None:
    """Run one step in this process: print what it did, how long it took, its peak memory."""
    started = time.perf_counter()
    if name == "write":
        result = write(path, 0, rows, spec)
    elif name == "write another":
        result = write(path.with_name("other.h5"), 10_000_000, rows // 10, spec)
    else:
        result = STEPS[name](path)
    seconds = time.perf_counter() - started
    print(json.dumps([result, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000, help="images in the finished folder; 0 leaves it out")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        spec = FeatureSpec("resnet50", "benchmark", "0" * 64, "crop", 224, 256)
        spec = read_bundle(arguments.model).spec if arguments.model else spec
        run_step(Path(arguments.step[0]), arguments.step[1], arguments.rows, spec)
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        print("| step | what | seconds | peak memory, GB |\n|---|---|---|---|")
        for step in ("write", "write another", *STEPS):
            command = [sys.executable, __file__, str(arguments.photos), "--rows", str(arguments.rows)]
            command += ["--step", str(work / "f.h5"), step]
            command += ["--model", str(arguments.model)] if arguments.model else []
            result, seconds, memory = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(f"| {step} | {result} | {seconds:.1f} | {memory:.2f} |", flush=True)
        if arguments.model:
            run = run_command("search", work / "f.h5", "a dog in the snow", "--model", arguments.model)
            print(f"| search | {run.output.splitlines()[-1]} | {run.seconds:.1f} | {run.peak_rss_gb:.2f} |", flush=True)
        if arguments.images:
            folder = link_photos(arguments.photos, work / "photos", arguments.images)
            words = ["extract", folder, "--output", work / "photos.h5", "--backbone", "scenes-resnet14"]
            words += ["--preprocess", "squash", "--image-size", 32, "--batch-size", 128]
            for step in ("extract a folder, small network", "extract it again"):
                run = run_command(*words)
                result = run.output.rsplit("photos.h5: ", 1)[1].splitlines()[0].split(";")[0]  # after lines of progress
                print(f"| {step} | {result} | {run.seconds:.1f} | {run.peak_rss_gb:.2f} |", flush=True)


if __name__ == "__main__":
    main()
