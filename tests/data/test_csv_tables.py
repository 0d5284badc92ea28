"""All tables that are written: one writer, without formulas, and one reader that returns what was written."""

import csv
from pathlib import Path

import numpy as np
import pytest
from builders import make_store

from captionmill.data.csv_tables import (
    RecordLayout,
    failed_keys,
    read_cells,
    require_own_table,
    require_records_name,
    write_failures,
    write_table,
)
from captionmill.data.errors import InputError
from captionmill.data.features.export import export_features
from captionmill.data.features.log import ExtractionRecord, append_record, log_path, read_records
from captionmill.stages.training.run_folder import RunFolder

TEXTS = ("=1+1", "+1", "-1", "@SUM(1)", "\ttab", "\rreturn", "\nfeed", "'quoted", "''", 'a "b", c', " a ", "", "雪")


def cells_in(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [cell for row in csv.reader(file) for cell in row]


def formulas_in(path: Path) -> list[str]:
    return [cell for cell in cells_in(path) if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]


def test_texts_come_back_as_they_were_and_none_is_a_formula(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ("key", "other"), [(text, "x") for text in TEXTS])
    assert formulas_in(tmp_path / "t.csv") == []
    assert read_cells(tmp_path / "t.csv", ("key",)) == [(text,) for text in TEXTS]


def test_tables_from_before_the_guard_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("key\n'tis a dog\n=1\n'\n")
    assert read_cells(tmp_path / "t.csv", ("key",)) == [("'tis a dog",), ("=1",), ("'",)]


def test_numbers_are_numbers_and_none_is_empty(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ("a", "b", "c", "d"), [(-0.25, -3, None, True)])
    assert (tmp_path / "t.csv").read_bytes() == b"a,b,c,d\n-0.2500,-3,,True\n"


def test_a_name_that_is_not_utf_8_is_written_with_its_byte_named(tmp_path: Path) -> None:
    write_failures(tmp_path / "failures.csv", [("caf\udce9.jpg", "not an image")])
    assert read_cells(tmp_path / "failures.csv", ("key", "reason")) == [("caf\\udce9.jpg", "not an image")]


@pytest.mark.parametrize("content", [b"", b"key,why\na,b\n", b"key,reason\na\n", b"\xff\xfe", b'key,reason\n"a'])
def test_another_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.csv: not a table with the columns key, reason; move it away$"):
        read_cells(tmp_path / "t.csv", ("key", "reason"))


def test_samples_the_log_and_an_export_are_guarded_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_samples(1, [("=a.jpg", "-a dog", ["@b", "c"])])
    folder.write_history([{"epoch": 1, "phase": "self-critical", "loss": -0.000012345678}])
    record = ExtractionRecord(
        "", "=photos", 1, 0, 1, 0, 0.5, "", 0.25, 0.25, 0.25, 0.25, advice="@none", left_out="-1 folder"
    )
    append_record(tmp_path / "features.h5", record)
    keys = ["=1.jpg", "@2.jpg"]
    export_features(make_store(tmp_path / "s.h5", keys, np.ones((2, 8), dtype=np.float32)), tmp_path / "out.npy")
    paths = [tmp_path / "samples.csv", log_path(tmp_path / "features.h5"), tmp_path / "out.csv"]
    assert [formulas_in(path) for path in paths] == [[], [], []]
    assert (tmp_path / "history.csv").read_text() == "epoch,phase,loss\n1,self-critical,-1.23457e-05\n"
    assert read_records(tmp_path / "features.h5") == [record]
    assert read_cells(tmp_path / "out.csv", ("row", "key")) == [("0", "=1.jpg"), ("1", "@2.jpg")]
    RunFolder(tmp_path).write_samples(2, [("=a.jpg", "a dog", [])])
    assert read_cells(tmp_path / "samples.csv", ("key", "caption", "references")) == [
        ("=a.jpg", "-a dog", "@b | c"),
        ("=a.jpg", "a dog", ""),
    ]


def test_a_forecast_knows_failures_by_their_own_keys(tmp_path: Path) -> None:
    write_failures(tmp_path / "failures.csv", [("=1.jpg", "empty"), ("b.jpg", "-")])
    assert failed_keys(tmp_path / "failures.csv") == {"=1.jpg", "b.jpg"}
    (tmp_path / "failures.csv").write_text("what,ever\n1,2\n")
    assert failed_keys(tmp_path / "failures.csv") == set()


@pytest.mark.parametrize(("name", "layout"), [("-", None), ("-", "csv"), ("a.parquet", None), ("a.txt", None)])
def test_a_table_of_records_is_not_written_under_the_name_of_another_kind(
    name: str, layout: RecordLayout | None
) -> None:
    require_records_name(Path("a.CSV"))
    require_records_name(Path("a.txt"), "jsonl")
    with pytest.raises(InputError, match=r"a table of these ends in \.csv or \.jsonl"):
        require_records_name(Path(name), layout)


@pytest.mark.parametrize("text", ["key,cosine,fit\na.jpg,1\n", '{"key": "a.jpg", "cosine": 1}\n', "", "key,cosine\n"])
def test_an_older_table_of_the_same_columns_may_be_replaced(text: str, tmp_path: Path) -> None:
    require_own_table(tmp_path / "t.csv", ("key", "cosine"), ("fit",))
    (tmp_path / "t.csv").write_text(text)
    require_own_table(tmp_path / "t.csv", ("key", "cosine"), ("fit",))


STRANGE = {
    "captions": b"image,caption\na.jpg,a dog\n",
    "semicolons": b"key;cosine\n",
    "quotes": b'"key","cosine"\n',
    "a column more": b"key,cosine,verdict\na.jpg,1,good\n",
    "a longer name": b"key,cosine_reviewed\n",
    "records": b'{"image": "a.jpg"}\n',
    "a note": b'{"key": "a.jpg", "cosine": 1, "note": "mine"}\n',
    "list": b'["key", "cosine"]\n',
    "store": b"\x89HDF\r\n\x1a\n",
    "braces": b"{" * 9999,
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE.keys())
def test_whatever_else_is_there_is_not_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.csv: is there, and no table that this command wrote"):
        require_own_table(tmp_path / "t.csv", ("key", "cosine"), ("fit",))
