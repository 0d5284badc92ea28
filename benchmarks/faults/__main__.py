"""Kills, full disks, damaged and hostile files, races, and hours of work: what was tried, and what held, in one table.

python benchmarks/faults all --seconds 3600 --disk DIR
python benchmarks/faults kills flips --seconds 600 --seed 7 --kills 1000 --flips 10000 [--jobs extract "run --from"]

kills      SIGKILL at a random moment of every command that writes: nothing is lost, and the same command ends it.
disks      a random number of bytes is free for them. DIR is another file system, such as
           `mount -t tmpfs -o size=64m tmpfs DIR` makes; a run of all kinds leaves this one out without it.
signals    Ctrl-C or SIGTERM at a random moment of each: it ends in one line, nothing is lost, and the next run ends it.
soak       extract, caption and apply in one process with damaged images, Ctrl-C and, with DIR, full disks.
memory     peak memory of large images under `--memory`.
images     damaged images: refused, or the right pixels where they can be known.
flips      one bit of a store is flipped: it is refused, or every row that `verify` passes is right.
hostile    pipes, devices, sockets, folders and random bytes as each input: refused in one line, within seconds.
weights, bundles, captions, plans, tables, journals, scores
           damaged files of each kind: read, or refused in one line, within seconds.
links      folders full of links that lead out: nothing outside is touched.
races      two processes write one output at once: it is one of the two, whole.

The time is shared among the kinds: what one leaves, the next ones have. A number after --KIND ends that kind earlier.
Each attempt that did not hold is printed. Needs Linux.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.attempts import FORK, Limits, Tally

SHM = Path("/dev/shm")
KINDS: dict[str, tuple[str, float]] = {
    "images": ("hostile", 1),
    "flips": ("hostile", 4),
    "hostile": ("hostile", 3),
    **dict.fromkeys(("weights", "bundles", "captions", "plans", "tables", "journals", "scores"), ("fuzz", 1)),
    "links": ("hostile", 1),
    "races": ("hostile", 1),
    "memory": ("memory", 2),
    "soak": ("soak", 4),
    "disks": ("kills", 4),
    "signals": ("kills", 4),
    "kills": ("kills", 12),
}
"""The module that tries each kind, and its share of the time, in their order."""


def try_kind(limits: Limits) -> Tally:
    """One kind, in the child process that it has for itself, with nothing but its own imports."""
    logging.disable()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
    module = importlib.import_module(f"faults.{KINDS[limits.kind][0]}")
    tally: Tally = module.run(limits)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=["all", *KINDS], metavar="KIND")
    parser.add_argument("--seconds", type=float, default=3600, help="for all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path, help="a small file system that may be filled")
    parser.add_argument("--work", type=Path, default=SHM if SHM.is_dir() else None, help="a fast folder for files")
    parser.add_argument("--jobs", nargs="*", default=[], help="of kills, disks and signals")
    for name in KINDS:
        parser.add_argument(f"--{name}", type=int, default=sys.maxsize, metavar="N")
    arguments = parser.parse_args()
    if "disks" in arguments.kinds and arguments.disk is None:
        parser.error("disks needs --disk")
    left = [name for name in KINDS if name in arguments.kinds or "all" in arguments.kinds]
    left = [name for name in left if name != "disks" or arguments.disk is not None]
    whole = Limits("all", 0, arguments.seconds, arguments.seed, arguments.work, arguments.disk, tuple(arguments.jobs))
    rows: list[str] = []
    has_held = True
    while left:
        share = KINDS[left[0]][1] / sum(KINDS[name][1] for name in left)
        name = left.pop(0)
        seconds = share * (whole.seconds - whole.elapsed)
        count = getattr(arguments, name)
        limits = replace(whole, kind=name, count=count, seconds=seconds, started=time.monotonic())
        try:
            with ProcessPoolExecutor(1, FORK) as pool:
                tally = pool.submit(try_kind, limits).result()
        except BrokenProcessPool:
            tally = Tally(1, 0, "its process died or hung")
        has_held &= tally.tried == tally.held
        rows.append(f"| {name} | {tally.tried:,} | {tally.held:,} | {tally.note} |")
        print(f"{rows[-1]} {whole.elapsed:.0f} s", flush=True)
    print("\n| kind | tried | held | |\n|---|---|---|---|", *rows, sep="\n")
    print(f"\npython benchmarks/faults {' '.join(sys.argv[1:])}: {whole.elapsed:.0f} s")
    sys.exit(not has_held)


if __name__ == "__main__":
    main()
