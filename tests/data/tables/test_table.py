"""The table of captions in each of its formats."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from captionmill.data.errors import InputError
from captionmill.data.tables.formats import (
    TableFormat,
    format_of,
    is_caption_table,
    read_captions,
    write_captions,
)
from captionmill.data.tables.rows import CaptionRow

ROWS = [
    CaptionRow("a,b.jpg", 'a "red" dog', 0.12344, ("a dog", "a red cat"), ("cut", "low-confidence")),
    CaptionRow("zeile\nbruch\r.png", "ein Hund läuft über Schnee", 0.5),
    CaptionRow("=1+1.jpg", "+cmd|' /C calc'!A0", 1.0, ("@SUM(1)",)),
    CaptionRow("'quoted'.jpg", "-2 dogs", 0.0, flags=("repeated",)),
    CaptionRow("雪/ü.gif", "", None, status="failed", error="=not, a picture"),
    CaptionRow("\\udce9.jpg", "\ttab", 0.99996),
]


def write(path: Path, rows: list[CaptionRow], table_format: TableFormat, *, with_alternatives: bool = True) -> Path:
    write_captions(path, rows, table_format, with_alternatives=with_alternatives)
    return path


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
def test_rows_come_back_as_they_were_but_for_the_confidences_fifth_digit(
    table_format: TableFormat, tmp_path: Path
) -> None:
    rows = list(read_captions(write(tmp_path / "table", ROWS, table_format)))
    assert [row.confidence for row in rows] == [0.1234, 0.5, 1.0, 0.0, None, 1.0]
    for row, original in zip(rows, ROWS, strict=True):
        assert (row.path, row.caption, row.alternatives, row.flags, row.status, row.error) == (
            original.path,
            original.caption,
            original.alternatives,
            original.flags,
            original.status,
            original.error,
        )


def test_csv_has_the_mark_of_utf_8_the_columns_and_no_formula(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ROWS, "csv")
    assert path.read_bytes().startswith("\ufeffpath,caption,confidence,alternatives,flags,status,error\n".encode())
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [cell for row in rows for cell in row.values()]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))] == []
    assert [row["path"] for row in rows] == [
        "a,b.jpg",
        "zeile\nbruch\r.png",
        "'=1+1.jpg",
        "''quoted'.jpg",
        "雪/ü.gif",
        "\\udce9.jpg",
    ]
    assert rows[0]["alternatives"] == "a dog | a red cat"
    assert rows[0]["flags"] == "cut low-confidence"
    assert rows[2]["caption"] == "'+cmd|' /C calc'!A0"


def test_pandas_reads_the_csv_without_being_told_of_the_mark(tmp_path: Path) -> None:
    frame = pd.read_csv(write(tmp_path / "t.csv", ROWS, "csv", with_alternatives=False))
    assert list(frame.columns) == ["path", "caption", "confidence", "flags", "status", "error"]
    assert frame["caption"][1] == "ein Hund läuft über Schnee"


def test_json_lines_and_parquet_hold_the_texts_as_they_are(tmp_path: Path) -> None:
    lines = write(tmp_path / "t.jsonl", ROWS, "jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[2])["path"] == "=1+1.jpg"
    frame = pd.read_parquet(write(tmp_path / "t.parquet", ROWS, "parquet"))
    assert list(frame["path"]) == [row.path for row in ROWS]
    assert list(frame["alternatives"][0]) == ["a dog", "a red cat"]
    assert frame["confidence"][0] == 0.1234


def test_a_table_without_the_newer_columns_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("path,caption,confidence,status,error\na.jpg,a dog,0.5,ok,\n")
    assert list(read_captions(tmp_path / "old.csv")) == [CaptionRow("a.jpg", "a dog", 0.5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,caption\na.jpg,a dog\n", "not a table of captions; it begins with 'image,caption'"),
        (b"", "not a table of captions; it begins with ''"),
        (b"path,caption,confidence,status,error\na.jpg,a d", "line 2 is not a complete row of captions"),
        (b"path,caption,confidence,status,error\na.jpg,a dog,much,ok,\n", "line 2 is not a complete row of captions"),
        (b'{"path": "a.jpg", "capt', "line 1 is not a complete row of captions"),
        (b'{"path": "a.jpg"}\n', "line 1 is not a complete row of captions"),
    ],
)
def test_what_is_no_table_or_torn_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_captions(tmp_path / "t"))


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
def test_a_table_is_known_by_its_beginning(table_format: TableFormat, tmp_path: Path) -> None:
    assert is_caption_table(write(tmp_path / "t", ROWS, table_format))
    assert is_caption_table(write(tmp_path / "t", ROWS, table_format, with_alternatives=False))


@pytest.mark.parametrize(
    "content", [b"path,caption\na.jpg,a dog\n", b"image,caption\na.jpg,a dog\n", b"{}\n", b"PAR1", b"\xff\xfe\0\0"]
)
def test_another_file_is_no_table(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(content)
    assert not is_caption_table(tmp_path / "t")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("all_quoted", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_that_a_spreadsheet_saved_is_one(
    delimiter: str, all_quoted: bool, encoding: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "t.csv", ROWS[:1], "csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(file))
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL)
        writer.writerows(lines)
    assert is_caption_table(path)
    if delimiter == ",":
        assert [row.path for row in read_captions(path)] == ["a,b.jpg"]


def test_a_table_that_is_not_there_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.csv: No such file or directory; `captionmill caption` makes one$"):
        read_captions(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "found"),
    [("a.csv", "csv"), ("a.jsonl", "jsonl"), ("a.parquet", "parquet"), ("a", "csv"), ("A.JSONL", "jsonl")],
)
def test_the_suffix_says_the_format(name: str, found: str) -> None:
    assert format_of(Path(name)) == found


@pytest.mark.parametrize("name", ["a.xlsx", "a.XLS", "a.ods", "a.json", "a.html", "a.tsv", "a.csv.gz"])
def test_a_suffix_that_promises_something_else_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.csv \(for spreadsheets\), \.jsonl or \.parquet; or set"):
        format_of(Path(name))
