"""A table of captions is brought up to date, and survives a kill at any line of the code that does it."""

import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pytest

from captionmill.data.captions.journal import made_dir
from captionmill.data.captions.table import CaptionRow, TableFormat, read_captions
from captionmill.data.captions.update import update_captions
from captionmill.data.errors import InputError

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

    sources = [zlib.crc32(f"{key} {versions.get(key, 0)}".encode()) for key in keys]
    checksums = np.array(sources, np.uint32)
    count = update_captions(
        path, keys, checksums, dict(made_with), make_rows, table_format=table_format, block_rows=BLOCK_ROWS
    )
    assert count == len(made)
    return made


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
        assert sorted(entry.name for entry in made_dir(path).iterdir() if entry.name != ".lock") == ["rows"]

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


@pytest.mark.parametrize(
    ("old", "new", "made"),
    [
        (b"first 0 of c", b"third 0 of c", KEYS[2:3]),
        (b"first 0 of c", b"a mended caption of c", KEYS[2:]),
        (b"first 0 of g.jpg,", b"mended,", KEYS[6:]),
        (b"g.jpg,0.5000,,ok,\n", b"g.jpg,0.5000,,ok,\nmine.jpg,added by hand,0.5,,ok,\n", []),
        (b"\xef\xbb\xbfpath,", b"path,", KEYS),
    ],
)
def test_a_table_edited_by_hand_is_kept_beside_the_new_one(
    old: bytes, new: bytes, made: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    edited = edit(path, old, new)
    assert update(path, KEYS) == made
    assert set(captions(path).values()) == {f"first 0 of {key}" for key in KEYS}
    assert (tmp_path / "t.edited.csv").read_bytes() == edited
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: was changed since it was written; the changed table is kept as t.edited.csv"
    ]


def test_every_edited_table_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS)
    edited = [edit(path, b"first 0 of c", b"mended c")]
    with pytest.raises(OSError, match="no space left"):
        update(path, KEYS, fail_at="f.jpg")
    update(path, KEYS)
    path.write_bytes(edited[0])  # as a kill leaves it between keeping it and the end
    update(path, KEYS, made_with={"model": "second"})
    edited.append(edit(path, b"second 0 of c", b"mended again"))
    made_dir(path).rename(tmp_path / "moved")  # a table that nothing is known of may be edited too
    update(path, KEYS)
    names = ("t.edited.csv", "t.edited-2.csv")
    assert [(tmp_path / name).read_bytes() for name in names] == edited
    assert len(list(tmp_path.glob("t.edited*"))) == 2


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
def test_a_table_as_it_was_written_is_kept_nowhere(table_format: TableFormat, tmp_path: Path) -> None:
    path = tmp_path / "t"
    update(path, KEYS[:5], table_format=table_format)
    update(path, KEYS, table_format=table_format)
    update(path, KEYS, made_with={"model": "second"}, table_format="csv")
    update(path, KEYS, table_format=table_format)
    assert not list(tmp_path.glob("t.edited*"))


def mend(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(caption=["mended" if path == KEYS[2] else path for path in table["path"]])


def append(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.tail(1).assign(path="mine.jpg")], ignore_index=True)


@pytest.mark.parametrize(
    "change",
    [
        mend,
        append,
        lambda table: table[table["path"] != KEYS[2]],  # pandas writes the index as a column
        lambda table: table.assign(confidence="high"),
    ],
    ids=["mended", "appended", "deleted", "other types"],
)
def test_an_edited_parquet_table_is_kept(change: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    update(path, KEYS, table_format="parquet")
    change(pd.read_parquet(path)).to_parquet(path)
    edited = path.read_bytes()
    update(path, KEYS, table_format="parquet")
    assert (tmp_path / "t.edited.parquet").read_bytes() == edited
    assert captions(path) == {key: f"first 0 of {key}" for key in KEYS}
    assert update(path, KEYS, table_format="parquet") == []


@pytest.mark.parametrize("model", ["first", "second"])
def test_the_last_row_of_an_unfinished_table_is_kept_if_somebody_made_it_shorter(model: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(OSError, match="no space left"):
        update(path, KEYS, fail_at="f.jpg")
    edited = edit(path, b"first 0 of e", b"mine")
    update(path, KEYS, made_with={"model": model})
    assert (tmp_path / "t.edited.csv").read_bytes() == edited
    assert set(captions(path).values()) == {f"{model} 0 of {key}" for key in KEYS}


def test_an_edited_table_with_the_longest_name_is_kept(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 122 + "n.csv")  # 249 bytes: the folder of what is remembered has 255
    update(path, KEYS)
    edited = edit(path, b"first 0 of c", b"mended c")
    update(path, KEYS)
    assert (tmp_path / ("ü" * 122 + ".edited.csv")).read_bytes() == edited


def test_a_table_that_is_edited_while_the_new_one_is_made_of_it_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS[1:])
    edited = b""

    def make_rows(keys: Sequence[str]) -> Iterator[CaptionRow]:
        nonlocal edited
        edited = edit(path, b"first 0 of c", b"mended c")
        yield from (CaptionRow(key, f"first 0 of {key}", 0.5) for key in keys)

    sources = np.array([zlib.crc32(f"{key} 0".encode()) for key in KEYS], np.uint32)
    with pytest.raises(InputError, match=r"t\.csv: was changed while the new table was made from it; run again"):
        update_captions(path, KEYS, sources, MODEL, make_rows, block_rows=BLOCK_ROWS)
    assert path.read_bytes() == edited
    update(path, KEYS)
    assert (tmp_path / "t.edited.csv").read_bytes() == edited


def test_a_table_grows_under_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(OSError, match="no space left"):
        update(path, KEYS, fail_at="f.jpg")
    assert list(captions(path)) == KEYS[:5]
    assert update(path, KEYS) == KEYS[5:]
    update(tmp_path / "whole.csv", KEYS)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("lost", [1, 20, 45, 60])
def test_a_torn_last_line_is_cut_off(lost: int, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(OSError, match="no space left"):
        update(path, KEYS, fail_at="f.jpg")
    os.truncate(path, path.stat().st_size - lost)
    made = update(path, KEYS)
    assert made == KEYS[5 - -(-lost // len("d.jpg,first 0 of d.jpg,0.5000,,ok,\n")) :]
    update(tmp_path / "whole.csv", KEYS)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_an_unfinished_table_of_another_model_or_with_rows_of_others_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(OSError, match="no space left"):
        update(path, KEYS, fail_at="d.jpg")
    path.write_bytes(path.read_bytes() + b"mine.jpg,added by hand,0.5,,ok,\n")
    before = path.read_bytes()
    for model in ("first", "second"):
        with pytest.raises(OSError, match="no space left"):
            update(path, KEYS, made_with={"model": model}, fail_at="g.jpg")
        assert path.read_bytes() == before
    assert update(path, KEYS, made_with={"model": "second"}) == ["g.jpg"]
    assert list(captions(path)) == KEYS


def test_a_run_killed_before_its_first_row_forgets_no_finished_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS[:6])
    header = (made_dir(path) / "rows").read_bytes().splitlines(keepends=True)[0]
    (made_dir(path) / "new.rows").write_bytes(header)
    assert update(path, KEYS) == ["g.jpg"]


def test_a_row_that_came_for_another_image_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the row of x\.jpg came for a\.jpg"):
        update_captions(
            tmp_path / "t", KEYS, np.zeros(7, np.uint32), {}, lambda keys: [CaptionRow("x.jpg", "", None)] * len(keys)
        )


def test_two_processes_do_not_write_one_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update(path, KEYS[:3])
    with filelock.FileLock(made_dir(path) / ".lock"), pytest.raises(InputError, match="another process is writing"):
        update(path, KEYS)
    assert list(captions(path)) == KEYS[:3]


def is_traced(frame: FrameType) -> bool:
    """Whether the code is the writer's; where it only waits for the disk, nothing changes."""
    own = frame.f_code.co_filename.endswith(("captions/journal.py", "captions/update.py", "data/files.py"))
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
@pytest.mark.parametrize("table_format", ["csv", "parquet"])
@pytest.mark.parametrize("scene", ["new", "more images", "another model"])
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
    for line in [*range(1, line_count, max(1, line_count // 8)), *range(line_count - 8, line_count)]:
        path = prepare(f"killed at {line}")
        kills += run_until_killed(path, line, **now)
        if scene != "new":  # at every instant the whole old table, or the whole new one
            assert path.read_bytes() == old or captions(path) == expected
        elif path.exists() and table_format != "parquet":
            assert whole.read_bytes().startswith(path.read_bytes())
        kills += run_until_killed(path, line // 2, **now)  # and once more, on the way
        made = update(path, **now)
        assert captions(path) == expected
        if table_format != "parquet":
            assert path.read_bytes() == whole.read_bytes()
        assert set(made) <= set(KEYS)
        assert update(path, **now) == []
    assert kills > 20  # a run may have a line less than the one that was counted


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
    for line in range(line_count - 40, line_count):
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
        return update_captions(
            path, keys, sources, {}, lambda missing: [rows[key] for key in missing], table_format=table_format
        )

    assert update_all(["a,b.jpg"]) == 1
    assert update_all(["a,b.jpg"]) == 0
    assert update_all(["c.jpg"]) == 1
    assert list(read_captions(path)) == [names["c.jpg"]]
    assert update_all(["'d.jpg", "c.jpg"]) == 1
    assert update_all(["'d.jpg", "c.jpg"]) == 0
    assert [row.path for row in read_captions(path)] == ["'d.jpg", "c.jpg"]
