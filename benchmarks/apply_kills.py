"""Kill `apply` again and again at random moments; show that the table is always whole and ends with every decision.

python benchmarks/apply_kills.py [--kills 120] [--rows 20000] [--decisions 2000] [--seed 0] [--format csv]

Each life is a real process that merges one file of decisions, started by a fork server and killed with SIGKILL at a
moment within the time that a whole merge takes. After each kill every row of the table must be as it was or as decided;
after each merge that ends, and a run over the folder after it, all decisions must be there and nothing else changed.
"""

import argparse
import csv
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from captionmill.data.tables.decisions import apply_decisions
from captionmill.data.tables.formats import TableFormat, read_captions
from captionmill.data.tables.journal import made_dir
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions


def make_rows(keys: Sequence[str]) -> list[CaptionRow]:
    return [CaptionRow(key, f"a dog runs over {key}", 0.5) for key in keys]


def run_caption(path: Path, keys: Sequence[str], table_format: TableFormat) -> None:
    """What a run over the folder does to the table."""
    wanted = WantedTable(keys, np.arange(len(keys), dtype=np.uint32), {"model": "one"}, table_format)
    update_captions(path, wanted, make_rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--decisions", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=["csv", "jsonl", "parquet"], default="csv")
    arguments = parser.parse_args()
    draws = random.Random(arguments.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["captionmill.data.tables.decisions"])
    keys = [f"{number:06d}.jpg" for number in range(arguments.rows)]
    before = {row.path: row for row in make_rows(keys)}
    with tempfile.TemporaryDirectory() as name:
        fresh, work = Path(name, "fresh"), Path(name, "work")
        fresh.mkdir()
        table, decisions = work / "t", fresh / "decisions.csv"
        run_caption(fresh / "t", keys, arguments.format)
        wanted = dict(before)
        with decisions.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "decision", "caption", "shown"])
            for key in sorted(draws.sample(keys, arguments.decisions)):
                writer.writerow([key, "corrected", f"a person saw {key}", before[key].caption])
                wanted[key] = CaptionRow(key, f"a person saw {key}", None, status="corrected")
        shutil.copytree(fresh, work)
        whole_s = 0.0
        for _ in range(2):  # the first starts the fork server
            started = time.monotonic()
            process = context.Process(target=apply_decisions, args=(work / "decisions.csv", table))
            process.start()
            process.join()
            whole_s = time.monotonic() - started
            shutil.rmtree(work)
            shutil.copytree(fresh, work)
        kills = merges = seen_before = seen_after = 0
        while kills < arguments.kills:
            process = context.Process(target=apply_decisions, args=(work / "decisions.csv", table))
            process.start()
            process.join(draws.uniform(0, 1.2 * whole_s))
            if process.exitcode is None:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
                rows = {row.path: row for row in read_captions(table)}
                if rows not in (before, wanted):
                    raise SystemExit(f"kill {kills}: the table is neither as before nor as decided")
                seen_before, seen_after = seen_before + (rows == before), seen_after + (rows == wanted)
                if rows == before and draws.random() < 0.5:  # else the next life meets what this one left
                    continue
            elif process.exitcode:
                raise SystemExit(f"a life ended with {process.exitcode}")
            apply_decisions(work / "decisions.csv", table)
            run_caption(table, keys, arguments.format)
            if {row.path: row for row in read_captions(table)} != wanted:
                raise SystemExit("a decision is lost, or another row is changed")
            others = {path.name for path in work.iterdir()} - {"t", "decisions.csv", made_dir(table).name}
            if others:
                raise SystemExit(f"left beside the table: {others}")
            merges += 1
            shutil.rmtree(work)
            shutil.copytree(fresh, work)
        print(
            f"{kills} kills over {merges} merges of {arguments.decisions:,} decisions into {arguments.rows:,} rows "
            f"({whole_s:.2f} s each): the table was whole after each, {seen_before} times as before, {seen_after} as "
            "decided; every merge that ended has all decisions, and nothing else is changed"
        )


if __name__ == "__main__":
    main()
