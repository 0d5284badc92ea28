"""Planted links, races for one output, flipped stores, damaged images, pipes and devices as inputs."""

import contextlib
import functools
import hashlib
import os
import random
import resource
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
from faults.attempts import FORK, Limits, Tally, refusals, try_many
from mutations import try_damaged_image

from captionmill.data.captions.references import read_annotations
from captionmill.data.features import file as store_files
from captionmill.data.features import repair
from captionmill.data.features.log import ExtractionRecord, append_record, read_records
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.files import replace_atomically, write_text
from captionmill.data.images.find import find_images
from captionmill.data.images.read import read_image
from captionmill.data.models.bundle import read_bundle
from captionmill.data.models.source import read_model
from captionmill.data.progress import no_progress
from captionmill.data.tables.decisions import apply_decisions
from captionmill.data.tables.formats import format_of, read_captions, write_captions
from captionmill.data.tables.journal import CaptionJournal
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions
from captionmill.data.tables.wording import Wording
from captionmill.pipeline.captioning.sidecars import Sidecars
from captionmill.pipeline.pages.run_report import ReportSources, write_run_report
from captionmill.pipeline.plan.file import PlanFile
from captionmill.stages.settings import ExtractConfig
from captionmill.stages.training.run_folder import RUN_NAMES, RunFolder, claim_folder, copy_run

SPEC = FeatureSpec("scenes-resnet14", "w", "0" * 64, "squash", 64, 64, 8)
LONGEST_OPEN_S = 5
SEAL_BYTES = 40  # of the checksum behind a store, at least
KEYS = [f"{number:03d}.jpg" for number in range(100)]
ROWS = np.random.default_rng(0).standard_normal((len(KEYS), 8), np.float32)


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


def write_table(folder: Path) -> Path:
    update(folder / "table.csv")
    return folder / "table.csv"


def log(folder: Path) -> None:
    append_record(folder / "f.h5", ExtractionRecord("now", "photos", 1, 0, 1, 0, 1.0, "cpu", 0.0, 0.0, 1.0, 0.0, ""))


def train_a_moment(model: Path) -> None:
    folder = model.with_name("model.training")
    with claim_folder(folder), RunFolder(folder) as run_folder:
        run_folder.write_config({}, data={}, counts={})
        copy_run(folder, model)


def try_links(draw: random.Random, folder: Path) -> None:
    """Links that lead out, under every name that is written to: what is outside stays, byte for byte."""
    outside, inside = folder / "outside", folder / "inside"
    (outside / "sub").mkdir(parents=True)
    inside.mkdir()
    names = ["table.csv", "f.log.csv", "f.h5", "000.txt", "001.txt", "journal.jsonl", "sidecars", ".lock", "rows"]
    for name in names:
        (outside / name).write_bytes(draw.randbytes(20))
    places = [*names[:5], *(f".{name}.partial" for name in names[:5]), "f.h5.parts", ".table.csv.made"]
    places += ["model.training", *(f"model/{name}" for name in (*RUN_NAMES, "bundle.json"))]
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
        lambda: train_a_moment(inside / "model"),
    ]
    for work in works:
        with refusals():
            work()
    assert tree_hash(outside) == before, "what is outside was changed"


def write_pages(path: Path, letter: str, size: int) -> None:
    write_text(path, letter * size)


def write_rows(path: Path, letter: str, size: int) -> None:
    rows = (CaptionRow(key, letter * (size // len(KEYS)), 0.5) for key in KEYS)
    with replace_atomically(path) as partial_path:
        write_captions(partial_path, rows, format_of(path), with_alternatives=False)


def try_race(draw: random.Random, folder: Path) -> None:
    """Two processes write one output at once: both end well, and the file is one of the two, whole."""
    name, write = draw.choice([("scores.json", write_pages), ("out.csv", write_rows), ("out.parquet", write_rows)])
    sizes = {letter: draw.randint(1, 3_000_000) for letter in "ab"}
    for letter, size in sizes.items():
        write(folder / f"{letter}-{name}", letter, size)
    path, gate = folder / name, FORK.Barrier(2)

    def write_at_once(letter: str) -> None:
        gate.wait()
        write(path, letter, sizes[letter])

    processes = [FORK.Process(target=write_at_once, args=letter) for letter in sizes]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert path.read_bytes() in [(folder / f"{letter}-{name}").read_bytes() for letter in sizes], "a mixture"
    assert len(list(folder.iterdir())) == 3, "a partial file was left"


def find_unsafe_in_forks(paths: Sequence[Path]) -> list[Path]:
    """As `find_unsafe` of a store's files, which starts Python for them, by forks with less time, for speed."""
    return [path for path in paths if not _is_opened_by_a_fork(path)]


def _is_opened_by_a_fork(path: Path) -> bool:
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit, most = pages * resource.getpagesize() + store_files._SAFE_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(LONGEST_OPEN_S)
    try:
        os._exit(len(list(store_files.open_each([str(path)]))) != 1)
    finally:
        os._exit(1)


def try_flip(draw: random.Random, folder: Path) -> None:
    """One bit of a store is flipped: it is refused, or every row that `verify` passes is the one that was written.

    One store in five lacks the checksum of its bookkeeping, as those of earlier versions do.
    """
    path = folder / "f.h5"
    content = bytearray(whole_store())
    place = draw.choice([draw.randrange(len(content)), draw.randrange(2048)])  # half of them in its bookkeeping
    content[place] ^= 1 << draw.randrange(8)
    is_older = draw.random() < 0.2
    path.write_bytes(content[:-SEAL_BYTES] if is_older else content)  # without the checksum of the bookkeeping
    with (
        refusals(),
        patch.object(store_files, "find_unsafe", find_unsafe_in_forks),
        patch.object(repair, "find_unsafe", find_unsafe_in_forks),
    ):
        if is_older:  # as `features verify` begins
            repair.require_safe(path)
        store = FeatureStore.open(path)
        damaged = set(store.verify())
        sound = [key for key in store.keys if key not in damaged]
        rows = store.read([store.position(key) for key in sound])
        assert np.array_equal(rows, ROWS[[KEYS.index(key) for key in sound]]), f"bit in byte {place}: a wrong row"


def try_input(draw: random.Random, folder: Path) -> None:
    """Pipes, devices, sockets, folders and random bytes as an input: refused in one line, within seconds."""

    def read_weights_file(path: Path) -> object:
        from captionmill.stages.encoding.weights import find_weights, read_weights  # imports torch

        return read_weights(find_weights(ExtractConfig(weights=str(path))))

    readers: list[tuple[str, Callable[[Path], object]]] = [
        ("f.h5", FeatureStore.open),
        ("f.h5.parts/part-000001-000000-000001-01234567.h5", lambda path: FeatureStore.open(folder / "f.h5")),
        ("model/bundle.json", lambda path: read_bundle(path.parent)),
        ("weights.pth", read_weights_file),
        ("weights.safetensors", read_weights_file),
        ("list.txt", find_images),
        ("captions.csv", read_annotations),
        ("captions.parquet", read_annotations),
        ("table.csv", lambda path: list(read_captions(path))),
        ("table.parquet", lambda path: list(read_captions(path))),
        ("decisions.csv", lambda path: apply_decisions(path, write_table(folder))),
        ("scores.json", lambda path: write_run_report(folder / "report.html", ReportSources(scores=[path]))),
        ("model.tar", read_model),
        ("images/a.jpg", lambda path: [read_image(image) for image in find_images(path.parent)]),
        (".t.csv.made/journal.jsonl", lambda path: list(CaptionJournal(path.parent)._entries())),
        ("pipeline.toml", PlanFile),
        ("f.log.csv", lambda path: read_records(folder / "f.h5")),
        ("000.txt", lambda path: write_sidecars(folder)),
    ]
    name, read = draw.choice(readers)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    kind = draw.randrange(5)
    match kind:
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(draw.choice(["/dev/zero", "/dev/urandom", "/dev/full"]))
        case 2:
            server = socket.socket(socket.AF_UNIX)
            server.bind(name)  # in the current folder: a long path has no room there
            server.close()
        case 3:
            path.mkdir()
        case _:
            path.write_bytes(draw.randbytes(draw.randint(0, 3000)))
    is_refused = True
    with refusals():
        read(path)
        is_refused = False
    assert is_refused or kind == 4 or (kind == 3 and name == "images/a.jpg"), f"{name} of kind {kind} was accepted"


def try_image(draw: random.Random, _: Path) -> None:
    """A damaged image: refused, or the right pixels where they can be known."""
    image_format, outcome = try_damaged_image(draw.randrange(2**20), np.random.default_rng(draw.getrandbits(64)))
    assert outcome != "others, known wrong", f"{image_format}: {outcome}"


ATTEMPTS = {"links": try_links, "races": try_race, "flips": try_flip, "hostile": try_input, "images": try_image}


def run(limits: Limits) -> Tally:
    return try_many(ATTEMPTS[limits.kind], limits)
