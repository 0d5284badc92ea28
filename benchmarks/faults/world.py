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
    mark: str = ""
    """The last file of an output of several, as a path: without it they count as unfinished, with it they are whole."""
    set_of: tuple[str, ...] = ()
    """The files of that output, or patterns of them."""


_OLD_MODEL = f"train features.h5 --output out {_TRAINING} --seed 1"
_OLD_TABLE = f"{_CAPTION} --model model --output out.csv"
JOBS = [
    Job("extract", f"extract photos --output out.h5 {_NET}"),
    Job(
        "extract more", f"extract photos --output out.h5 {_NET}", (f"extract photos --output out.h5 --limit 5 {_NET}",)
    ),
    Job(
        "extract --overwrite",
        f"extract photos --output out.h5 --preprocess crop --overwrite {_NET}",
        (f"extract photos --output out.h5 {_NET}",),
    ),
    Job("extract --prune", f"extract some --output out.h5 --prune {_NET}", (f"extract photos --output out.h5 {_NET}",)),
    Job("features merge", "features merge shard-00001-of-00002.h5 shard-00002-of-00002.h5 --output out.h5"),
    Job(
        "features merge --overwrite",
        "features merge shard-00001-of-00002.h5 shard-00002-of-00002.h5 --output out.h5 --overwrite",
        (f"extract photos --output out.h5 --limit 5 {_NET}",),
    ),
    Job("features repair", "features repair damaged.h5"),
    Job(
        "features export, .npy",
        "features export features.h5 --output out.npy --overwrite",
        ("features export shard-00001-of-00002.h5 --output out.npy",),
        "out.csv",
        ("out.npy", "out.csv"),
    ),
    Job(
        "features export, .parquet",
        "features export features.h5 --output out.parquet --overwrite",
        ("features export shard-00001-of-00002.h5 --output out.parquet",),
    ),
    Job("train", f"train features.h5 --output out {_TRAINING}", (), "out/bundle.json", ("out/*.safetensors",)),
    Job(
        "train --overwrite",
        f"train features.h5 --output out --overwrite {_TRAINING}",
        (_OLD_MODEL,),
        "out/bundle.json",
        ("out/*.safetensors",),
    ),
    Job(
        "train, self-critical",
        f"train features.h5 --output out --self-critical-epochs 1 {_TRAINING}",
        (),
        "out/bundle.json",
        ("out/*.safetensors",),
    ),
    Job(
        "evaluate",
        f"evaluate features.h5 --model model --captions photos.csv --output out.json --per-image out.csv {_CPU} "
        f"--resamples 10 --against other {_SEARCH}",
        (f"evaluate features.h5 --model other --captions photos.csv --output out.json --per-image out.csv {_CPU}",),
    ),
    Job("leaks", f"leaks features.h5 --model model --threshold 0.1 --output out.csv {_CPU}"),
    Job("duplicates", f"duplicates features.h5 --threshold 0.1 --output out.csv {_CPU}"),
    Job("audit", f"audit features.h5 --captions photos.csv --model model --output out.csv {_CPU}"),
    Job(
        "search",
        f"search features.h5 a --model model --output out.csv --gallery out.html --images photos {_CPU}",
        (f"search features.h5 --like red.png --model model --output out.csv --gallery out.html --images some {_CPU}",),
    ),
    Job(
        "caption, gallery, sidecars, metadata",
        f"{_FRESH} --model model --output out.csv --gallery out.html --sidecar .txt "
        "--metadata-jsonl photos/metadata.jsonl",
    ),
    Job(
        "caption again, another model",
        f"{_CAPTION} --model other --output out.csv --gallery out.html --sidecar .xmp",
        (f"{_OLD_TABLE} --gallery out.html --sidecar .xmp",),
    ),
    Job("caption, JSON lines", f"{_CAPTION} --model other --output out.jsonl --alternatives 1"),
    Job(
        "caption, Parquet",
        f"{_CAPTION} --model other --output out.parquet",
        (f"{_CAPTION} --model model --output out.parquet",),
    ),
    Job(
        "caption --copies",
        f"{_CAPTION} --model other --output out.csv --embed-metadata --copies copies",
        (f"{_OLD_TABLE} --embed-metadata --copies copies",),
    ),
    Job("caption --in-place", f"{_CAPTION} --model model --output out.csv --embed-metadata --in-place"),
    Job(
        "caption --tars",
        f"caption tars {_SEARCH} {_MACHINE} --model model --output out.csv --tars copies --tar-suffix .json",
    ),
    Job("caption --shard", f"{_FRESH} --model model --output out.csv --shard 2/2"),
    Job("caption, after corrections", f"{_OLD_TABLE} --sidecar .txt", (_OLD_TABLE, "apply decisions.csv --to out.csv")),
    Job("apply", "apply decisions.csv --to out.csv", (_OLD_TABLE,)),
    Job("review", "review out.csv --images photos --port 0", (_OLD_TABLE,)),
    Job(
        "compare",
        "compare table.csv other.csv --captions photos.csv --output out.csv --page out.html --images photos",
    ),
    Job("explain", f"explain photos/red.png --model model --output out.html {_SEARCH} {_CPU} --engine torch"),
    Job(
        "export",
        "export model --output out --no-encoder",
        (),
        "out/manifest.json",
        ("out/*.onnx", "out/vocabulary.json"),
    ),
    Job(
        "export --overwrite",
        "export model other --output out --no-encoder --overwrite",
        ("export model --output out --no-encoder",),
        "out/manifest.json",
        ("out/*.onnx", "out/vocabulary.json"),
    ),
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
