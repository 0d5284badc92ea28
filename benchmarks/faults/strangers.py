"""One real file of each kind that a stranger may send, made by a tiny training, and how each is read."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from captionmill.data.captions.references import read_annotations
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.files import write_text
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


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    sources: tuple[Path, ...]
    readers: tuple[Callable[[Path], object], ...]
    """Each reads a damaged copy, which has the name of its source."""
    is_folder: bool = False
    """Whether the other files of the source's folder are copied too."""


KEYS = [f"{number:02}.jpg" for number in range(12)]
SEARCH = SearchConfig(beam_size=2, max_length=5)
WANTED = WantedTable(KEYS, np.zeros(len(KEYS), np.uint32), {"beam_size": 5})


def make_model(work: Path) -> tuple[Path, Path, Path]:
    """A store, a file of captions, and a model that was trained with them."""
    torch.manual_seed(0)
    spec = FeatureSpec("resnet50", "imagenet1k_v1", "a" * 64, "squash", 224, 256, feature_dim=16)
    rows = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
    store = work / "features.h5"
    with FeatureWriter(store, spec, dtype="float32", made_by={}) as writer:
        writer.add(KEYS, rows)
    captions = make_captions(work).sources[0]
    config = TrainConfig(
        min_count=1, embed_dim=8, hidden_dim=8, batch_size=4, max_epochs=2, max_length=5, search=SEARCH, device="cpu"
    )
    train(store, captions, work / "model", config)
    return store, captions, work / "model"


def make_bundles(work: Path) -> Kind:
    store, _, model = make_model(work)
    return Kind(
        (model / "bundle.json", model / "history.csv"),
        (report_model, describe_model, partial(caption_with_model, store)),
        True,
    )


def make_scores(work: Path) -> Kind:
    store, captions, model = make_model(work)
    scores = work / "scores" / "scores.json"
    scores.parent.mkdir()
    evaluate(store, model, captions, EvaluateConfig(device="cpu", search=SEARCH), output=scores)
    return Kind((scores,), (report_scores, partial(describe_scores, model)))


def make_journals(work: Path) -> Kind:
    table = work / "journal" / "table.csv"
    update_captions(table, WANTED, make_rows)
    return Kind((made_dir(table) / "journal.jsonl",), (read_journal,), True)


def make_plans(work: Path) -> Kind:
    plan = work / "plan" / "pipeline.toml"
    write_text(plan, PLAN)
    return Kind((plan,), (read_plan,))


def make_weights(work: Path) -> Kind:
    folder = work / "weights"
    folder.mkdir()
    state = {"conv1.weight": torch.randn(4, 3, 2, 2), "bn1.num_batches_tracked": torch.tensor(3)}
    torch.save(state, folder / "zip.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "a.safetensors")
    return Kind(tuple(sorted(folder.iterdir())), (read_weights_file,))


def make_captions(work: Path) -> Kind:
    """The same captions in each layout; the first is the CSV."""
    folder = work / "captions"
    folder.mkdir()
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    texts = [f"a {color} dog on {place}" for color in ("red", "blue", "grey") for place in ("sea", "hill", "w", "x")]
    named = list(zip(KEYS, texts, splits, strict=True))
    records = [{"image": key, "caption": text, "split": split} for key, text, split in named]
    coco = {
        "images": [{"id": number, "file_name": key} for number, key in enumerate(KEYS)],
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
    write_captions(folder / "h.parquet", make_rows(KEYS), "parquet", with_alternatives=False)
    return Kind(tuple(sorted(folder.iterdir())), (read_annotations,))


def make_rows(keys: Sequence[str]) -> Iterator[CaptionRow]:
    for number, key in enumerate(keys):
        yield CaptionRow(key, f"a dog, {key}", 0.5 + number / 100, ("a cat", "the dog"), ("cut",))


def make_tables(work: Path) -> Kind:
    folder = work / "tables"
    folder.mkdir()
    formats: tuple[TableFormat, ...] = ("csv", "jsonl", "parquet")
    for table_format in formats:
        write_captions(folder / f"t.{table_format}", make_rows(KEYS), table_format, with_alternatives=True)
    return Kind(tuple(sorted(folder.iterdir())), (look_at_table, read_table, report_table))


def read_weights_file(path: Path) -> None:
    hash_weights(read_weights(find_weights(ExtractConfig(weights=str(path)))))


def report_model(path: Path) -> None:
    write_run_report(path.parent / "report.html", ReportSources(models=[path.parent]))


def describe_model(path: Path) -> None:
    write_card(path.parent)


def caption_with_model(store: Path, path: Path) -> None:
    captioner = Captioner.load([path.parent], device="cpu")
    list(captioner.captions(FeatureStore.open(store), ["00.jpg"], SearchConfig(beam_size=2)))


def look_at_table(path: Path) -> None:
    if is_caption_table(path):
        layout_of(path)
        has_other_columns(path)


def read_table(path: Path) -> None:
    list(read_captions(path))


def report_table(path: Path) -> None:
    write_run_report(path.parent / "report.html", ReportSources(tables=[path]))


def read_journal(path: Path) -> None:
    update_captions(path.parent.with_name("table.csv"), WANTED, make_rows)


def report_scores(path: Path) -> None:
    write_run_report(path.parent / "report.html", ReportSources(scores=[path]))


def describe_scores(model: Path, path: Path) -> None:
    write_card(model, [path])


_MAKERS = (make_weights, make_bundles, make_captions, make_plans, make_tables, make_journals, make_scores)
MAKERS = {maker.__name__.removeprefix("make_"): maker for maker in _MAKERS}
