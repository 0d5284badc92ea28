"""Hours of extract, caption and apply in one process, with faults: memory, handles and results stay flat.

Each round draws a fault for each command: some images are damaged before and whole again after, Ctrl-C comes at a
random moment, or the disk is full. Then the commands run without a fault, and what they leave must be the same bytes in
every round. Memory, open files and threads are measured after each fortieth of the time; they must not grow from the
third quarter to the fourth. Of memory the median of each is compared: it varies by some per cent from round to round.
"""

import contextlib
import faulthandler
import gc
import io
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType

import torch
from faults.attempts import Limits, Tally
from faults.fuzz import damage_bytes
from faults.world import COMMANDS_OF_SOAK, fill_disk, make_world

from captionmill.cli import main as captionmill
from captionmill.data.features.store import FeatureStore
from captionmill.pipeline.terminal.endings import listen_to_signals

MOST_GROWN = 0.05
"""Of the memory, from the third quarter to the fourth."""
MOST_LATE_S = 10
"""Threads end so many seconds after Ctrl-C; those that have not are counted."""
LONGEST_ROUND_S = 300
"""Of nine commands, each of which takes a second or two."""
MEASURED = 40
"""How often memory, open files and threads are measured."""


def run_here(words: str) -> str:
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
    return int(status["VmRSS"].split()[0]) / 1000, len(list(Path("/proc/self/fd").iterdir())), count_threads()


def run_with_fault(words: str, fault: str, draw: random.Random, disk: Path | None) -> None:
    if fault == "damaged images":
        paths = sorted(path for path in Path("photos").rglob("*") if path.suffix in (".png", ".jpg"))
        before = [(path, path.read_bytes(), path.stat()) for path in draw.sample(paths, 3)]
        for path, content, _ in before:
            path.write_bytes(damage_bytes(content, draw))
        run_here(words)
        for path, content, status in before:
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif fault == "Ctrl-C":
        interrupt(words, draw.uniform(0.001, 1))
    elif fault == "full disk" and disk is not None:
        with fill_disk(disk, int(4096 * 2 ** draw.uniform(0, 7))):
            run_here(words)


def interrupt(words: str, seconds: float) -> None:
    """Run a command, with Ctrl-C after so many seconds, and wait until it has come and all threads have ended."""
    streams, threads = (sys.stdout, sys.stderr), count_threads()
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        run_here(words)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
    try:  # one that came during an import, or where a lock is taken, comes a moment later
        until = time.monotonic() + MOST_LATE_S
        while count_threads() > threads and time.monotonic() < until:
            time.sleep(0.01)
    except KeyboardInterrupt:
        pass
    sys.stdout, sys.stderr = streams


def press_ctrl_c(_: int, frame: FrameType | None) -> None:
    """Do what the command does at Ctrl-C, at the place in the code where the alarm came."""
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler)
    handler(signal.SIGINT, frame)


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def results() -> tuple[bytes, bytes]:
    return FeatureStore.open("out.features.h5").digest(), Path("out.csv").read_bytes()


def run(limits: Limits) -> Tally:
    torch.set_num_threads(1)
    listen_to_signals()
    signal.signal(signal.SIGALRM, press_ctrl_c)
    draw = random.Random(limits.seed)
    faults = ["damaged images", "Ctrl-C", *(["full disk"] if limits.disk else [])]
    counts = Counter[str]()
    tally, rounds, measured, expected = Tally(), 0, [measure()], None
    with tempfile.TemporaryDirectory(dir=limits.work) as name:
        os.environ["CAPTIONMILL_CACHE"] = str(Path(name, "cache"))
        shutil.rmtree((limits.disk or Path(name)) / "world", ignore_errors=True)
        world = make_world((limits.disk or Path(name)) / "world")
        os.chdir(world)
        limits = limits.from_now()
        while limits.allow(tally.tried):
            faulthandler.dump_traceback_later(
                LONGEST_ROUND_S, exit=True
            )  # a round that hangs shows where, and ends all
            for words in COMMANDS_OF_SOAK:
                fault = draw.choice(faults)
                run_with_fault(words, fault, draw, limits.disk)
                counts[fault] += 1
            failures = [failure for words in COMMANDS_OF_SOAK if (failure := run_here(words))]
            print("\n".join(failures), end="", flush=True)
            expected = expected or results()
            tally.tried += len(COMMANDS_OF_SOAK)
            tally.held += len(COMMANDS_OF_SOAK) if not failures and results() == expected else 0
            rounds += 1
            if rounds % 4 == 0:  # every fourth starts from nothing
                for path in [*world.glob("out*"), *(world / "photos").rglob("*.txt")]:
                    path.unlink() if path.is_file() else shutil.rmtree(path)
                shutil.rmtree(world / ".out.csv.made")
            if limits.elapsed >= len(measured) * limits.seconds / MEASURED:
                measured.append(measure())
        faulthandler.cancel_dump_traceback_later()
        os.chdir("/")
        shutil.rmtree(world)
    third, fourth = measured[len(measured) // 2 : -(len(measured) // 4) or None], measured[-(len(measured) // 4) :]
    memory = [statistics.median(one[0] for one in quarter) for quarter in (third, fourth)]
    if memory[1] > memory[0] * (1 + MOST_GROWN) or any(
        max(one[kind] for one in fourth) > max(one[kind] for one in third) for kind in (1, 2)
    ):
        tally.held = 0
    tally.note = (
        f"{rounds:,} rounds with {', '.join(f'{count} {name}' for name, count in counts.items())}; "
        f"{memory[0]:.0f} MB in the third quarter, {memory[1]:.0f} in the fourth, {fourth[-1][1]} open files, "
        f"{fourth[-1][2]} threads"
    )
    return tally
