"""Repair takes out what is damaged, says what it was, and touches nothing else."""

from pathlib import Path

import filelock
import numpy as np
import pytest
from builders import add_part, column_start, make_rows, make_spec, make_store

from captionmill.data.errors import StoreError
from captionmill.data.features.parts import parts_dir
from captionmill.data.features.repair import RepairSummary, repair_store
from captionmill.data.features.shard import Shard
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.images.read import ImageSource

KEYS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
SOURCES = [ImageSource(100 + number, 200 + number, 300 + number) for number in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished store of five rows."""
    with FeatureWriter(tmp_path / "f.h5", make_spec(), dtype="float32", made_by={"by": "test"}) as writer:
        writer.add(KEYS, make_rows(5), SOURCES)
    return tmp_path / "f.h5"


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` but locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_only_the_damaged_rows_are_dropped_and_all_others_stay_as_they_were(path: Path) -> None:
    flip(path, column_start(path, "features") + 32 + 7)
    flip(path, column_start(path, "checksums") + 4 * 2)
    flip(path, column_start(path, "sources") + 24 * 4 + 23, 7)
    assert repair_store(path) == RepairSummary(("b.jpg", "c.jpg", "e.jpg"), ())
    store = FeatureStore.open(path)
    assert store.keys == ["a.jpg", "d.jpg"]
    assert store.verify() == []
    assert store.read([0, 1]).tobytes() == make_rows(5)[[0, 3]].tobytes()
    assert [store.source(key) for key in store.keys] == [SOURCES[0], SOURCES[3]]
    assert (store.spec, store.dtype, store.made_by) == (make_spec(), "float32", {"by": "test"})
    assert repair_store(path) == RepairSummary((), ())


def test_the_rows_made_again_after_a_repair_complete_the_store(path: Path) -> None:
    whole = FeatureStore.open(path).digest()
    flip(path, column_start(path, "features") + 32 * 3)
    (damaged,) = repair_store(path).rows_dropped
    assert damaged == "d.jpg"
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        writer.add([damaged], make_rows(5)[3:4], SOURCES[3:4])
    assert FeatureStore.open(path).digest() == whole


def test_float16_rows_stay_float16(tmp_path: Path) -> None:
    path, rows = tmp_path / "f.h5", make_rows(3).astype(np.float16)
    with FeatureWriter(path, make_spec(), dtype="float16", made_by={}) as writer:
        writer.add(["a", "b", "c"], rows)
    flip(path, column_start(path, "features") + 16)
    assert repair_store(path).rows_dropped == ("b",)
    store = FeatureStore.open(path)
    assert (store.keys, store.dtype) == (["a", "c"], "float16")
    np.testing.assert_array_equal(store.read([0, 1]), rows[[0, 2]])


def test_a_row_whose_key_is_no_text_any_more_is_dropped_under_what_can_be_read_of_it(path: Path) -> None:
    flip(path, path.read_bytes().index(b"c.jpg"), 7)
    assert repair_store(path) == RepairSummary(("\\xe3.jpg",), ())
    store = FeatureStore.open(path)
    assert store.keys == ["a.jpg", "b.jpg", "d.jpg", "e.jpg"]
    assert store.verify() == []


def test_a_row_damaged_in_a_part_does_not_bring_back_the_older_one(path: Path) -> None:
    part = add_part(path, ["b.jpg", "f.jpg"], make_rows(2, seed=1))
    flip(part, column_start(part, "features"))
    assert repair_store(path) == RepairSummary(("b.jpg",), ())
    store = FeatureStore.open(path)
    assert store.keys == ["a.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"]
    np.testing.assert_array_equal(store["f.jpg"], make_rows(2, seed=1)[1])


def test_every_row_damaged_leaves_an_empty_store_that_goes_on(path: Path) -> None:
    for number in range(5):
        flip(path, column_start(path, "features") + 32 * number)
    assert repair_store(path).rows_dropped == tuple(KEYS)
    assert FeatureStore.open(path).keys == []
    make_store(path, ["a.jpg"], make_rows(1))
    assert FeatureStore.open(path).keys == ["a.jpg"]


def test_a_large_store_is_repaired_without_rewriting_its_main_file(tmp_path: Path) -> None:
    keys = [f"{number:05d}" for number in range(20_001)]
    path = make_store(tmp_path / "f.h5", keys, make_rows(20_001))
    flip(path, column_start(path, "features") + 32 * 7)
    content = path.read_bytes()
    assert repair_store(path) == RepairSummary(("00007",), ())
    assert path.read_bytes() == content
    store = FeatureStore.open(path)
    assert (len(store), "00007" in store, store.part_count) == (20_000, False, 1)
    assert store.verify() == []
    assert repair_store(path) == RepairSummary((), ())


def test_an_unreadable_part_is_set_aside_and_the_rest_goes_on(path: Path) -> None:
    broken = add_part(path, ["f.jpg"], make_rows(1, seed=1))
    add_part(path, ["g.jpg"], make_rows(1, seed=2))
    content = broken.read_bytes()[:-100]
    broken.write_bytes(content)
    with pytest.raises(StoreError, match="not a readable feature store"):
        FeatureStore.open(path)
    aside = broken.with_name(f"{broken.name}.damaged")
    assert repair_store(path) == RepairSummary((), (aside,))
    assert files_of(parts_dir(path)) == {aside.name: content}
    assert FeatureStore.open(path).keys == [*KEYS, "g.jpg"]
    make_store(path, ["f.jpg"], make_rows(1, seed=1))
    store = FeatureStore.open(path)
    assert store.keys == [*KEYS, "f.jpg", "g.jpg"]
    assert store.verify() == []
    np.testing.assert_array_equal(store.read([5, 6]), [make_rows(1, seed=1)[0], make_rows(1, seed=2)[0]])
    assert files_of(parts_dir(path)) == {aside.name: content}


def test_an_unreadable_main_file_is_set_aside_when_parts_can_be_read(path: Path) -> None:
    part = add_part(path, ["f.jpg", "g.jpg"], make_rows(2, seed=1))
    flip(part, column_start(part, "features"))
    path.write_bytes(b"no HDF5")
    aside = path.with_name("f.h5.damaged")
    assert repair_store(path) == RepairSummary(("f.jpg",), (aside,))
    assert files_of(path.parent).keys() == {"f.h5", "f.h5.damaged"}
    assert aside.read_bytes() == b"no HDF5"
    assert FeatureStore.open(path).keys == ["g.jpg"]


def test_a_sound_store_is_not_touched(path: Path) -> None:
    before, stat = files_of(path.parent), path.stat()
    assert repair_store(path) == RepairSummary((), ())
    assert files_of(path.parent) == before
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def test_a_sound_shard_stays_a_shard(tmp_path: Path) -> None:
    path, shard = tmp_path / "f.h5", Shard.of(KEYS, 1, 2)
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}, shard=shard) as writer:
        writer.add(KEYS[:2], make_rows(2))
    before = path.read_bytes()
    assert repair_store(path) == RepairSummary((), ())
    assert FeatureStore.open(path).shard == shard
    assert path.read_bytes() == before


def test_no_store_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such feature store"):
        repair_store(tmp_path / "f.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_main_file_that_is_all_there_is_stays_where_it_is_if_it_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(StoreError, match=r"f\.h5: not a readable feature store"):
        repair_store(path)
    assert files_of(tmp_path) == {"f.h5": b"no HDF5"}


def test_a_store_of_which_nothing_can_be_read_stays_as_it_is(path: Path) -> None:
    part = add_part(path, ["f.jpg"], make_rows(1))
    part.write_bytes(b"no part")
    path.write_bytes(b"no HDF5")
    before = files_of(path.parent)
    with pytest.raises(StoreError, match="not a readable feature store"):
        repair_store(path)
    assert files_of(path.parent) == before


def test_a_repair_refused_because_another_writes_changes_nothing(path: Path) -> None:
    part = add_part(path, ["f.jpg"], make_rows(1))
    part.write_bytes(b"no part")
    before = files_of(path.parent)
    with (
        filelock.FileLock(parts_dir(path) / ".lock"),
        pytest.raises(StoreError, match="another process is writing to this store"),
    ):
        repair_store(path)
    assert files_of(path.parent) == before
