"""Many attempts of one kind: how many were made, and how many held.

An attempt gets its own random numbers and folder. It holds if it returns. Attempts run in a process for themselves, so
that an exception, a crash, a hang and a full memory are all seen as faults; the next process continues behind them.
"""

import contextlib
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.sharedctypes import Array
from pathlib import Path
from typing import Any

from captionmill.data.errors import CaptionmillError

FORK = multiprocessing.get_context("fork")
LONGEST_S, LONGEST_CPU_S = 90, 20
"""For one attempt: a file that HDF5 cannot be trusted with is tried in another process for up to a minute."""
MEMORY = 3_000_000_000  # bytes of addresses, beyond those that a process has at its start

Attempt = Callable[[random.Random, Path], None]


@dataclass(frozen=True)
class Limits:
    """How much of one kind is tried, and where."""

    kind: str
    count: int
    seconds: float
    seed: int
    work: Path
    """A fast folder for files."""
    disk: Path | None = None
    """A small file system that may be filled."""
    jobs: tuple[str, ...] = ()
    """The names of the jobs that are killed; all if empty."""
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def allow(self, tried: int) -> bool:
        """Whether another one may be tried."""
        return tried < self.count and self.elapsed < self.seconds

    def from_now(self) -> "Limits":
        """The same, for what begins when all that it needs is made."""
        return replace(self, started=time.monotonic())


@dataclass
class Tally:
    """What was tried, and what held."""

    tried: int = 0
    held: int = 0
    note: str = ""


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A refusal is an error of captionmill or of the system, in one line."""
    try:
        yield
    except (CaptionmillError, OSError) as exc:
        if "\n" in str(exc):
            raise


def try_many(attempt: Attempt, limits: Limits) -> Tally:
    """Attempts as far as the limits allow; each that did not hold is printed with its number."""
    counts = Array("q", 2, lock=False)
    with tempfile.TemporaryDirectory(dir=limits.work) as name:
        while limits.allow(counts[0]):
            process = FORK.Process(target=_try_some, args=(attempt, limits, counts, Path(name)))
            process.start()
            process.join()
            if process.exitcode:
                said = (Path(name) / "stderr").read_text(errors="replace")[-4000:]
                print(f"{said}\n{limits.kind} {counts[0] - 1}: the process ended with {process.exitcode}", flush=True)
    return Tally(counts[0], counts[1])


def _try_some(attempt: Attempt, limits: Limits, counts: Any, work: Path) -> None:
    """Attempts until one does not hold; counts how many were begun and have held."""
    os.dup2(os.open(work / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), sys.stderr.fileno())
    importlib.import_module("torch")  # before the limit: its libraries take gigabytes of addresses
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)  # ends the process, also inside a library
    while limits.allow(counts[0]):
        number = counts[0]
        folder = work / str(number)
        folder.mkdir()
        os.chdir(folder)
        counts[0] += 1
        signal.alarm(LONGEST_S)
        signal.setitimer(signal.ITIMER_PROF, LONGEST_CPU_S)
        attempt(random.Random(f"{limits.seed} {limits.kind} {number}"), folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        counts[1] += 1
        os.chdir(work)
        shutil.rmtree(folder)
