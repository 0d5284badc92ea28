"""Kill `apply` again and again at random moments; show that the table is always whole and ends with every decision.

python benchmarks/apply_kills.py [--kills 120] [--rows 20000] [--decisions 2000] [--seed 0] [--format csv]

Each life is a real process that merges one file of decisions, started by a fork server and killed with SIGKILL. A merge
reads (until the new table is begun beside the old one), writes (until the new one takes its place) and ends; a kill
comes at a random moment of one of these, drawn first. Every other life meets what was left. After each kill
every row of the table must be as it was or as decided; after each merge that ends, and a run over the folder after it,
all decisions must be there and nothing else changed.
"""

import argparse
import csv
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np

from captionmill.data.tables.decisions import apply_decisions
from captionmill.data.tables.formats import TableFormat, read_captions
from captionmill.data.tables.journal import made_dir
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions

PHASES = ("reads", "writes", "ends")


def make_rows(keys: Sequence[str]) -> list[CaptionRow]:
    return [CaptionRow(key, f"a dog runs over {key}", 0.5) for key in keys]


def run_caption(path: Path, keys: Sequence[str], table_format: TableFormat) -> None:
    """What a run over the folder does to the table."""
    wanted = WantedTable(keys, np.arange(len(keys), dtype=np.uint32), {"model": "one"}, table_format)
    update_captions(path, wanted, make_rows)


def merge_and_run(table: Path, decisions: str, keys: Sequence[str], table_format: TableFormat) -> None:
    apply_decisions(table.with_name(decisions), table)
    run_caption(table, keys, table_format)


def start(context: ForkServerContext, table: Path, decisions: str) -> ForkServerProcess:
    process = context.Process(target=apply_decisions, args=(table.with_name(decisions), table))
    process.start()
    return process


class Life:
    """A process that merges decisions into `table`, watched from outside."""

    def __init__(self, process: ForkServerProcess, table: Path) -> None:
        self._process, self._table = process, table
        self._old, self._leftovers = table.stat().st_ino, self._partials()

    def wait_for(self, phase: int) -> None:
        """Return when the phase begins, or at the end of the process."""
        while self._process.exitcode is None and self._phase() < phase:
            time.sleep(0.0002)

    def _phase(self) -> int:
        if self._table.stat().st_ino != self._old:
            return 2
        return int(bool(self._partials() - self._leftovers))

    def _partials(self) -> set[Path]:
        return set(self._table.parent.glob(f".{self._table.name}.*.partial"))


def measure(context: ForkServerContext, table: Path, decisions: str) -> list[float]:
    """How long each phase of a whole merge takes, seconds."""
    life = Life(start(context, table, decisions), table)
    moments = [time.monotonic()]
    for phase in range(1, len(PHASES) + 1):
        life.wait_for(phase)
        moments.append(time.monotonic())
    return [end - begin for begin, end in itertools.pairwise(moments)]


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
        lengths = [0.0] * len(PHASES)
        for _ in range(3):  # the first starts the fork server
            lengths = measure(context, table, decisions.name)
            shutil.rmtree(work)
            shutil.copytree(fresh, work)
        kills = merges = 0
        seen = {phase: [0, 0] for phase in PHASES}
        while kills < arguments.kills:
            phase = draws.randrange(len(PHASES))
            process = start(context, table, decisions.name)
            life = Life(process, table)
            life.wait_for(phase)
            process.join(draws.uniform(0, 1.1 * lengths[phase]))
            if process.exitcode is None:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
                rows = {row.path: row for row in read_captions(table)}
                if rows not in (before, wanted):
                    raise SystemExit(f"kill {kills}: the table is neither as before nor as decided")
                seen[PHASES[phase]][rows == wanted] += 1
                if rows == before and draws.random() < 0.5:  # else the next life meets what this one left
                    continue
            elif process.exitcode:
                raise SystemExit(f"a life ended with {process.exitcode}")
            finish = context.Process(target=merge_and_run, args=(table, decisions.name, keys, arguments.format))
            finish.start()  # in a process that has not removed leftovers of this folder yet
            finish.join()
            if finish.exitcode:
                raise SystemExit(f"a whole merge ended with {finish.exitcode}")
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
            f"({sum(lengths):.2f} s each, {arguments.format}): the table was whole after each; every merge that ended "
            "has all decisions, and nothing else is changed"
        )
        for name_of_phase, length in zip(PHASES, lengths, strict=True):
            as_before, as_decided = seen[name_of_phase]
            print(
                f"{name_of_phase} ({1000 * length:.0f} ms): {as_before} times as before, {as_decided} times as decided"
            )


if __name__ == "__main__":
    main()
