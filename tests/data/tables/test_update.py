"""A table of captions is brought up to date, and survives a kill at any line of the code that does it."""

import os
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import filelock
import numpy as np
import pytest

from captionmill.data.errors import InputError
from captionmill.data.files import stamp_of
from captionmill.data.tables.formats import TableFormat, is_caption_table, read_captions, write_captions
from captionmill.data.tables.journal import KEPT_RENDERINGS, CaptionJournal, made_dir
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import TableSummary, WantedTable, update_captions

KEYS = [f"{name}.jpg" for name in "abcdefg"]
MODEL = {"model": "first"}
BLOCK_ROWS = 2  # many blocks of few rows


def update(
    path: Path,
    keys: Sequence[str],
    *,
    made_with: Mapping[str, Any] = MODEL,
    versions: Mapping[str, int] | None = None,
    table_format: TableFormat = "csv",
    fail_at: str = "",
    withdraw_reviews: bool = False,
) -> list[str]:
    """Bring the table up to date; the keys whose rows were made."""
    versions = versions or {}
    made = []

    def make_rows(missing: Sequence[str]) -> Iterator[CaptionRow]:
        for key in missing:
            if key == fail_at:
                raise OSError("no space left")
            made.append(key)
            yield CaptionRow(key, f"{made_with['model']} {versions.get(key, 0)} of {key}", 0.5)

    wanted = want(keys, made_with, versions, table_format)
    summary = update_captions(path, wanted, make_rows, withdraw_reviews=withdraw_reviews, block_rows=BLOCK_ROWS)
    assert summary.made == len(made)
    return made


def want(
    keys: Sequence[str],
    made_with: Mapping[str, Any] = MODEL,
    versions: Mapping[str, int] | None = None,
    table_format: TableFormat = "csv",
) -> WantedTable:
    sources = [zlib.crc32(f"{key} {(versions or {}).get(key, 0)}".encode()) for key in keys]
    return WantedTable(keys, np.array(sources, np.uint32), made_with, table_format)


def captions(path: Path) -> dict[str, str]:
    rows = list(read_captions(path))
    assert [row.path for row in rows] == sorted({row.path for row in rows})
    return {row.path: row.caption for row in rows}


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
class TestAFinishedTable:
    def test_is_left_alone_by_a_second_run(self, table_format: TableFormat, tmp_path: Path) -> None:
        path = tmp_path / "t"
        assert update(path, KEYS, table_format=table_format) == KEYS
        before = path.read_bytes(), path.stat().st_mtime_ns
        assert update(path, KEYS, table_format=table_format) == []
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before

    def test_gets_new_images_and_loses_those_that_are_gone(self, table_format: TableFormat, tmp_path: Path) -> None:
        path = tmp_path / "t"
        update(path, KEYS[1:6], table_format=table_format)
        assert update(path, [*KEYS[:3], *KEYS[4:]], table_format=table_format) == ["a.jpg", "g.jpg"]
        update(tmp_path / "fresh", [*KEYS[:3], *KEYS[4:]], table_format=table_format)
        assert captions(path) == captions(tmp_path / "fresh")
        if table_format != "parquet":
            assert path.read_bytes() == (tmp_path / "fresh").read_bytes()

    def test_makes_only_the_row_of_a_changed_image_again(self, table_format: TableFormat, tmp_path: Path) -> None:
        path = tmp_path / "t"
        update(path, KEYS, table_format=table_format)
        assert update(path, KEYS, versions={"c.jpg": 1}, table_format=table_format) == ["c.jpg"]
        assert captions(path)["c.jpg"] == "first 1 of c.jpg"
        assert captions(path)["d.jpg"] == "first 0 of d.jpg"

    def test_stays_whole_until_that_of_another_model_is_complete(
        self, table_format: TableFormat, tmp_path: Path
    ) -> None:
        path = tmp_path / "t"
        update(path, KEYS, table_format=table_format)
        before = path.read_bytes()
        with pytest.raises(OSError, match="no space left"):
            update(path, KEYS, made_with={"model": "second"}, table_format=table_format, fail_at="f.jpg")
        assert path.read_bytes() == before
        made = update(path, KEYS, made_with={"model": "second"}, table_format=table_format)
        assert made == ["f.jpg", "g.jpg"]
        assert set(captions(path).values()) == {f"second 0 of {key}" for key in KEYS}
        assert sorted(entry.name for entry in made_dir(path).iterdir() if entry.name != ".lock") == ["journal.jsonl"]

    def test_of_somebody_else_is_replaced_when_the_new_one_is_complete(
        self, table_format: TableFormat, tmp_path: Path
    ) -> None:
        path = tmp_path / "t"
        path.write_text("my own notes\n")
        with pytest.raises(OSError, match="no space left"):
            update(path, KEYS, table_format=table_format, fail_at="c.jpg")
        assert path.read_text() == "my own notes\n"
        update(path, KEYS, table_format=table_format)
        assert list(captions(path)) == KEYS


def edit(path: Path, old: bytes, new: bytes) -> bytes:
    """Put `new` for `old` in the file; what it holds then."""
    edited = path.read_bytes().replace(old, new)
    path.write_bytes(edited)
    return edited


def rows_of(path: Path) -> dict[str, CaptionRow]:
    return {row.path: row for row in read_captions(path)}


CORRECTED = CaptionRow("c.jpg", "a mended caption", None, status="corrected")


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
def test_a_corrected_caption_outlives_other_models_images_and_formats(
    table_format: TableFormat, tmp_path: Path
) -> None:
    path = tmp_path / "t"
    update(path, KEYS, table_format=table_format)
    rows = [replace(row, caption="a  mended caption ") if row.path == "c.jpg" else row for row in read_captions(path)]
    write_captions(path, rows, table_format, with_alternatives=False)
    made = update_captions(path, want(KEYS, table_format=table_format), lambda keys: [])
    assert made == TableSummary(made=0, corrections=1, reviewed=1)
    expected = {key: CaptionRow(key, f"first 0 of {key}", 0.5) for key in KEYS} | {"c.jpg": CORRECTED}
    assert rows_of(path) == expected
    update(path, KEYS, versions={"c.jpg": 1}, made_with={"model": "second"}, table_format=table_format)
    assert rows_of(path)["c.jpg"] == CORRECTED
    for other in ("csv", "jsonl", "parquet"):
        update(path, KEYS[1:], made_with={"model": "third"}, table_format=other)
        assert rows_of(path)["c.jpg"] == CORRECTED
    path.unlink()
    update(path, KEYS)
    assert rows_of(path) == expected
    assert update(path, KEYS, withdraw_reviews=True) == []
    assert rows_of(path)["c.jpg"] == CaptionRow("c.jpg", "first 0 of c.jpg", 0.5)
    assert list(tmp_path.glob("t.edited*")) == []


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: "".join(",".join(f'"{cell}"' for cell in line.split(",")) + "\r\n" for line in text.splitlines()),
        lambda text: "\n".join([text.splitlines()[0], *reversed(text.splitlines()[1:]), ""]),
        lambda text: text.replace("0.5000", "0.5"),
        lambda text: text.replace(",", ";").replace("0.5000", "0,5"),
        lambda text: text.replace("b.jpg,first 0 of b.jpg,0.5000,,ok,\n", ""),
        lambda text: text.replace("first 0 of b.jpg", ""),
        lambda text: text.replace(",", "|"),
        lambda text: "sep=^\r\n" + text.replace(",", "^"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(",ok,\n", ",ok\n"),
        lambda text: text.replace("\n", ",,\n"),
        lambda text: text.replace("path,caption,conf", " Path,CAPTION ,Conf"),
        lambda text: text.replace("0.5000", "50%"),
        lambda text: text.replace("0.5000", "###"),
        lambda text: "".join(",".join(line.split(",")[:2]) + "\n" for line in text.splitlines()),
        lambda text: text.replace("a mended", "a \0\vmended"),
    ],
    ids=[
        *("semicolons", "tabs", "quoted", "sorted", "numbers", "decimal commas", "a row deleted", "a caption emptied"),
        *("bars", "another mark, named", "returns", "last cells left out", "empty columns", "names", "percent"),
        *("a narrow column", "columns deleted", "control characters"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_that_a_spreadsheet_saved_is_known_row_by_row(
    rewrite: Callable[[str], str], encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    text = path.read_text(encoding="utf-8-sig").replace("first 0 of c.jpg", "a mended caption")
    path.write_text(rewrite(text), encoding=encoding, newline="")
    assert is_caption_table(path)
    assert update(path, KEYS) == []
    assert rows_of(path) == {key: CaptionRow(key, f"first 0 of {key}", 0.5) for key in KEYS} | {"c.jpg": CORRECTED}
    assert list(tmp_path.glob("t.edited*")) == []


def test_a_caption_is_accepted_or_corrected_once_more_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    edit(path, b"a.jpg,first 0 of a.jpg,0.5000,,ok", b"a.jpg,first 0 of a.jpg,0.5000,,accepted")
    edit(path, b"first 0 of c.jpg", b"mended")
    update(path, KEYS)
    edit(path, b"c.jpg,mended,", b"c.jpg,mended twice,")
    update(path, KEYS)
    accepted = CaptionRow("a.jpg", "first 0 of a.jpg", 0.5, status="accepted")
    assert rows_of(path)["a.jpg"] == accepted
    assert rows_of(path)["c.jpg"] == replace(CORRECTED, caption="mended twice")
    update(path, KEYS, made_with={"model": "second"})
    assert rows_of(path)["a.jpg"] == replace(accepted, confidence=None)  # not what the second model says


def test_reviews_in_a_table_without_its_journal_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    edit(path, b"first 0 of c.jpg", b"a mended caption")
    update(path, KEYS)
    (tmp_path / "moved").mkdir()
    path = path.rename(tmp_path / "moved/t.csv")
    update(path, KEYS, made_with={"model": "second"})
    assert rows_of(path)["c.jpg"] == CORRECTED
    assert rows_of(path)["a.jpg"].caption == "second 0 of a.jpg"


def test_an_older_table_or_that_of_another_run_under_the_name_corrects_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    first = path.read_bytes()
    update(path, KEYS, made_with={"model": "second"})
    path.write_bytes(first)  # from a backup
    update(path, KEYS, made_with={"model": "second"})
    assert set(captions(path).values()) == {f"second 0 of {key}" for key in KEYS}
    assert list(tmp_path.glob("t.edited*")) == []
    path.write_bytes(first.replace(b"0.5000", b"0.7000"))
    update(path, KEYS, made_with={"model": "second"})
    assert set(captions(path).values()) == {f"second 0 of {key}" for key in KEYS}
    assert (tmp_path / "t.edited.csv").read_bytes() == first.replace(b"0.5000", b"0.7000")


@pytest.mark.parametrize("shown", ["{:.2f}", "{:.1f}", "{:.0%}", "{:.1%}", "{:.0f}"])
def test_a_correction_counts_where_a_spreadsheet_saved_fewer_digits_of_confidences(shown: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    confidences = {key: 0.1149 + 0.1 * number for number, key in enumerate(KEYS)}
    update_captions(path, want(KEYS), lambda keys: [CaptionRow(key, "a model's", confidences[key]) for key in keys])
    text = path.read_text("utf-8-sig")
    for confidence in confidences.values():
        text = text.replace(f"{confidence:.4f}", shown.format(confidence))
    path.write_text(text.replace("c.jpg,a model's", "c.jpg,a person's"))
    assert update_captions(path, want(KEYS), lambda _: []).corrections == 1
    assert rows_of(path)["c.jpg"] == replace(CORRECTED, caption="a person's")
    assert not list(tmp_path.glob("t.edited*"))


def test_two_corrections_of_one_image_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    edited = edit(path, b"c.jpg,first 0 of c.jpg,0.5000,,ok,\n", b"c.jpg,one,0.5,,ok,\nc.jpg,another,0.5,,ok,\n")
    with pytest.raises(InputError, match=r"t\.csv: c\.jpg was corrected twice, as 'one' and as 'another'; "):
        update(path, KEYS)
    assert path.read_bytes() == edited


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"g.jpg,0.5000,,ok,\n", b"g.jpg,0.5000,,ok,\nmine.jpg,added by hand,0.5,,ok,\n"),
        (b",error\n", b",error,note\n"),
    ],
)
def test_a_table_with_more_than_corrections_is_kept_beside_the_new_one(
    old: bytes, new: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    edited = edit(path, b",ok,\n", b",ok,,good\n") if b"note" in new else b""
    edited = edit(path, old, new)
    assert update(path, KEYS) == []
    assert set(captions(path).values()) == {f"first 0 of {key}" for key in KEYS}
    assert (tmp_path / "t.edited.csv").read_bytes() == edited
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: has more changes than corrected captions; the changed table is kept as t.edited.csv"
    ]


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
def test_a_table_as_it_was_written_is_kept_nowhere(table_format: TableFormat, tmp_path: Path) -> None:
    path = tmp_path / "t"
    update(path, KEYS[:5], table_format=table_format)
    update(path, KEYS, table_format=table_format)
    update(path, KEYS, made_with={"model": "second"}, table_format="csv")
    update(path, KEYS, table_format=table_format)
    assert not list(tmp_path.glob("t.edited*"))


def test_an_edited_table_with_the_longest_name_is_kept(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 122 + "n.csv")  # 249 bytes: the folder of what is remembered has 255
    update(path, KEYS)
    edited = edit(path, b"first 0 of c.jpg,0.5000,,ok,\n", b"mended,0.5,,ok,\nmine.jpg,added,0.5,,ok,\n")
    update(path, KEYS)
    assert (tmp_path / ("ü" * 122 + ".edited.csv")).read_bytes() == edited
    assert captions(path)["c.jpg"] == "mended"


def test_a_table_that_is_edited_while_the_new_one_is_made_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS[1:])
    edited = b""

    def make_rows(keys: Sequence[str]) -> Iterator[CaptionRow]:
        nonlocal edited
        edited = edit(path, b"first 0 of c.jpg", b"a mended caption")
        yield from (CaptionRow(key, f"first 0 of {key}", 0.5) for key in keys)

    with pytest.raises(InputError, match=r"t\.csv: was changed while the new table was made from it; run again"):
        update_captions(path, want(KEYS), make_rows, block_rows=BLOCK_ROWS)
    assert path.read_bytes() == edited
    assert update(path, KEYS) == []
    assert rows_of(path)["c.jpg"] == CORRECTED


def test_an_interrupted_run_leaves_no_table_and_the_next_makes_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(OSError, match="no space left"):
        update(path, KEYS, fail_at="f.jpg")
    assert not path.exists()
    assert update(path, KEYS) == KEYS[5:]
    update(tmp_path / "whole.csv", KEYS)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(("lost", "made"), [(1, 1), (20, 1), (200, 2)])
def test_a_torn_last_line_of_the_journal_is_cut_off(lost: int, made: int, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(OSError, match="no space left"):
        update(path, KEYS, fail_at="f.jpg")
    journal = made_dir(path) / "journal.jsonl"
    os.truncate(journal, journal.stat().st_size - lost)
    assert update(path, KEYS) == KEYS[5 - made :]
    update(tmp_path / "whole.csv", KEYS)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_zeros_without_end_behind_the_journal_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(OSError, match="no space left"):
        update(path, KEYS, fail_at="f.jpg")
    journal = made_dir(path) / "journal.jsonl"
    os.truncate(journal, 20_000_000)
    assert update(path, KEYS) == KEYS[5:]
    assert journal.stat().st_size < 10_000


def test_a_damaged_line_of_the_journal_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    edit(made_dir(path) / "journal.jsonl", b"first 0 of c.jpg", b"first 0 of x.jpg")
    assert update(path, KEYS) == ["c.jpg"]
    assert captions(path) == {key: f"first 0 of {key}" for key in KEYS}


def test_a_journal_keeps_little_of_what_was_replaced(tmp_path: Path) -> None:
    keys = [f"{number:04}.jpg" for number in range(300)]
    path = tmp_path / "t.csv"
    sizes = []
    for number in range(8):
        update(path, keys, made_with={"model": number})
        if number == 0:
            edit(path, b"0 0 of 0007.jpg", b"mended")
        sizes.append((made_dir(path) / "journal.jsonl").stat().st_size)
    assert max(sizes) < 4 * sizes[0]
    assert captions(path) == {key: "mended" if key == "0007.jpg" else f"7 0 of {key}" for key in keys}
    assert update(path, keys, made_with={"model": 7}) == []


def test_a_journal_of_many_runs_keeps_the_last_renderings_only(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    journal = CaptionJournal(made_dir(path))
    with journal.append(journal.path.stat().st_size) as writer:
        for number in range(1_000):
            writer.add_table(f"{number:064}", of="")
    update(path, KEYS[:-1])
    known = journal.known((), np.empty(0, np.uint32), {})
    assert known.renderings[:2] == [f"{number:064}" for number in (901, 902)]
    assert len(known.renderings) == KEPT_RENDERINGS + 1  # and the last one with what it shows
    assert captions(path) == {key: f"first 0 of {key}" for key in KEYS[:-1]}
    assert update(path, KEYS[:-1]) == []


def test_a_row_that_came_for_another_image_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the row of x\.jpg came for a\.jpg"):
        update_captions(tmp_path / "t", want(KEYS), lambda keys: [CaptionRow("x.jpg", "", None)] * len(keys))


def test_two_processes_do_not_write_one_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS[:3])
    with filelock.FileLock(made_dir(path) / ".lock"), pytest.raises(InputError, match="another process is writing"):
        update(path, KEYS)
    assert list(captions(path)) == KEYS[:3]


def test_what_a_kill_left_beside_a_table_goes_also_if_nothing_is_new(tmp_path: Path) -> None:
    update(tmp_path / "made" / "t.csv", KEYS)
    path = Path(shutil.copytree(tmp_path / "made", tmp_path / "copy")) / "t.csv"  # a process clears a folder once
    left = [folder / ".t.csv.0123456789abcdef.partial" for folder in (path.parent, made_dir(path))]
    for file in left:
        file.write_text("half")
    stamp = stamp_of(path)
    assert update(path, KEYS) == []
    assert stamp_of(path) == stamp
    assert [file for file in left if file.exists()] == []


def is_traced(frame: FrameType) -> bool:
    """Whether the code is the writer's; where it only waits for the disk, nothing changes."""
    own = frame.f_code.co_filename.endswith(
        ("tables/journal.py", "tables/update.py", "tables/edits.py", "data/files.py")
    )
    return own and frame.f_code.co_name != "flush_to_disk"


def lines_run(path: Path, **arguments: Any) -> int:
    """How many lines of the writer a run executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not is_traced(frame):
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        update(path, **arguments)
    finally:
        sys.settrace(None)
    return count


def run_until_killed(path: Path, line: int, **arguments: Any) -> bool:
    """The same in a forked process, which kills itself with SIGKILL at the line with this number; whether it did."""
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal count
            if not is_traced(frame):
                return None
            count += event == "line"
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            update(path, **arguments)
            os._exit(0)
        finally:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("scene", "table_format"),
    [("new", "csv"), ("more images", "csv"), ("another model", "csv"), ("another model", "parquet")],
)
def test_a_kill_at_any_line_loses_no_row_and_doubles_none(
    scene: str, table_format: TableFormat, tmp_path: Path
) -> None:
    now: dict[str, Any] = {"keys": KEYS, "table_format": table_format, "versions": {"e.jpg": 1}}
    if scene == "another model":
        now["made_with"] = {"model": "second"}

    def prepare(name: str) -> Path:
        if scene != "new":
            update(tmp_path / name, KEYS[1:6], table_format=table_format)
        return tmp_path / name

    whole = prepare("whole")
    line_count = lines_run(whole, **now)
    expected = captions(whole)
    old = prepare("old").read_bytes() if scene != "new" else b""
    kills = 0
    for line in [*range(1, line_count, max(1, line_count // 5)), *range(line_count - 5, line_count)]:
        path = prepare(f"killed at {line}")
        kills += run_until_killed(path, line, **now)
        # at every instant the whole old table, or the whole new one
        assert captions(path) == expected if scene == "new" and path.exists() else True
        if scene != "new":
            assert path.read_bytes() == old or captions(path) == expected
        kills += run_until_killed(path, line // 2, **now)  # and once more, on the way
        made = update(path, **now)
        assert captions(path) == expected
        if table_format != "parquet":
            assert path.read_bytes() == whole.read_bytes()
        assert set(made) <= set(KEYS)
        assert update(path, **now) == []
    assert kills > 12  # a run may have a line less than the one that was counted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("table_format", ["csv", "parquet"])
def test_a_kill_as_a_table_takes_its_place_makes_none_look_edited(table_format: TableFormat, tmp_path: Path) -> None:
    now: dict[str, Any] = {"keys": KEYS, "table_format": table_format, "made_with": {"model": "second"}}

    def prepare(name: str) -> Path:
        with pytest.raises(OSError, match="no space left"):
            update(tmp_path / name, KEYS, fail_at="f.jpg")  # CSV, which a kill has left growing
        return tmp_path / name

    line_count = lines_run(prepare("whole"), **now)
    for line in range(line_count - (40 if table_format == "csv" else 39), line_count, 2):
        path = prepare(f"killed at {line}")
        run_until_killed(path, line, **now)
        update(path, **now)
        assert set(captions(path).values()) == {f"second 0 of {key}" for key in KEYS}
        assert update(path, **now) == []
    assert not list(tmp_path.glob("*.edited*"))


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
def test_a_row_is_found_by_its_name_even_where_checksums_are_equal(table_format: TableFormat, tmp_path: Path) -> None:
    """Of two names in a billion the checksums of four bytes are equal, and those of failed rows hold nothing else."""
    path = tmp_path / "t"
    names = {key: CaptionRow(key, "", None, status="failed", error="not an image") for key in ("a,b.jpg", "c.jpg")}

    def update_all(keys: Sequence[str]) -> int:
        rows = names | {"'d.jpg": CaptionRow("'d.jpg", "a dog", 0.5)}
        sources = np.full(len(keys), 7, np.uint32)
        wanted = WantedTable(keys, sources, {}, table_format)
        return update_captions(path, wanted, lambda missing: [rows[key] for key in missing]).made

    assert update_all(["a,b.jpg"]) == 1
    assert update_all(["a,b.jpg"]) == 0
    assert update_all(["c.jpg"]) == 1
    assert list(read_captions(path)) == [names["c.jpg"]]
    assert update_all(["'d.jpg", "c.jpg"]) == 1
    assert update_all(["'d.jpg", "c.jpg"]) == 0
    assert [row.path for row in read_captions(path)] == ["'d.jpg", "c.jpg"]
