"""Files from strangers: each damaged one is read, or refused with one of captionmill's own errors, in time.

python benchmarks/fuzz.py [--seconds 300] [--count 0] [--seed 0] [--kinds weights bundles ...] [--show]

A tiny training makes one real file of each kind. Copies of it are damaged at random: bytes are changed, cut off, left
out or doubled; in JSON, TOML and tables a value is replaced by one of another type or size, such as a number of 5,000
digits, infinity or brackets that are 100,000 deep. Held is a copy that is read, or refused by an error that the command
line shows as one line. Prints how many were tried and held; `--show` prints the tracebacks of the others.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import safetensors.torch
import torch

from captionmill.data.captions.references import read_annotations
from captionmill.data.errors import CaptionmillError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.models.card import write_card
from captionmill.data.tables.formats import (
    TableFormat,
    has_other_columns,
    is_caption_table,
    layout_of,
    read_captions,
    write_captions,
)
from captionmill.data.tables.journal import made_dir
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions
from captionmill.pipeline.pages.run_report import ReportSources, write_run_report
from captionmill.pipeline.plan.read import read_plan
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.encoding.weights import find_weights, hash_weights, read_weights
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.scoring.settings import EvaluateConfig
from captionmill.stages.settings import ExtractConfig, SearchConfig, TrainConfig
from captionmill.stages.training.train import train

SECONDS = 20  # for one file
MEMORY = 12_000_000_000  # bytes, of the whole process
PLAN = """[extract]
images = "photos"
output = "features.h5"
backbone = "resnet50"
[train.small]
captions = "captions.csv"
max_epochs = 3
hidden_dim = 64
[train.large]
captions = ["captions.csv", "more.json"]
grid = { learning_rate = [0.001, 0.002] }
[evaluate]
captions = "captions.csv"
beam_size = 3
[caption]
images = "new"
output = "new.csv"
flags = true
"""
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**23, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"))
TEXTS = ("", "a", "\0", "../../etc/passwd", "\ud800", "\\udce9", "=1+1", "a" * 10_000, "雪", "\n", "nan", "1e999")
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, [1, "a"], {"a": {"b": 1}})
DEEP = 100_000


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    sources: tuple[Path, ...]
    read: Callable[[Path], object]
    """Reads a damaged copy, which has the name of its source."""
    is_folder: bool = False
    """Whether the other files of the source's folder are copied too."""


class TookTooLongError(Exception):
    """A file took more than SECONDS."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TookTooLongError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def make_files(work: Path) -> dict[str, Kind]:
    """One real file of each kind, and how it is read."""
    torch.manual_seed(0)
    keys = [f"{number:02}.jpg" for number in range(12)]
    spec = FeatureSpec("resnet50", "imagenet1k_v1", "a" * 64, "squash", 224, 256, feature_dim=16)
    rows = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
    store = work / "features.h5"
    with FeatureWriter(store, spec, dtype="float32", made_by={}) as writer:
        writer.add(keys, rows)
    captions = write_caption_files(work / "captions", keys)
    search = SearchConfig(beam_size=2, max_length=5)
    config = TrainConfig(
        min_count=1, embed_dim=8, hidden_dim=8, batch_size=4, max_epochs=2, max_length=5, search=search, device="cpu"
    )
    model = work / "model"
    train(store, captions[0], model, config)
    scores = work / "scores" / "scores.json"
    scores.parent.mkdir()
    evaluate(store, model, captions[0], EvaluateConfig(device="cpu", search=search), output=scores)
    tables = write_tables(work / "tables", keys)
    journal_table = work / "journal" / "table.csv"
    journal_table.parent.mkdir()
    update_captions(journal_table, wanted(keys), make_rows)
    plan = work / "plan" / "pipeline.toml"
    plan.parent.mkdir()
    plan.write_text(PLAN)
    return {
        "weights": Kind(write_weights(work / "weights"), read_weights_file),
        "bundles": Kind(
            (model / "bundle.json", model / "history.csv"), partial(read_model_folder, store), is_folder=True
        ),
        "captions": Kind(captions, read_annotations),
        "plans": Kind((plan,), read_plan),
        "tables": Kind(tables, read_table_file),
        "journals": Kind((made_dir(journal_table) / "journal.jsonl",), read_journal, is_folder=True),
        "scores": Kind((scores,), partial(read_scores_file, model)),
    }


def write_weights(folder: Path) -> tuple[Path, ...]:
    folder.mkdir()
    state = {"conv1.weight": torch.randn(4, 3, 2, 2), "bn1.num_batches_tracked": torch.tensor(3)}
    torch.save(state, folder / "zip.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "a.safetensors")
    return tuple(sorted(folder.iterdir()))


def write_caption_files(folder: Path, keys: list[str]) -> tuple[Path, ...]:
    """The same captions in each layout; the first is the CSV."""
    folder.mkdir()
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    texts = [f"a {color} dog on {place}" for color in ("red", "blue", "grey") for place in ("sea", "hill", "w", "x")]
    named = list(zip(keys, texts, splits, strict=True))
    records = [{"image": key, "caption": text, "split": split} for key, text, split in named]
    coco = {
        "images": [{"id": number, "file_name": key} for number, key in enumerate(keys)],
        "annotations": [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(texts)],
    }
    karpathy = {
        "images": [{"filename": k, "split": s, "sentences": [{"raw": t, "tokens": t.split()}]} for k, t, s in named],
        "dataset": "flickr8k",
    }
    contents = {
        "a.csv": "".join(f"{row}\n" for row in ("image,caption,split", *map(",".join, named))),
        "b.tsv": "".join(f"{row}\n" for row in ("image\tcaption\tsplit", *map("\t".join, named))),
        "c.token": "".join(f"{key}#0\t{text}\n" for key, text, _ in named),
        "d.json": json.dumps(coco),
        "e.json": json.dumps(karpathy),
        "f.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "g.json": json.dumps(records),
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    write_captions(folder / "h.parquet", make_rows(keys), "parquet", with_alternatives=False)
    return tuple(sorted(folder.iterdir()))


def make_rows(keys: Sequence[str]) -> Iterator[CaptionRow]:
    for number, key in enumerate(keys):
        yield CaptionRow(key, f"a dog, {key}", 0.5 + number / 100, ("a cat", "the dog"), ("cut",))


def write_tables(folder: Path, keys: list[str]) -> tuple[Path, ...]:
    folder.mkdir()
    formats: tuple[TableFormat, ...] = ("csv", "jsonl", "parquet")
    for table_format in formats:
        write_captions(folder / f"t.{table_format}", make_rows(keys), table_format, with_alternatives=True)
    return tuple(sorted(folder.iterdir()))


def wanted(keys: list[str]) -> WantedTable:
    return WantedTable(keys, np.zeros(len(keys), np.uint32), {"beam_size": 5})


def read_weights_file(path: Path) -> None:
    hash_weights(read_weights(find_weights(ExtractConfig(weights=str(path)))))


def read_model_folder(store: Path, path: Path) -> None:
    write_run_report(path.parent / "report.html", ReportSources(models=[path.parent]))
    write_card(path.parent)
    captioner = Captioner.load([path.parent], device="cpu")
    list(captioner.captions(FeatureStore.open(store), ["00.jpg"], SearchConfig(beam_size=2)))


def read_table_file(path: Path) -> None:
    if is_caption_table(path):
        layout_of(path)
        has_other_columns(path)
    list(read_captions(path))
    write_run_report(path.parent / "report.html", ReportSources(tables=[path]))


def read_journal(path: Path) -> None:
    keys = [f"{number:02}.jpg" for number in range(12)]
    update_captions(path.parent.with_name("table.csv"), wanted(keys), make_rows)


def read_scores_file(model: Path, path: Path) -> None:
    write_run_report(path.parent / "report.html", ReportSources(scores=[path]))
    write_card(model, [path])


def damage(path: Path, drawn: random.Random) -> bytes:
    """Another content for the file at `path`."""
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl", ".toml") and drawn.random() < 0.7:
        return damage_values(path, content, drawn)
    if path.suffix in (".csv", ".tsv") and drawn.random() < 0.5:
        lines = content.decode().split("\n")
        line = drawn.randrange(len(lines))
        mark = "\t" if path.suffix == ".tsv" else ","
        cells = lines[line].split(mark)
        cells[drawn.randrange(len(cells))] = draw_text(drawn)
        lines[line] = mark.join(cells)
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return damage_bytes(content, drawn)


def damage_bytes(content: bytes, drawn: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(drawn.choice((1, 1, 2, 5, 20))):
        start = drawn.randrange(len(changed) + 1)
        end = min(len(changed), start + drawn.choice((1, 1, 4, 50, 1000)))
        way = drawn.randrange(5)
        if way == 0:
            changed[start:end] = drawn.randbytes(end - start)
        elif way == 1:
            del changed[start:]
        elif way == 2:
            del changed[start:end]
        elif way == 3:
            changed[start:start] = changed[start:end]
        elif end > start:
            changed[start] ^= 1 << drawn.randrange(8)
    return bytes(changed)


def damage_values(path: Path, content: bytes, drawn: random.Random) -> bytes:
    if path.suffix == ".toml":
        lines = content.decode().split("\n")
        place = drawn.choice([number for number, line in enumerate(lines) if " = " in line])
        lines[place] = f"{lines[place].partition(' = ')[0]} = {toml_value(drawn)}"
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    if path.suffix == ".json":
        return replace_in(content, drawn)
    lines_of = content.split(b"\n")
    place = drawn.randrange(len(lines_of) - 1)
    line = replace_in(lines_of[place], drawn)
    if path.name == "journal.jsonl":  # with the right checksum, as an attacker would
        body, _, _ = line.rpartition(b', "crc"')
        body = body or line.rstrip(b"}")
        line = b'%s, "crc": %d}' % (body, zlib.crc32(body))
    lines_of[place] = line
    return b"\n".join(lines_of)


def replace_in(text: bytes, drawn: random.Random) -> bytes:
    """The JSON `text` with one value, anywhere in it, replaced or left out."""
    value = json.loads(text)
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            items = list(one.items() if isinstance(one, dict) else enumerate(one))
            places += [(one, name) for name, _ in items]
            waiting += [inner for _, inner in items]
    inside, name = drawn.choice(places)
    way = drawn.randrange(5)
    if way == 0:
        del inside[name]
    elif way == 1:
        inside[name] = "@raw@"
        raw = drawn.choice(("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "9" * 5000, "1e999", "-", ""))
        return json.dumps(value).encode().replace(b'"@raw@"', raw.encode(), 1)
    else:
        inside[name] = drawn.choice((drawn.choice(NUMBERS), drawn.choice(TEXTS), drawn.choice(OTHERS)))
    return json.dumps(value).encode()


def toml_value(drawn: random.Random) -> str:
    raws = ("[" * DEEP + "]" * DEEP, "9" * 5000, "inf", "nan", "1" + "0" * 23, "1979-05-27", "{}", "[]", "true", "'''")
    return drawn.choice((drawn.choice(raws), json.dumps(draw_text(drawn)), str(drawn.choice(NUMBERS))))


def draw_text(drawn: random.Random) -> str:
    return drawn.choice((drawn.choice(TEXTS), str(drawn.choice(NUMBERS)), '"', '"a""', "1" * 200_000))


def attempt(kind: Kind, drawn: random.Random) -> str:
    """What went wrong with one damaged file; "" if it held."""
    source = drawn.choice(kind.sources)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / source.parent.name
        folder.mkdir()
        if kind.is_folder:
            for other in source.parent.iterdir():
                if other.is_file():
                    (folder / other.name).write_bytes(other.read_bytes())
        path = folder / source.name
        path.write_bytes(damage(source, drawn))
        try:
            with time_limit():
                kind.read(path)
        except (CaptionmillError, OSError):
            return ""
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(exc.__traceback__)[-1]
            return f"{type(exc).__name__} in {Path(where.filename).name}:{where.lineno}\n{traceback.format_exc()}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="over all kinds")
    parser.add_argument("--count", type=int, default=0, help="files per kind; 0: as many as there is time for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as name:
        kinds = make_files(Path(name))
        chosen = arguments.kinds or list(kinds)
        tried, held = Counter[str](), Counter[str]()
        failures = Counter[tuple[str, str]]()
        for kind_name in chosen:
            drawn = random.Random(f"{arguments.seed} {kind_name}")
            end = time.monotonic() + arguments.seconds / len(chosen)
            while time.monotonic() < end and not 0 < arguments.count <= tried[kind_name]:
                failure = attempt(kinds[kind_name], drawn)
                tried[kind_name] += 1
                held[kind_name] += not failure
                if failure:
                    title = failure.partition("\n")[0]
                    failures[kind_name, title] += 1
                    if arguments.show and failures[kind_name, title] == 1:
                        print(failure[-4000:], file=sys.stderr)
            print(f"{kind_name:9} tried {tried[kind_name]:6,}  held {held[kind_name]:6,}", flush=True)
        for (kind_name, title), count in failures.most_common():
            print(f"  {kind_name}: {title} ({count})")
        sys.exit(bool(failures))


if __name__ == "__main__":
    main()
