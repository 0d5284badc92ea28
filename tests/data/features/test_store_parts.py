"""Only what a writer called a part is one: copies that other programs make of parts hold nobody's rows."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import add_part, make_rows, make_spec, make_store

from captionmill.data.features.merge import merge_stores
from captionmill.data.features.parts import is_part_name, part_paths, parts_dir
from captionmill.data.features.repair import RepairSummary, repair_store
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter

FOREIGN = [
    "part-backup.h5",
    "part-1.h5",
    "part-000001-000000-000001-0011aabb (conflicted copy 2026-11-28).h5",
    "part-000001-000000-000001-0011aabb.sync-conflict-20261128-231500-ABCDEFG.h5",
    "part-000001-000000-000001-0011aabb-LAPTOP.h5",
    "part-000001-000000-000001-0011aabb 2.h5",
    "part-000001-000000-000001-0011aabb(1).h5",
    "part-000009-000000-000001-0011aabb.H5",
    "Copy of part-000001-000000-000001-0011aabb.h5",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of a main file and two parts, and in its folder of parts an older part under each foreign name."""
    path = make_store(tmp_path / "f.h5", ["a"], make_rows(1))
    add_part(path, ["b"], make_rows(1, seed=1))
    (old,) = part_paths(path)
    for name in FOREIGN:
        shutil.copy(old, parts_dir(path) / name)
    (parts_dir(path) / "part-1.h5").write_text("a text")
    (parts_dir(path) / "part-000000-000000-000000-00000000.h5.damaged").write_bytes(b"set aside before")
    (parts_dir(path) / ".part-000001-000000-000001-0011aabb.h5.Xy12Zz").write_bytes(b"a copy in transit")
    add_part(path, ["b"], make_rows(1, seed=2))
    return path


def test_names_of_parts_are_those_that_a_writer_gives() -> None:
    assert is_part_name("part-000001-000000-000001-0011aabb.h5")
    assert is_part_name("part-000001-000000-000001-0011aabb_joined_joined.h5")
    assert [name for name in FOREIGN if is_part_name(name)] == []


def test_what_a_kill_left_beside_a_store_goes_also_if_nothing_is_new(path: Path) -> None:
    path = Path(shutil.copytree(path.parent, path.parent / "copy")) / path.name  # a process clears a folder once
    left = path.with_name(".f.h5.0123456789abcdef.partial")
    left.write_text("half")
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}):
        assert not left.exists()


def test_copies_of_parts_are_named_once_and_no_row_comes_from_them(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        store = FeatureStore.open(path)
        FeatureStore.open(path)
    assert (store.keys, store.part_count) == (["a", "b"], 2)
    np.testing.assert_array_equal(store["b"], make_rows(1, seed=2)[0])
    assert [record.getMessage() for record in caplog.records] == []  # the second writer of the fixture warned of them
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    moved = Path(shutil.move(path, elsewhere / "f.h5"))
    shutil.move(parts_dir(path), parts_dir(moved))
    with caplog.at_level(logging.WARNING):
        FeatureStore.open(moved)
        FeatureStore.open(moved)
    names = ", ".join(sorted(FOREIGN)[:3])
    expected = (
        f"9 files were put there by another program ({names}, ...); their rows are not read: remove or rename them"
    )
    assert [record.getMessage() for record in caplog.records] == [f"{parts_dir(moved)}: {expected}"]


def test_writing_repairing_and_merging_leave_them_where_they_are(path: Path) -> None:
    before = {name: (parts_dir(path) / name).read_bytes() for name in FOREIGN}
    assert repair_store(path) == RepairSummary((), ())
    make_store(path, ["c"], make_rows(1, seed=3))
    assert part_paths(path) == []
    assert FeatureStore.open(path).keys == ["a", "b", "c"]
    assert merge_stores([path], path.parent / "merged.h5").rows == 3
    assert {name: (parts_dir(path) / name).read_bytes() for name in FOREIGN} == before


def test_one_foreign_file_is_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_store(tmp_path / "f.h5", ["a"], make_rows(1))
    parts_dir(path).mkdir()
    shutil.copy(path, parts_dir(path) / "part-backup.h5")
    with caplog.at_level(logging.WARNING):
        assert FeatureStore.open(path).keys == ["a"]
    expected = "1 file was put there by another program (part-backup.h5); its rows are not read: remove or rename it"
    assert [record.getMessage() for record in caplog.records] == [f"{parts_dir(path)}: {expected}"]
