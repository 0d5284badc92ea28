"""Tables that `caption` wrote and a person corrected, as reference captions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from captionmill.cli import main
from captionmill.data.captions.files import CaptionFiles
from captionmill.data.captions.references import read_annotations
from captionmill.data.errors import AnnotationError, InputError
from captionmill.data.tables.formats import TableFormat, require_other_output, write_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions

ROWS = (
    CaptionRow("a.jpg", "a dog", 0.5),
    CaptionRow("b.jpg", "a grey heron", None, status="corrected"),
    CaptionRow("c.jpg", "a cat", 0.4, status="accepted"),
    CaptionRow("d.jpg", "", None, status="failed", error="not an image"),
    CaptionRow("e.jpg", "", 0.1),
)
FORMATS: Sequence[TableFormat] = ("csv", "jsonl", "parquet")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_captions(tmp_path / "table.csv", ROWS, "csv", with_alternatives=False)
    return tmp_path / "table.csv"


@pytest.mark.parametrize("table_format", FORMATS)
def test_a_table_is_read_as_it_is_and_what_it_lacks_is_counted(
    tmp_path: Path, table_format: TableFormat, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table"
    write_captions(path, ROWS, table_format, with_alternatives=False)
    assert read_annotations(path).captions == {"a.jpg": ("a dog",), "b.jpg": ("a grey heron",), "c.jpg": ("a cat",)}
    counts = [f"{path}: left out 1 images that could not be read", f"{path}: left out 1 captions without text"]
    assert caplog.messages == counts
    caplog.clear()
    reviewed = read_annotations(CaptionFiles(path, only="reviewed"))
    assert reviewed.captions == {"b.jpg": ("a grey heron",), "c.jpg": ("a cat",)}
    assert sorted(caplog.messages) == sorted([*counts, f"{path}: left out 1 captions that nobody reviewed"])


def test_other_files_are_used_whole_beside_the_reviewed_captions(tmp_path: Path, table: Path) -> None:
    (tmp_path / "own.csv").write_text("image,caption\nb.jpg,a bird\nx.jpg,a boat\n")
    reviewed = read_annotations(CaptionFiles([tmp_path / "own.csv", table], only="reviewed"))
    assert reviewed.captions == {"b.jpg": ("a bird", "a grey heron"), "x.jpg": ("a boat",), "c.jpg": ("a cat",)}
    assert reviewed.splits == {}


def test_images_of_a_table_are_trained_on_where_other_files_have_splits(tmp_path: Path, table: Path) -> None:
    (tmp_path / "own.csv").write_text("image,caption,split\nb.jpg,a bird,test\nx.jpg,a boat,train\n")
    splits = read_annotations([tmp_path / "own.csv", table]).splits
    assert splits == {"a.jpg": "train", "b.jpg": "test", "c.jpg": "train", "x.jpg": "train"}


@pytest.mark.parametrize("text", ["image,caption\nx.jpg,a boat\n", "path,caption,status\nx.jpg,a boat,ok\n"])
def test_without_a_reviewed_caption_there_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(text)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(CaptionFiles(path, only="reviewed"))
    assert str(caught.value) == (
        f"{path}: no caption that a person corrected or accepted, in a table that `captionmill caption` wrote, with "
        "its column status; review some, or leave out `only` reviewed"
    )


def test_a_caption_that_was_just_changed_in_the_table_counts_as_corrected(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    keys = ["a.jpg", "b.jpg"]
    wanted = WantedTable(keys, np.zeros(2, np.uint32), {})
    update_captions(path, wanted, lambda missing: [CaptionRow(key, "a dog", 0.5) for key in missing])
    path.write_bytes(path.read_bytes().replace(b"b.jpg,a dog", b"b.jpg,a white dog"))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    reviewed = read_annotations(CaptionFiles(path, only="reviewed"))
    assert reviewed.captions == {"b.jpg": ("a white dog",)}
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("table_format", FORMATS)
def test_a_table_whose_column_of_decisions_was_deleted_is_refused(tmp_path: Path, table_format: TableFormat) -> None:
    path = tmp_path / "table"
    wanted = WantedTable(["a.jpg"], np.zeros(1, np.uint32), {}, table_format)
    update_captions(path, wanted, lambda _: [CaptionRow("a.jpg", "a dog", 0.5)])
    if table_format == "parquet":
        parquet.write_table(parquet.read_table(path).drop_columns("status"), path)
    else:
        path.write_text(
            {"csv": "path,caption\na.jpg,a cat\n", "jsonl": '{"path": "a.jpg", "caption": "a cat"}\n'}[table_format]
        )
    with pytest.raises(AnnotationError) as caught:
        read_annotations(CaptionFiles(path, only="reviewed"))
    assert str(caught.value) == (
        f"{path}: has no column status, in which `only` reviewed finds what a person decided; run `captionmill "
        "caption` again, which writes it, or leave out `only` reviewed"
    )


@pytest.mark.parametrize("table_format", FORMATS)
def test_no_other_output_replaces_a_table(tmp_path: Path, table_format: TableFormat) -> None:
    path = tmp_path / "table"
    write_captions(path, ROWS, table_format, with_alternatives=False)
    with pytest.raises(InputError, match="table: is a table of captions and would be overwritten"):
        require_other_output(path)
    for content in ("", "key,caption,confidence\n", '{"path": "a.jpg", "first": "a dog", "second": "a cat"}\n'):
        path.write_text(content)
        require_other_output(path)


def test_no_command_writes_over_a_table_by_an_output_of_another_kind(table: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    write_captions(other, ROWS, "csv", with_alternatives=False)
    for option in ("--output", "--page"):
        result = CliRunner().invoke(main, ["compare", str(other), str(other), option, str(table)])
        assert result.exit_code == 1
        assert (
            result.stderr == f"Error: {table}: is a table of captions and would be overwritten; name another output\n"
        )
