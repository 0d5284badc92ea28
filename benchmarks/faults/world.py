"""A small world of files, and every command that writes in it."""

import csv
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
from faults.lives import DECISIONS_NAME, Ending, live

from captionmill.data.files import write_text
from captionmill.data.tables.formats import read_captions
from captionmill.pipeline.demo.scenes import draw_samples

_CPU = "--device cpu"
_MACHINE = f"{_CPU} --engine torch --precision fp32 --workers 2"
_NET = f"--backbone scenes-resnet14 --image-size 64 --flush-every 3 {_MACHINE}"
_TRAINING = (
    "--captions photos.csv --min-count 1 --embed-dim 8 --hidden-dim 8 --batch-size 16 --max-epochs 2 --max-length 6 "
    f"--beam-size 1 --matcher-epochs 1 {_CPU}"
)
_SEARCH = "--beam-size 2 --max-length 6 --rerank none"
_FRESH = f"caption photos {_SEARCH} {_MACHINE}"
_CAPTION = f"{_FRESH} --features cache.h5"
_PLAN = """[extract]
images = "photos"
output = "run/features.h5"
backbone = "scenes-resnet14"
image_size = 64
workers = 2
device = "cpu"
engine = "torch"
precision = "fp32"

[train]
captions = "photos.csv"
output = "run/model"
min_count = 1
embed_dim = 8
hidden_dim = 8
max_epochs = 1
max_length = 6
matcher_epochs = 0
device = "cpu"

[evaluate]
output = "run/scores.json"
beam_size = 1
device = "cpu"

[caption]
images = "photos"
output = "run/captions.csv"
beam_size = 1
device = "cpu"
engine = "torch"
precision = "fp32"
"""


@dataclass(frozen=True)
class Job:
    """One command that writes, and what was written before."""

    name: str
    words: str
    before: tuple[str, ...] = ()
    """Commands that make what the job finds."""
    set_of: tuple[str, ...] = ()
    """The files of an output of several, or patterns of them. Without the first, which is written last, the others
    count as unfinished; with it they are whole."""


_EXTRACT = f"extract photos --output out.h5 {_NET}"
_SHARD = "shard-00001-of-00002.h5"
_MERGE = f"features merge {_SHARD} shard-00002-of-00002.h5 --output out.h5"
_ROWS = "features export {} --output {} --overwrite".format
_TRAIN, _MODEL = f"train features.h5 --output out {_TRAINING}", ("out/bundle.json", "out/*.safetensors")
_EVALUATE = f"evaluate features.h5 --captions photos.csv --output out.json --per-image out.csv {_CPU}"
_TABLE = f"{_CAPTION} --model model --output out.csv"
_OTHER = f"{_CAPTION} --model other --output"
_ONNX, _EXPORT = ("out/manifest.json", "out/*.onnx", "out/vocabulary.json"), "--output out --no-encoder"
_PAGES = "--output out.csv --gallery out.html --images"
JOBS = [
    Job("extract", _EXTRACT),
    Job("extract more", _EXTRACT, (f"{_EXTRACT} --limit 5",)),
    Job("extract --overwrite", f"{_EXTRACT} --preprocess crop --overwrite", (_EXTRACT,)),
    Job("extract --prune", f"extract some --output out.h5 --prune {_NET}", (_EXTRACT,)),
    Job("features merge", _MERGE),
    Job("features merge --overwrite", f"{_MERGE} --overwrite", (f"{_EXTRACT} --limit 5",)),
    Job("features repair", "features repair damaged.h5"),
    Job("features export, .npy", _ROWS("features.h5", "out.npy"), (_ROWS(_SHARD, "out.npy"),), ("out.csv", "out.npy")),
    Job("features export, .parquet", _ROWS("features.h5", "out.parquet"), (_ROWS(_SHARD, "out.parquet"),)),
    Job("train", _TRAIN, (), _MODEL),
    Job("train --overwrite", f"{_TRAIN} --overwrite", (f"{_TRAIN} --seed 1",), _MODEL),
    Job("train, self-critical", f"{_TRAIN} --self-critical-epochs 1", (), _MODEL),
    Job(
        "evaluate",
        f"{_EVALUATE} --model model --resamples 10 --against other {_SEARCH}",
        (f"{_EVALUATE} --model other",),
    ),
    Job("leaks", f"leaks features.h5 --model model --threshold 0.1 --output out.csv {_CPU}"),
    Job("duplicates", f"duplicates features.h5 --threshold 0.1 --output out.csv {_CPU}"),
    Job("audit", f"audit features.h5 --captions photos.csv --model model --output out.csv {_CPU}"),
    Job(
        "search",
        f"search features.h5 a --model model {_PAGES} photos {_CPU}",
        (f"search features.h5 --like red.png --model model {_PAGES} some {_CPU}",),
    ),
    Job(
        "caption, gallery, sidecars, metadata",
        f"{_FRESH} --model model --output out.csv --gallery out.html --sidecar .txt "
        "--metadata-jsonl photos/metadata.jsonl",
    ),
    Job(
        "caption again, another model",
        f"{_OTHER} out.csv --gallery out.html --sidecar .xmp",
        (f"{_TABLE} --gallery out.html --sidecar .xmp",),
    ),
    Job("caption, JSON lines", f"{_OTHER} out.jsonl --alternatives 1"),
    Job("caption, Parquet", f"{_OTHER} out.parquet", (f"{_CAPTION} --model model --output out.parquet",)),
    Job(
        "caption --copies",
        f"{_OTHER} out.csv --embed-metadata --copies copies",
        (f"{_TABLE} --embed-metadata --copies copies",),
    ),
    Job("caption --in-place", f"{_TABLE} --embed-metadata --in-place"),
    Job(
        "caption --tars",
        f"caption tars {_SEARCH} {_MACHINE} --model model --output out.csv --tars copies --tar-suffix .json",
    ),
    Job("caption --shard", f"{_FRESH} --model model --output out.csv --shard 2/2"),
    Job("caption, after corrections", f"{_TABLE} --sidecar .txt", (_TABLE, "apply decisions.csv --to out.csv")),
    Job("apply", "apply decisions.csv --to out.csv", (_TABLE,)),
    Job("review", "review out.csv --images photos --port 0", (_TABLE,)),
    Job(
        "compare", "compare table.csv other.csv --captions photos.csv --output out.csv --page out.html --images photos"
    ),
    Job("explain", f"explain photos/red.png --model model --output out.html {_SEARCH} {_CPU} --engine torch"),
    Job("export", f"export model {_EXPORT}", (), _ONNX),
    Job("export --overwrite", f"export model other {_EXPORT} --overwrite", (f"export model {_EXPORT}",), _ONNX),
    Job("card", "card model --scores scores.json"),
    Job("pack", "pack model out.tar", ("pack other out.tar",)),
    Job("init", "init out.toml"),
    Job(
        "report",
        "report model --features features.h5 --scores scores.json --captions-table table.csv --output out.html",
    ),
    Job("demo", "demo out"),
    Job("run", "run pipeline.toml"),
    Job("run --from", "run pipeline.toml --from train", ("run pipeline.toml",)),
]

COMMANDS_OF_SOAK = (
    f"extract photos --output out.features.h5 {_NET}",
    f"{_FRESH} --model model --output out.csv --sidecar .txt --gallery out.html",
    "apply decisions.csv --to out.csv",
)


def command(folder: Path, words: str) -> Ending:
    """Run a command that has to end well."""
    ending = live(words.split(), folder)
    if ending.code:
        raise RuntimeError(f"captionmill {words} ended with {ending.code}: {ending.output}")
    return ending


@contextmanager
def fill_disk(disk: Path, free: int) -> Iterator[None]:
    """Leave `free` bytes on the file system of the folder `disk` during the block."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(disk).free - free))
    try:
        yield
    finally:
        filler.unlink()


def make_world(folder: Path) -> Path:
    """Images and captions, stores, models, tables, scores, a pipeline file: whatever the jobs read."""
    draw_samples(folder / "photos", 11, seed=0, captions_path=folder / "photos.csv", held_out_share=0.2, workers=1)
    photos = sorted(path for path in (folder / "photos").rglob("*") if path.is_file())
    shutil.copy(photos[0], folder / "photos" / "red.png")
    (folder / "photos" / "broken.jpg").write_bytes(b"not an image")
    shutil.copytree(folder / "photos", folder / "some", ignore=shutil.ignore_patterns("scene_000[0-3]*"))
    (folder / "tars").mkdir()
    for number in range(2):
        shutil.make_archive(str(folder / "tars" / f"{number}"), "tar", folder / "photos", "." if number else None)
    for words in (
        f"extract photos --output features.h5 {_NET}",
        f"extract photos --output shard.h5 --shard 1/2 --own-failures {_NET}",
        f"extract photos --output shard.h5 --shard 2/2 --own-failures {_NET}",
        f"train features.h5 --output model {_TRAINING}",
        f"train features.h5 --output other {_TRAINING} --seed 5",
        f"{_CAPTION} --model model --output table.csv",
        f"{_CAPTION} --model other --output other.csv",
        f"evaluate features.h5 --model model --captions photos.csv --output scores.json --resamples 10 {_CPU}",
    ):
        command(folder, words)
    make_damaged(folder / "features.h5", folder / "damaged.h5")
    write_text(folder / "pipeline.toml", _PLAN)
    rows = [row for row in read_captions(folder / "table.csv") if row.caption]
    write_decisions(folder / DECISIONS_NAME, [(row.path, row.caption) for row in rows[::2]])
    return folder


def write_decisions(path: Path, shown: Sequence[tuple[str, str]]) -> None:
    """A file of decisions as a gallery saves it: each image's caption is corrected."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "decision", "caption", "shown"])
        writer.writerows([key, "corrected", f"a person saw {key}", caption] for key, caption in shown)


def make_damaged(store: Path, path: Path) -> None:
    """A copy of the store of one file with two damaged rows."""
    content = bytearray(store.read_bytes())
    with h5py.File(store) as file:
        offset, row_bytes = (
            file["features"].id.get_offset(),
            file["features"].dtype.itemsize * file["features"].shape[1],
        )
    for row in (1, 4):
        content[offset + row * row_bytes + 7] ^= 1
    path.write_bytes(content)
