"""Kill an extraction again and again at random moments; show that its store never breaks and ends as if never killed.

python benchmarks/kills.py PHOTOS [--kills 200] [--longest 4] [--images 60000] [--seed 0] [--small-disk DIR]

PHOTOS is a folder of images, used over and over by symbolic links. The demo's small network keeps it short; the
store does not know the difference. Each life is a real process that runs `extract`, started by a fork server that has
imported torch already, and killed with SIGKILL. DIR is a folder on a file system too small for the store, such as one
made with `mount -t tmpfs -o size=40m tmpfs DIR`: the extraction fills it, and resumes where there is room.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from photos import link_photos

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from captionmill.data.errors import StoreError
from captionmill.data.features.parts import parts_dir
from captionmill.data.features.store import FeatureStore, store_exists
from captionmill.stages.encoding.extract import extract
from captionmill.stages.settings import ExtractConfig

CONFIG = ExtractConfig(
    backbone="scenes-resnet14", preprocess="squash", image_size=64, flush_every=128, engine="torch", precision="fp32"
)


def live(folder: Path, output: Path) -> None:
    """One life of the extraction."""
    extract(folder, output, CONFIG)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--longest", type=float, default=4, help="seconds that a life may last at most")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small-disk", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["captionmill.stages.encoding.extract"])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = link_photos(arguments.photos, work / "photos", arguments.images)
        live(folder, work / "whole.h5")
        whole = FeatureStore.open(work / "whole.h5")
        print(f"uninterrupted: {len(whole):,} rows", flush=True)
        if arguments.small_disk:
            fill_disk(folder, arguments.small_disk / "full.h5", work / "full.h5", whole)
        output = work / "killed.h5"
        kills = extractions = rows = damaged = lost = 0
        started = time.monotonic()
        while kills < arguments.kills:
            process = context.Process(target=live, args=(folder, output))
            process.start()
            process.join(moments.uniform(0, arguments.longest))
            if process.exitcode is None:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
            elif process.exitcode:
                raise SystemExit(f"a life ended with {process.exitcode}")
            else:
                extractions += 1
                require_equal(whole, FeatureStore.open(output))
                output.unlink()
                rows = 0
            if store_exists(output):
                store = FeatureStore.open(output)
                damaged += len(store.verify())
                lost += max(0, rows - len(store))
                rows = len(store)
            if kills % 20 == 0:
                seconds = time.monotonic() - started
                print(f"{kills} kills, {rows:,} rows, {damaged} damaged, {lost} lost, {seconds:.0f} s", flush=True)
        live(folder, output)
        require_equal(whole, FeatureStore.open(output))
        print(
            f"{kills} kills over {extractions + 1} extraction(s): every interim store opened and verified, {damaged} "
            f"damaged rows, {lost} rows lost after they were stored; the final store equals the uninterrupted one"
        )


def fill_disk(folder: Path, small: Path, large: Path, whole: FeatureStore) -> None:
    """Extract to `small` until its disk is full, look at what is there, move it to `large` and resume."""
    try:
        live(folder, small)
        raise SystemExit("the small disk is not too small")
    except StoreError as exc:
        print(f"full disk: {exc}")
    store = FeatureStore.open(small)
    print(f"full disk: {len(store):,} rows stored, {len(store.verify())} damaged", flush=True)
    shutil.move(parts_dir(small), parts_dir(large))
    live(folder, large)
    require_equal(whole, FeatureStore.open(large))
    print("full disk: the finished store equals the uninterrupted one", flush=True)


def require_equal(whole: FeatureStore, other: FeatureStore) -> None:
    """Stop the benchmark unless both stores hold the same keys, rows and sources."""
    if whole.digest() != other.digest() or other.verify():
        raise SystemExit("the stores differ")


if __name__ == "__main__":
    main()
