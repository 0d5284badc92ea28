"""Decisions about captions are merged into their table, whatever its format, and never replace what changed since."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.errors import InputError
from captionmill.data.tables.decisions import Conflict, DecisionSummary, apply_decisions
from captionmill.data.tables.formats import TableFormat, read_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions

KEYS = [f"{name}.jpg" for name in "abcde"]


def make_table(path: Path, table_format: TableFormat = "csv", made_with: str = "first") -> Path:
    def make_rows(keys: Sequence[str]) -> list[CaptionRow]:
        return [CaptionRow(key, f"{made_with} of {key}", 0.5, ("another",), ("repeated",)) for key in keys]

    sources = np.arange(len(KEYS), dtype=np.uint32)
    wanted = WantedTable(KEYS, sources, {"model": made_with}, table_format, with_alternatives=True)
    update_captions(path, wanted, make_rows)
    return path


def decide(path: Path, *rows: Sequence[str]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("path", "decision", "caption", "shown"), *rows])
    return path


def rows_of(path: Path) -> dict[str, CaptionRow]:
    return {row.path: row for row in read_captions(path)}


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
def test_decisions_last_through_other_runs(table_format: TableFormat, tmp_path: Path) -> None:
    table = make_table(tmp_path / "t", table_format)
    before = rows_of(table)
    decisions = decide(
        tmp_path / "decisions.csv",
        ("a.jpg", "corrected", " a  dog, on grass ", "first of a.jpg"),
        ("b.jpg", "accepted", "", "first of b.jpg"),
        ("c.jpg", "later", "", "first of c.jpg"),
    )
    would = apply_decisions(decisions, table, dry_run=True)
    assert rows_of(table) == before
    assert apply_decisions(str(decisions), str(table)) == would == DecisionSummary(1, 1, 1, 0, ())
    expected = before | {
        "a.jpg": CaptionRow("a.jpg", "a dog, on grass", None, status="corrected"),
        "b.jpg": CaptionRow("b.jpg", "first of b.jpg", 0.5, ("another",), status="accepted"),
        "c.jpg": CaptionRow("c.jpg", "first of c.jpg", 0.5, ("another",), ("repeated", "later")),
    }
    assert rows_of(table) == expected
    assert apply_decisions(decisions, table) == DecisionSummary(0, 0, 0, 3, ())
    make_table(table, table_format)
    assert rows_of(table) == expected
    make_table(table, table_format, made_with="second")
    rows = rows_of(table)
    assert (rows["a.jpg"], rows["b.jpg"].caption, rows["c.jpg"].caption) == (
        expected["a.jpg"],
        "first of b.jpg",
        "second of c.jpg",
    )
    assert list(tmp_path.glob("*.edited*")) == []


def test_what_a_person_decided_in_a_table_is_merged_into_one_of_another_format(tmp_path: Path) -> None:
    first, second = make_table(tmp_path / "t.csv"), make_table(tmp_path / "t.jsonl", "jsonl", made_with="second")
    apply_decisions(
        decide(
            tmp_path / "d.csv",
            ("a.jpg", "corrected", "a dog, on grass", "first of a.jpg"),
            ("b.jpg", "accepted", "", "first of b.jpg"),
            ("c.jpg", "later", "", "first of c.jpg"),
        ),
        first,
    )
    first.write_text(first.read_text().replace("first of d.jpg", "a man"))  # in an editor, since the last run
    other = decide(tmp_path / "e.csv", ("a.jpg", "corrected", "a cat", "second of a.jpg"))
    apply_decisions(other, second)
    conflict = Conflict("a.jpg", "the table has a person's caption already: 'a cat'")
    before = first.read_bytes()
    assert apply_decisions(first, second) == DecisionSummary(1, 1, 0, 0, (conflict,))
    assert apply_decisions(first, second) == DecisionSummary(0, 0, 0, 2, (conflict,))
    assert first.read_bytes() == before
    found = rows_of(second)
    assert (found["b.jpg"].caption, found["b.jpg"].status) == ("first of b.jpg", "accepted")
    assert (found["d.jpg"].caption, found["d.jpg"].status) == ("a man", "corrected")
    assert {found[key].status for key in ("c.jpg", "e.jpg")} == {"ok"}
    make_table(second, "jsonl", made_with="third")
    assert rows_of(second)["d.jpg"].caption == "a man"
    with pytest.raises(InputError, match="cannot be merged into itself"):
        apply_decisions(first, first)
    copy = tmp_path / "copy.csv"  # without a journal
    head = "path,caption,confidence,flags,status,error\n"
    copy.write_text(f"{head}d.jpg,,,,corrected,\ne.jpg, ,,,accepted,\n")
    assert apply_decisions(copy, second) == DecisionSummary(0, 0, 0, 0, ())
    copy.write_text(f"{head}e.jpg,one,,,corrected,\ne.jpg,two,,,corrected,\n")
    with pytest.raises(InputError, match="a second decision about e"):
        apply_decisions(copy, second)


def test_what_changed_since_the_page_was_made_is_a_conflict(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.csv")
    table.write_bytes(table.read_bytes().replace(b"first of b.jpg", b"mended in the table"))
    decisions = decide(
        tmp_path / "decisions.csv",
        ("a.jpg", "corrected", "a dog", "what an older model said"),
        ("b.jpg", "corrected", "a cat", "first of b.jpg"),
        ("c.jpg", "accepted", "", "first of c.jpg"),
        ("x.jpg", "accepted", "", "a horse"),
    )
    result = CliRunner().invoke(main, ["apply", str(decisions), "--to", str(table)], catch_exceptions=False)
    assert result.exit_code == 1
    line = "0 captions corrected, 1 accepted, 0 for later, 0 as before, 3 conflicts"
    assert result.stdout == f"{table}: {line}\n"
    assert result.stderr.splitlines() == [
        "  a.jpg: decided about 'what an older model said', but the table says 'first of a.jpg'",
        "  b.jpg: decided about 'first of b.jpg', but the table says 'mended in the table'",
        "  x.jpg: the table has no such image",
        f"Error: {decisions}: 3 conflicts with {table}, listed above; all other decisions are merged",
    ]
    rows = rows_of(table)
    assert rows["a.jpg"].caption == "first of a.jpg"
    assert rows["b.jpg"] == CaptionRow("b.jpg", "mended in the table", None, status="corrected")
    assert rows["c.jpg"].status == "accepted"
    assert apply_decisions(decisions, table, dry_run=True).conflicts[2] == Conflict(
        "x.jpg", "the table has no such image"
    )


def test_a_correction_that_a_failed_run_took_from_the_table_is_in_it_after_a_merge(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.csv")
    table.write_bytes(table.read_bytes().replace(b"first of b.jpg", b"a cat"))

    def fail(_: Sequence[str]) -> list[CaptionRow]:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        update_captions(table, WantedTable(KEYS, np.zeros(len(KEYS), np.uint32), {"model": "second"}), fail)
    decisions = [("a.jpg", "corrected", "a dog", "first of a.jpg"), ("b.jpg", "accepted", "", "first of b.jpg")]
    conflict = Conflict("b.jpg", "decided about 'first of b.jpg', but the table says 'a cat'")
    assert apply_decisions(decide(tmp_path / "d.csv", *decisions), table) == DecisionSummary(1, 0, 0, 0, (conflict,))
    assert rows_of(table)["b.jpg"] == CaptionRow("b.jpg", "a cat", None, status="corrected")


@pytest.mark.parametrize(("mark", "encoding"), [(";", "utf-8"), ("\t", "utf-16")])
def test_decisions_that_a_spreadsheet_saved_are_merged(mark: str, encoding: str, tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.csv")
    lines = [["Path", "Decision", "Caption", "Shown"], ["a.jpg", "Corrected", "'tis a dog", "first of a.jpg"]]
    (tmp_path / "d.csv").write_text("\r\n".join(map(mark.join, lines)), encoding=encoding, newline="")
    assert apply_decisions(tmp_path / "d.csv", table) == DecisionSummary(1, 0, 0, 0, ())
    assert rows_of(table)["a.jpg"].caption == "'tis a dog"


def test_a_decision_is_taken_back_by_a_later_file(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.csv")
    before = rows_of(table)
    first = [("a.jpg", "corrected", "a dog", "first of a.jpg"), ("b.jpg", "accepted", "", "first of b.jpg")]
    apply_decisions(decide(tmp_path / "first.csv", *first), table)
    back = [("a.jpg", "undecided", "", "a dog"), ("b.jpg", "undecided", "", "first of b.jpg")]
    undecided = decide(tmp_path / "back.csv", *back, ("c.jpg", "undecided", "", "first of c.jpg"))
    assert apply_decisions(undecided, table) == DecisionSummary(0, 0, 0, 1, (), taken_back=2)
    assert rows_of(table) == before
    make_table(table, made_with="second")
    assert {row.caption for row in rows_of(table).values()} == {f"second of {key}" for key in KEYS}


def test_where_nothing_was_decided_nothing_is_taken_back(tmp_path: Path) -> None:
    wanted = WantedTable(KEYS, np.zeros(len(KEYS), np.uint32), {})
    table = tmp_path / "t.csv"
    update_captions(table, wanted, lambda keys: [CaptionRow(key, "a dog", 1 / 3) for key in keys])
    content = table.read_bytes()
    decisions = decide(tmp_path / "d.csv", ("a.jpg", "undecided", "", "a dog"))
    assert apply_decisions(decisions, table) == DecisionSummary(0, 0, 0, 1, ())
    assert table.read_bytes() == content


def test_a_decision_for_later_takes_back_no_correction(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.csv")
    first = [("a.jpg", "corrected", "a dog", "first of a.jpg"), ("b.jpg", "accepted", "", "first of b.jpg")]
    apply_decisions(decide(tmp_path / "first.csv", *first), table)
    then = decide(tmp_path / "then.csv", ("a.jpg", "later", "", "a dog"), ("b.jpg", "later", "", "first of b.jpg"))
    conflict = Conflict("a.jpg", "the table has a person's caption already: 'a dog'")
    assert apply_decisions(then, table) == DecisionSummary(0, 0, 1, 0, (conflict,))
    make_table(table)
    rows = rows_of(table)
    assert rows["a.jpg"] == CaptionRow("a.jpg", "a dog", None, status="corrected")
    assert rows["b.jpg"] == CaptionRow("b.jpg", "first of b.jpg", 0.5, ("another",), ("repeated", "later"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"path,caption\na.jpg,a dog\n",
            "not a file of decisions; it needs the columns path, decision, caption, shown",
        ),
        (b"path,decision,caption,shown\na.jpg,perhaps,,x\n", "line 2: perhaps '' is no decision"),
        (b"path,decision,caption,shown\na.jpg,corrected, ,x\n", "line 2: corrected '' is no decision"),
        (
            b"path,decision,caption,shown\na.jpg,later,,x\na.jpg,accepted,,x\n",
            r"line 3: a second decision about a\.jpg",
        ),
        (b"path,decision,caption,shown\na.jpg,accepted,,\n", "line 2: accepted '' is no decision"),
        (b"path,decision,caption,shown\na.jpg,later,,\xff\n", "not in UTF-8; save it as CSV in UTF-8"),
        (b'path,decision,caption,shown\na.jpg,later,,"x\n', "line 2 is not a complete row of decisions"),
    ],
)
def test_what_is_no_file_of_decisions_changes_nothing(content: bytes, message: str, tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.csv")
    before = table.read_bytes()
    (tmp_path / "decisions.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        apply_decisions(tmp_path / "decisions.csv", table)
    assert table.read_bytes() == before
