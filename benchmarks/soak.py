"""Half an hour of extract, caption and apply in one process, with faults: memory, handles and results stay flat.

python benchmarks/soak.py [--seconds 1800] [--seed 0] [--disk DIR]

Each round draws a fault for each command: some images are damaged before and whole again after, Ctrl-C comes at a
random moment, or, with --disk DIR, another file system such as `mount -t tmpfs -o size=64m tmpfs DIR` makes, the
disk is full. Then the commands run without a fault, and what they leave must be the same bytes in every round. Prints
memory, open files and threads after each twentieth of the time; fails if they grow in the second half.
"""

import argparse
import contextlib
import gc
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from toys import COMMANDS_OF_SOAK, fill_disk, make_world

from captionmill.cli import main as captionmill
from captionmill.data.features.store import FeatureStore

MOST_GROWN = 0.05
"""Of the memory, from the middle to the end."""


def run(words: str) -> str:
    """Run a command in this process; what it prints if it fails, else ""."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            captionmill(words.split(), prog_name="captionmill")
        except SystemExit as exc:
            return f"{words} ended with {exc.code}: {text.getvalue()}" if exc.code else ""
    return ""


def measure() -> tuple[float, int, int]:
    """Memory in MB, open files and threads of this process."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1000, len(list(Path("/proc/self/fd").iterdir())), int(status["Threads"])


def damage_images(folder: Path, draw: random.Random) -> dict[Path, bytes]:
    """Damage some images; what they held before."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    before = {path: path.read_bytes() for path in draw.sample(paths, 3)}
    for path, content in before.items():
        place = draw.randrange(len(content))
        ways = [content[:place], content[:place] + draw.randbytes(50) + content[place + 50 :], draw.randbytes(300), b""]
        path.write_bytes(draw.choice(ways))
    return before


def run_with_fault(words: str, fault: str, draw: random.Random, disk: Path | None) -> None:
    if fault == "damaged images":
        times = {path: path.stat() for path in Path("photos").rglob("*")}
        before = damage_images(Path("photos"), draw)
        run(words)
        for path, content in before.items():
            path.write_bytes(content)
            os.utime(path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))
    elif fault == "Ctrl-C":
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.001, 1))
        with contextlib.suppress(KeyboardInterrupt):
            run(words)
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(0.2)  # one that came during an import waits for its end
    elif fault == "full disk" and disk is not None:
        with fill_disk(disk, int(4096 * 2 ** draw.uniform(0, 7))):
            run(words)


def results() -> tuple[bytes, bytes]:
    return FeatureStore.open("out.features.h5").digest(), Path("out.csv").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(arguments.seed)
    faults = ["damaged images", "Ctrl-C", *(["full disk"] if arguments.disk else [])]
    counts, different = Counter[str](), 0
    measured: list[tuple[float, int, int]] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        os.environ["CAPTIONMILL_CACHE"] = str(Path(name, "cache"))
        shutil.rmtree((arguments.disk or Path(name)) / "world", ignore_errors=True)
        world = make_world((arguments.disk or Path(name)) / "world")
        os.chdir(world)
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        started, expected, rounds = time.monotonic(), None, 0
        print("| seconds | rounds | memory, MB | open files | threads |\n|---|---|---|---|---|", flush=True)
        while (elapsed := time.monotonic() - started) < arguments.seconds:
            for words in COMMANDS_OF_SOAK:
                fault = draw.choice(faults)
                run_with_fault(words, fault, draw, arguments.disk)
                counts[fault] += 1
            for words in COMMANDS_OF_SOAK:
                if failure := run(words):
                    raise SystemExit(f"after {dict(counts)}: {failure}")
            expected = expected or results()
            different += results() != expected
            rounds += 1
            if rounds % 4 == 0:  # every fourth starts from nothing
                for path in [*world.glob("out*"), *(world / "photos").rglob("*.txt")]:
                    path.unlink() if path.is_file() else shutil.rmtree(path)
                shutil.rmtree(world / ".out.csv.made")
            if elapsed >= len(measured) * arguments.seconds / 20:
                measured.append(measure())
                memory, files, threads = measured[-1]
                print(f"| {elapsed:.0f} | {rounds:,} | {memory:.0f} | {files} | {threads} |", flush=True)
        os.chdir("/")
        shutil.rmtree(world)
    middle, last = measured[len(measured) // 2], measured[-1]
    has_grown = last[0] > middle[0] * (1 + MOST_GROWN) or last[1] > middle[1] or last[2] > middle[2]
    print(f"{rounds:,} rounds with {dict(counts)}; {different} left other bytes; {'grown' if has_grown else 'flat'}")
    sys.exit(bool(different or has_grown))


if __name__ == "__main__":
    main()
