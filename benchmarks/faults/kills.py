"""Kills, full disks, Ctrl-C for every command that writes: what was there stays whole, and the same command ends it.

Each job is a real command over a small world of files, started by a fork server. SIGKILL comes at a random moment: half
of the times at a random time, half when the command is about to change a folder for the n-th time: to open a file for
writing, to rename or to remove one. Or a random number of bytes is free on the disk, up to what the job writes; or
Ctrl-C or SIGTERM comes at a random time.

After each, every file that was there before must be as before or as an uninterrupted run leaves it, whatever is new
must be as that run leaves it, and every store must open, verify and have lost no row. Then the same command runs again,
mostly after further kills, and must leave the same bytes as the uninterrupted run, and no partial file.
"""

import csv
import fnmatch
import os
import random
import re
import shutil
import signal
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.attempts import Limits, Tally
from faults.lives import Ending, draw_moment, live
from faults.world import JOBS, Job, command, fill_disk, make_world

from captionmill.data.errors import CaptionmillError
from captionmill.data.features.log import read_records
from captionmill.data.features.store import FeatureStore, store_exists
from captionmill.data.models.bundle import read_bundle
from captionmill.data.tables.formats import is_caption_table, read_captions
from captionmill.pipeline.plan.records import Workspace

Snapshot = dict[str, Any]
WORK = re.compile(
    r"(.*/)?(\.[^/]*\.(partial|made|new)|[^/]*\.training|[^/]*\.parts|\.lock|[^/]*\.lock)(/.*)?", re.DOTALL
)
"""What a command writes while it works, by its path; `docs/formats.md` describes it."""
LEFT = re.compile(r"\..*\.(partial|new)|.*\.training", re.DOTALL)
"""That of it which no finished command leaves, by its name."""
VOLATILE = (
    (re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?[\d.+:Z]*"), b"TIME"),
    (re.compile(rb'("(?:seconds|duration_s|seconds_[a-z_]*|[a-z_]*_s)": )[\d.e-]+'), rb"\1S"),
)
"""What differs from run to run: times of day, and how long something took."""

MORE_KILLS = 0.7
"""The share of kills that are followed by another one in the same place."""
USUAL_S = 2
"""A job that takes more time of a core is tried more rarely, after the first turn."""
MOST_LATE_S = 60
"""A command ends so many seconds after Ctrl-C."""
LEAST_WRITTEN = 16_384  # bytes


@dataclass(frozen=True)
class Rows:
    """A store: the features' origin, and a checksum of each row, without the time of its image."""

    spec: str
    checksums: dict[str, int]


@dataclass(frozen=True)
class Case:
    """A job with what it finds and what it leaves."""

    job: Job
    start: Path
    before: Snapshot
    after: Snapshot
    whole: Ending
    written: int
    """Bytes of the files that the job writes, at least a few pages."""


def take_snapshot(folder: Path) -> Snapshot:
    """What each file below `folder` holds; raises an error of captionmill if one cannot be read."""
    found: Snapshot = {}
    for entry in sorted(folder.rglob("*")):
        path = entry.with_suffix("") if entry.name.endswith(".h5.parts") else entry
        name = path.relative_to(folder).as_posix()
        if path != entry:
            if not store_exists(path):
                continue
        elif not path.is_file() or WORK.fullmatch(name) or path.parent.name == "events":
            continue
        if path.name.endswith(".h5"):
            store = FeatureStore.open(path)
            damaged = set(store.verify())
            if damaged and "damaged" not in name:
                raise CaptionmillError(f"{name}: {len(damaged)} damaged rows")
            rows = {key: -1 if key in damaged else zlib.crc32(store[key].tobytes()) for key in store.keys}
            found[name] = Rows(str(store.spec), rows)
        elif name.endswith(".log.csv"):
            read_records(path.with_name(path.name.removesuffix(".log.csv")))
        elif path.name == "pipeline.made.json":
            Workspace(path.with_name("pipeline.toml"))
        elif path.name == "report.html":  # that of `run` shows how long each task took
            found[name] = path.read_bytes().rstrip().endswith(b"</html>")
        else:
            content = path.read_bytes()
            if path.name == "history.csv":
                epochs = list(csv.DictReader(content.decode().splitlines()))
                content = repr([{**row, "captions_per_s": "", "duration_s": ""} for row in epochs]).encode()
            for pattern, replacement in VOLATILE:
                content = pattern.sub(replacement, content)
            found[name] = content
            if path.name == "bundle.json":
                read_bundle(path.parent)
            elif name.startswith("out.") and path.suffix in (".csv", ".jsonl", ".parquet") and is_caption_table(path):
                list(read_captions(path))
    return found


def find_faults(case: Case, now: Snapshot) -> list[str]:
    """What is neither as before nor as after the job."""
    job, before, after = case.job, case.before, case.after
    belonging = {name for name in {*before, *after, *now} if any(fnmatch.fnmatch(name, one) for one in job.set_of)}
    faults = []
    has_set = bool(now.keys() & set(job.set_of[:1]))
    if has_set:  # a file that only the other version has may be beside it
        versions = [{name: old[name] for name in belonging & old.keys()} for old in (before, after)]
        is_whole = any(version and version.items() <= now.items() for version in versions)
        faults += [] if is_whole else [f"{job.set_of[0]}: its other files are of another version"]
    for name in {*before, *now} - (set() if has_set else belonging):
        is_, was, will = now.get(name), before.get(name), after.get(name)
        if is_ in (was, will) or (isinstance(is_, Rows) and is_between(is_, was, will)):
            continue
        faults.append(f"{name}: {'lost' if is_ is None else 'neither as before nor as after'}")
    return faults


def is_between(store: Rows, before: Rows | None, after: Rows | None) -> bool:
    """Whether an unfinished store has lost no row, and has none that neither an earlier nor the finished one has."""
    known = [old for old in (before, after) if old is not None and old.spec == store.spec]
    if before is not None and before.spec != store.spec:
        return False
    kept = set() if before is None else {key for key in before.checksums if after is None or key in after.checksums}
    rows = store.checksums
    return kept <= rows.keys() and all(any(old.checksums.get(key) == rows[key] for old in known) for key in rows)


class Faults:
    """Tries faults in one folder, and counts."""

    def __init__(self, work: Path, limits: Limits, disk: Path | None = None) -> None:
        self.work, self.seed = work, limits.seed
        self.here = (disk or work) / "here"
        """The folder in which every command runs: files may name it."""
        self.jobs = [job for job in JOBS if not limits.jobs or job.name in limits.jobs]
        self.cases: dict[int, Case] = {}
        self.tried, self.held, self.ends = Counter[str](), Counter[str](), Counter[str]()
        shutil.rmtree(self.here, ignore_errors=True)
        make_world(self.here)
        shutil.move(self.here, work / "world")

    def lay(self, folder: Path) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(folder, self.here)

    def prepare(self, number: int) -> Case:
        """Run a job without a fault."""
        job, start = self.jobs[number], self.work / f"start-{number}"
        self.lay(self.work / "world")
        for words in job.before:
            command(self.here, words)
        shutil.copytree(self.here, start)
        before, there = take_snapshot(self.here), {path: path.stat().st_ino for path in self.here.rglob("*")}
        whole = command(self.here, job.words)
        new = [path.stat() for path in self.here.rglob("*") if path.is_file()]
        written = sum(status.st_size for status in new if status.st_ino not in there.values())
        return Case(job, start, before, take_snapshot(self.here), whole, max(written, LEAST_WRITTEN))

    def count(self, case: Case, faults: Sequence[str], how: str) -> None:
        self.tried[case.job.name] += 1
        self.held[case.job.name] += not faults
        for fault in faults:
            print(f"{case.job.name}, {how}: {fault}", flush=True)

    def finish(self, case: Case) -> list[str]:
        """Run the command again, without a fault, and compare what it leaves."""
        try:
            ending = live(case.job.words.split(), self.here)
            now = take_snapshot(self.here)
        except (CaptionmillError, TimeoutError) as exc:
            return [f"after the next run: {exc}"]
        if ending.code and now != case.after:  # a job that refuses to do again what it has done is right
            return [f"the next run ended with {ending.code}: {ending.output[-500:]}"]
        names = {*now, *case.after}
        faults = [f"{name}: differs after the next run" for name in names if now.get(name) != case.after.get(name)]
        return faults + [f"{path}: left behind" for path in self.here.rglob("*") if LEFT.fullmatch(path.name)]

    def look(self, case: Case) -> list[str]:
        try:
            return find_faults(case, take_snapshot(self.here))
        except CaptionmillError as exc:
            return [str(exc)]

    def try_kill(self, case: Case, draw: random.Random) -> None:
        """Kill the job, and mostly what follows too, until it may end; then compare."""
        self.lay(case.start)
        is_over = False
        while not is_over:
            moment = draw_moment(draw, case.whole)
            ending = live(case.job.words.split(), self.here, **moment)
            faults = self.look(case)
            is_over = bool(faults) or not ending.was_killed or draw.random() > MORE_KILLS
            if is_over:
                faults = faults or self.finish(case)
            if ending.was_killed or faults:
                self.count(case, faults, f"kill {moment}")

    def try_signal(self, case: Case, draw: random.Random) -> None:
        """Send the job Ctrl-C or SIGTERM at a random moment: it ends by itself, in a line, and the next run ends it."""
        self.lay(case.start)
        number, seconds = draw.choice((signal.SIGINT, signal.SIGTERM)), draw.uniform(0, 1.1 * case.whole.seconds)
        try:
            ending = live(case.job.words.split(), self.here, seconds=seconds, number=number, most_s=MOST_LATE_S)
        except TimeoutError as exc:
            self.count(case, [str(exc)], f"{number.name} after {seconds:.2f} s")
            return
        codes = 128 + number, 128 + signal.SIGINT  # the page of `review` ends it by Ctrl-C too
        is_said = ending.code in codes and "Stopped. " in ending.output
        is_early = ending.code in (-number, 128 + number) and not ending.output  # the program was still imported
        self.ends["stopped" if is_said else "before" if is_early else "after"] += 1
        faults = self.look(case)
        if "Traceback" in ending.output or not (is_said or is_early or ending.code == 0):
            faults.append(f"ended with {ending.code}: {ending.output[-1500:]}")
        self.count(case, faults or self.finish(case), f"{number.name} after {seconds:.2f} s")

    def try_full_disk(self, case: Case, draw: random.Random) -> None:
        """Leave the job some bytes; then give it room."""
        self.lay(case.start)
        free = int(4096 * (case.written / 4096) ** draw.random())
        with fill_disk(self.here.parent, free):
            ending = live(case.job.words.split(), self.here)
        self.ends["fits" if not ending.code else "full"] += 1
        faults = self.look(case)
        lines = [line for line in ending.output.splitlines() if line.startswith("Error: ")]
        if ending.code and (len(lines) != 1 or "Traceback" in ending.output):
            faults.append(f"ended with {ending.code} and {len(lines)} lines of errors: {ending.output[-1500:]}")
        self.count(case, faults or self.finish(case), f"{free:,} bytes free")

    def try_all(self, try_one: Callable[[Case, random.Random], None], limits: Limits) -> Tally:
        """Go through the jobs again and again."""
        draws = [random.Random(f"{limits.seed} {job.name}") for job in self.jobs]
        turn = 0
        while limits.allow(self.tried.total()):
            number, turn = turn % len(self.jobs), turn + 1
            case = self.cases[number] = self.cases.get(number) or self.prepare(number)
            if turn <= len(self.jobs) or draws[number].random() < USUAL_S / case.whole.cpu_seconds:
                try_one(case, draws[number])
        counts = [self.tried[job.name] for job in self.jobs]
        note = f"{sum(map(bool, counts))} jobs of {len(counts)}, {min(counts)} to {max(counts)} in each"
        return Tally(self.tried.total(), self.held.total(), f"{note} {dict(self.ends) or ''}".strip())


def run(limits: Limits) -> Tally:
    """SIGKILLs, full disks, or Ctrl-C and SIGTERM."""
    with tempfile.TemporaryDirectory(dir=limits.work) as name:
        os.environ["CAPTIONMILL_CACHE"] = str(Path(name, "cache"))
        faults = Faults(Path(name), limits, limits.disk if limits.kind == "disks" else None)
        tries = {"disks": faults.try_full_disk, "kills": faults.try_kill, "signals": faults.try_signal}
        return faults.try_all(tries[limits.kind], limits)
