"""Hostile files: planted links, races for one output, flipped stores, pipes and devices as inputs. Tried and held.

python benchmarks/hostile.py [links races flips inputs] [--count 10000] [--seconds 600] [--seed 0]

links    folders full of links that lead out, under every name that is written to; what is outside must stay, byte for
         byte, whether the command succeeds or refuses.
races    two processes write one output at once: both end well, and the file is one of the two, whole.
flips    one bit of a store is flipped: it is refused, or every row that `verify` passes is the one that was written.
inputs   pipes, devices, sockets, folders and random bytes as a store, part, model, weights, list, captions, table,
         journal or pipeline file: refused in one line, within seconds.

--count and --seconds are those of each kind; what ends first counts. Needs Linux.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from captionmill.data.captions.files import CaptionFiles
from captionmill.data.errors import CaptionmillError
from captionmill.data.features.log import ExtractionRecord, append_record, read_records
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.files import write_text
from captionmill.data.images.find import find_images
from captionmill.data.models.bundle import read_model
from captionmill.data.progress import no_progress
from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.journal import CaptionJournal
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions
from captionmill.data.tables.wording import Wording
from captionmill.pipeline.captioning.sidecars import Sidecars
from captionmill.pipeline.plan.file import PlanFile

SPEC = FeatureSpec("scenes-resnet14", "w", "0" * 64, "squash", 64, 64, 8)
KEYS = [f"{number:03d}.jpg" for number in range(100)]
ROWS = np.random.default_rng(0).standard_normal((len(KEYS), 8), np.float32)
LONGEST_S = 90
"""For one attempt; a file that HDF5 cannot be trusted with is tried in another process for up to a minute."""

Attempt = Callable[[random.Random, Path], bool]


def make_store(path: Path) -> None:
    with FeatureWriter(path, SPEC, dtype="float32", made_by={}) as writer:
        writer.add(KEYS, ROWS)


@functools.cache
def whole_store() -> bytes:
    """The content of a store of one file."""
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name, "f.h5"))
        return Path(name, "f.h5").read_bytes()


def tree_hash(folder: Path) -> str:
    """SHA-256 of all names and contents in and below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(bytes(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A refusal is an error of captionmill or of the system, in one line."""
    try:
        yield
    except (CaptionmillError, OSError) as exc:
        if isinstance(exc, TimeoutError) or "\n" in str(exc):
            raise


def update(table: Path) -> None:
    keys = KEYS[:5]
    wanted = WantedTable(keys, np.arange(5, dtype=np.uint32), {"model": "m"})
    update_captions(table, wanted, lambda missing: [CaptionRow(key, "a dog", 0.5) for key in missing])


def write_sidecars(folder: Path) -> None:
    update(folder / "table.csv")
    for key in KEYS[:5]:
        (folder / key).touch()
    found = find_images(folder)
    sidecars = Sidecars(found, ".txt", folder / "table.csv", wording=Wording(), others=[], overwrite=True)
    sidecars.write(read_captions(folder / "table.csv"), progress=no_progress)


def log(folder: Path) -> None:
    append_record(folder / "f.h5", ExtractionRecord("now", "photos", 1, 0, 1, 0, 1.0, "cpu", 0.0, 0.0, 1.0, 0.0, ""))


def try_links(draw: random.Random, folder: Path) -> bool:
    outside, inside = folder / "outside", folder / "inside"
    (outside / "sub").mkdir(parents=True)
    inside.mkdir()
    names = ["table.csv", "f.log.csv", "f.h5", "000.txt", "001.txt", "journal.jsonl", "sidecars", ".lock", "rows"]
    for name in names:
        (outside / name).write_bytes(draw.randbytes(20))
    places = [*names[:5], *(f".{name}.partial" for name in names[:5]), "f.h5.parts", ".table.csv.made"]
    within = [f"{folder_name}/{name}" for folder_name in (".table.csv.made", "f.h5.parts") for name in names[5:]]
    chosen = draw.sample(places, draw.randint(1, 4)) + draw.sample(within, draw.randint(0, 3))
    for place in chosen:
        link = inside / place
        with contextlib.suppress(OSError):
            if not link.parent.is_symlink():
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(draw.choice([outside, outside / "sub", *(outside / name for name in names)]))
    before = tree_hash(outside)
    works: list[Callable[[], None]] = [
        lambda: make_store(inside / "f.h5"),
        lambda: update(inside / "table.csv"),
        lambda: write_sidecars(inside),
        lambda: log(inside),
        lambda: write_text(inside / "page.html", "page"),
    ]
    for work in works:
        with refusals():
            work()
    return tree_hash(outside) == before


def try_race(draw: random.Random, folder: Path) -> bool:
    path = folder / "scores.json"
    texts = [letter * draw.randint(1, 3_000_000) for letter in "ab"]
    gate = multiprocessing.get_context("fork").Barrier(2)

    def write(text: str) -> None:
        gate.wait()
        write_text(path, text)

    processes = [multiprocessing.get_context("fork").Process(target=write, args=[text]) for text in texts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    is_whole = path.read_text() in texts and [process.exitcode for process in processes] == [0, 0]
    return is_whole and [entry.name for entry in folder.iterdir()] == [path.name]


def try_flip(draw: random.Random, folder: Path) -> bool:
    path = folder / "f.h5"
    content = bytearray(whole_store())
    place = draw.choice([draw.randrange(len(content)), draw.randrange(2048)])  # half of them in its bookkeeping
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    with refusals():
        store = FeatureStore.open(path)
        damaged = set(store.verify())
        for key in store.keys:
            if key not in damaged and (key not in KEYS or not np.array_equal(store[key], ROWS[KEYS.index(key)])):
                return False
    return True


def try_input(draw: random.Random, folder: Path) -> bool:
    from captionmill.stages.encoding.weights import _read_state  # imports torch

    readers: list[tuple[str, Callable[[Path], object]]] = [
        ("f.h5", FeatureStore.open),
        ("f.h5.parts/part-000001-000000-000001-01234567.h5", lambda path: FeatureStore.open(folder / "f.h5")),
        ("model/bundle.json", lambda path: read_model(path.parent)),
        ("weights.pth", _read_state),
        ("weights.safetensors", _read_state),
        ("list.txt", find_images),
        ("captions.csv", lambda path: CaptionFiles(path).check()),
        ("table.csv", lambda path: list(read_captions(path))),
        (".t.csv.made/journal.jsonl", lambda path: list(CaptionJournal(path.parent)._entries())),
        ("pipeline.toml", PlanFile),
        ("f.log.csv", lambda path: read_records(folder / "f.h5")),
        ("000.txt", lambda path: write_sidecars(folder)),
    ]
    name, read = draw.choice(readers)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    match draw.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(draw.choice(["/dev/zero", "/dev/urandom", "/dev/full"]))
        case 2:
            server = socket.socket(socket.AF_UNIX)
            server.bind(os.path.relpath(path))
            server.close()
        case 3:
            path.mkdir()
        case _:
            path.write_bytes(draw.randbytes(draw.randint(0, 3000)))
    with refusals():
        read(path)
    return True


TRIES: dict[str, Attempt] = {"links": try_links, "races": try_race, "flips": try_flip, "inputs": try_input}


def too_long(*_: object) -> None:
    raise TimeoutError("an attempt took too long")


def run_batch(
    kind: str, first: int, count: int, seed: int, until: float, results: "multiprocessing.Queue[int]"
) -> None:
    """Attempts `first` and following; the number of each that has begun, and then its negative if it held."""
    if kind == "inputs":
        importlib.import_module("captionmill.stages.encoding.weights")  # torch, before the clock starts
    signal.signal(signal.SIGALRM, too_long)
    for number in range(first, count):
        if time.monotonic() > until:
            return
        results.put(number + 1)
        with tempfile.TemporaryDirectory() as name:
            signal.alarm(LONGEST_S)
            try:
                has_held = TRIES[kind](random.Random(f"{seed} {number}"), Path(name))
            except Exception as exc:  # what is not refused is what this script looks for
                print(f"{kind} {number}: {exc!r}", flush=True)
                has_held = False
            signal.alarm(0)
            shutil.rmtree(name, ignore_errors=True)
            Path(name).mkdir(exist_ok=True)
        results.put(-(number + 1) if has_held else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(TRIES)}; default: all")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable()
    context = multiprocessing.get_context("fork")
    for kind in arguments.kinds or TRIES:
        until, first, tried, held = time.monotonic() + arguments.seconds, 0, 0, 0
        while first < arguments.count and time.monotonic() < until:
            results = context.Queue()
            batch = (kind, first, arguments.count, arguments.seed, until, results)
            process = context.Process(target=run_batch, args=batch)
            process.start()
            while process.is_alive() or not results.empty():
                if results.empty():
                    time.sleep(0.05)
                    continue
                number = results.get()
                tried, first = (tried + 1, number) if number > 0 else (tried, first)
                held += number < 0
            process.join()
            if process.exitcode == 0:
                break
            print(f"{kind} {first - 1}: the process ended with {process.exitcode}", flush=True)
        print(f"{kind}: {tried:,} tried, {held:,} held", flush=True)


if __name__ == "__main__":
    main()
