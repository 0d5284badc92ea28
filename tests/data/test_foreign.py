"""Files from strangers: each damage is one line, never a traceback, a hang or a full memory."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from builders import make_model, make_rows, make_spec, make_store

from captionmill.data.captions.references import read_annotations
from captionmill.data.errors import (
    CaptionmillError,
    InputError,
    ModelError,
    PipelineError,
    StoreDamageError,
    StoreError,
    WeightsError,
)
from captionmill.data.features.merge import merge_stores
from captionmill.data.features.shard import Shard
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.foreign import LONGEST_LINE, LongLineError, finite_number, parse_json, short_lines
from captionmill.data.images.keys import image_key
from captionmill.data.models.bundle import read_bundle
from captionmill.data.models.card import write_card
from captionmill.data.tables.formats import (
    has_other_columns,
    is_caption_table,
    layout_of,
    read_captions,
    write_captions,
)
from captionmill.data.tables.journal import CaptionJournal
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.pages.run_files import read_model_files, read_scores
from captionmill.pipeline.plan.file import PlanFile
from captionmill.pipeline.plan.records import Workspace
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.encoding.weights import find_weights, read_weights
from captionmill.stages.settings import ExtractConfig

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5000
ROW = {"path": "a.jpg", "caption": "a dog", "confidence": 0.5, "alternatives": [], "flags": [], "status": "ok"}
SCORES = {
    "model": "m",
    "scores": {"cider_d": 0.5},
    "intervals": {"cider_d": [0.4, 0.6]},
    "images_chosen_by": "test",
    "captions": {"a.jpg": {"caption": "a dog", "references": ["a cat"], "confidence": 0.5, "cider_d": 1.0}},
}


def read_all(path: Path) -> list[CaptionRow]:
    return list(read_captions(path))


def read_card_scores(path: Path) -> object:
    return write_card(make_model(path.parent / "model", make_spec()), [path])


@pytest.mark.parametrize("text", [DEEP, LONG, f'{{"a": {LONG}}}', "", "{", b"\xff"])
def test_json_that_cannot_be_read_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        parse_json(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, None, "1", [1]])
def test_only_finite_numbers_are_numbers(value: object) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        finite_number(value)


@pytest.mark.parametrize("text", [DEEP, LONG])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("captions.json", read_annotations),
        ("captions.jsonl", read_annotations),
        ("table.jsonl", read_all),
        ("table.jsonl", layout_of),
        ("scores.json", read_scores),
        ("scores.json", read_card_scores),
        ("pipeline.made.json", lambda path: Workspace(path.with_name("pipeline.toml"))),
        ("bundle.json", lambda path: read_bundle(path.parent)),
        ("pipeline.toml", PlanFile),
    ],
)
def test_text_nested_too_deeply_and_numbers_too_long_are_one_line(
    name: str, read: Callable[[Path], object], text: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name == "captions.jsonl":
        text = '{"image": "a.jpg", "caption": "a dog"}\n{"image": "b.jpg", "caption": ' + text + "}\n"
    else:
        text = f"a = {text}" if path.suffix == ".toml" else f'{{"a": {text}}}'
    path.write_text(text)
    with pytest.raises(CaptionmillError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [{"confidence": 1e999}, {"confidence": float("nan")}, {"confidence": "much"}, {"path": None}, {"flags": [1]}],
)
def test_a_row_of_wrong_values_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        json.dumps(ROW | {"error": ""}) + "\n" + json.dumps(ROW | {"error": ""} | changes)
    )
    with pytest.raises(InputError, match="line 2 is not a complete row of captions"):
        read_all(tmp_path / "t.jsonl")


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_captions(path, [CaptionRow("a.jpg", "a dog", 0.5)], "parquet", with_alternatives=False)
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes(200) + content[240:])
    with pytest.raises(InputError, match=r"t\.parquet: damaged Parquet \("):
        read_all(path)
    path.write_bytes(content[:-20])
    for read in (read_all, layout_of, has_other_columns):
        with pytest.raises(InputError, match=r"t\.parquet: damaged Parquet \("):
            read(path)
    assert not is_caption_table(path)


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    long = "a" * LONGEST_LINE
    contents = {
        "a.csv": f"image,caption\na.jpg,{long}\n",
        "b.token": f"a.jpg#0\ta dog\nb.jpg#0\t{long}\n",
        "c.jsonl": '{"image": "a.jpg", "caption": "a"}\n{"image": "b.jpg", "caption": "' + long + '"}\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(CaptionmillError, match=rf"{name}: a line has more than 10,000,000 characters"):
            read_annotations(tmp_path / name)
    with (tmp_path / "a.csv").open("rb") as file, pytest.raises(LongLineError):
        list(short_lines(file))


@pytest.mark.parametrize(
    "values",
    [
        {"row": {"path": 3}, "source": 1},
        {"row": {"path": "a.jpg"}},
        {"review": {"path": "a.jpg", "decision": "gone", "caption": ""}},
        {"review": {"path": "a.jpg"}},
        {"table": 3, "of": ""},
        {"made_with": [1]},
        ["row"],
    ],
)
def test_a_line_of_the_journal_with_wrong_values_is_left_out(values: object, tmp_path: Path) -> None:
    body = json.dumps(values)[:-1].encode()
    line = b'%s, "crc": %d}\n' % (body, zlib.crc32(body))
    (tmp_path / "journal.jsonl").write_bytes(line)
    journal = CaptionJournal(tmp_path)
    known = journal.known(["a.jpg"], np.zeros(1, np.uint32), {})
    assert (known.offsets.tolist(), known.reviews, known.renderings) == ([-1], {}, [])
    assert journal.rendered_rows() == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {"cider_d": 1e999}},
        {"scores": {"cider_d": "0.5"}},
        {"intervals": {"cider_d": [0.4, 10**400]}},
        {"intervals": {}},
        {"left_out": [3]},
        {"search": [1]},
        {"caption_statistics": {"mean_length": "long"}},
        {"against": {"model": None}},
        {"captions": {"a.jpg": {"caption": 3, "references": []}}},
        {"captions": {"a.jpg": {"caption": "a", "references": [], "confidence": "x"}}},
    ],
)
def test_scores_of_wrong_types_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(SCORES))
    assert read_scores(path).name == "m"
    path.write_text(json.dumps(SCORES | changes))
    with pytest.raises(InputError, match=r"scores\.json: not scores as `captionmill evaluate` writes them"):
        read_scores(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": []},
        {"versions": {"torch": 2}},
        {"versions": []},
        {"scores": {"val_cider_d": "high"}},
        {"scores": {"val_cider_d": 1e999}},
        {"decoder": {}},
        {"decoder": 3},
        {"notes": 3},
    ],
)
def test_a_bundle_of_wrong_types_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = make_model(tmp_path, make_spec()) / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=r"bundle\.json: not a readable model"):
        read_bundle(tmp_path)


def test_a_score_without_an_interval_gets_no_card(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(SCORES | {"intervals": {"bleu_4": [0.4, 0.6]}}))
    with pytest.raises(InputError, match=r"scores\.json: not a file of scores that `evaluate` wrote \('cider_d'\)"):
        read_card_scores(tmp_path / "scores.json")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("made_by", None),
        ("made_by", {"engine": 1}),
        ("shard", {"index": [], "count": 1, "list_sha256": "", "images": 1}),
        ("shard", {"index": 2, "count": 1, "list_sha256": "", "images": 1}),
    ],
)
def test_a_store_of_wrong_types_is_refused(name: str, values: object, tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a.jpg"], make_rows(1))
    with h5py.File(path, "r+") as file:
        file.attrs[name] = json.dumps(values)
    with path.open("ab") as plain:
        plain.write(bytes(100))  # as a file of a version that wrote no checksum of its bookkeeping
    with pytest.raises(StoreDamageError, match=r"f\.h5: not a readable feature store"):
        FeatureStore.open(path)


def test_shards_of_a_number_beyond_use_are_missing(tmp_path: Path) -> None:
    with FeatureWriter(
        tmp_path / "f.h5", make_spec(), dtype="float32", made_by={}, shard=Shard(2, 10**15, "", 0)
    ) as writer:
        writer.flush()
    with pytest.raises(
        StoreError, match=r"^999999999999999 of 1000000000000000 shards missing: 1, 3, 4, 5, 6, \.\.\.$"
    ):
        merge_stores([tmp_path / "f.h5"], tmp_path / "merged.h5")


@pytest.mark.parametrize("row", ["9" * 400 + ",x,1,1,1,1", "1,x,inf,1,1,1", "1,x,1,-1e308,1,1", "1,x,1,1,1,nan"])
def test_a_history_with_a_number_beyond_use_is_refused(row: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", make_spec())
    header = "epoch,phase,loss,val_cider,captions_per_s,duration_s"
    (model / "history.csv").write_text(f"{header}\n1,x,nan,1,1,1\n{row}\n")
    with pytest.raises(InputError, match="not a history") as caught:
        read_model_files(model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(model))


@pytest.mark.parametrize("changes", [{"hidden_dim": 10**6}, {"layers": 10**9}, {"vocab_size": 10**9}, {"dropout": "a"}])
def test_a_decoder_of_other_sizes_than_its_weights_takes_no_memory(changes: dict[str, Any], tmp_path: Path) -> None:
    path = make_model(tmp_path, make_spec()) / "bundle.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"decoder": values["decoder"] | changes}))
    with pytest.raises(ModelError, match="weights and configuration do not fit each other"):
        Captioner.load(tmp_path, device="cpu")


def test_a_decoder_of_another_feature_size_than_its_features_is_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path, make_spec()) / "bundle.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"decoder": values["decoder"] | {"feature_dim": 16}}))
    with pytest.raises(ModelError, match="its decoder takes 16 numbers per image, and its features have 8"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("content", [b"\x80\x02a.", b"\x80\x02J\0.", b"\x80\x02]K", b"\x80\x02Q.", b"PK\x03\x04", b""])
def test_a_damaged_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth: not a readable state_dict"):
        read_weights(find_weights(ExtractConfig(weights=str(path))))


def test_a_path_with_a_nul_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[extract]\nimages = "a\\u0000b"\n')
    (section,) = PlanFile(tmp_path / "p.toml").sections("extract")
    with pytest.raises(PipelineError, match=r"p\.toml:1: \[extract\] has a path with a NUL character"):
        section.path("images")


@pytest.mark.parametrize("name", ["ü.png", "雪/a.png", "café.jpg", "a.png"])
def test_a_key_is_the_same_where_names_are_read_as_ascii(name: str) -> None:
    assert image_key(name.encode().decode("ascii", "surrogateescape")) == name
    assert image_key("\udce9" + name) == "\\udce9" + name
