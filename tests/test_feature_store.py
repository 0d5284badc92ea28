"""The feature store keeps every row it was given, through interruptions, and says so when it cannot."""

import pickle
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import make_rows, make_spec, make_store

from captionmill.data.errors import SpecMismatchError, StoreError
from captionmill.data.feature_store import FeatureStore, parts_dir
from captionmill.data.feature_writer import ROWS_PER_PART, FeatureWriter


def test_rows_come_back_by_key_in_sorted_order(tmp_path: Path) -> None:
    rows = make_rows(3)
    store = FeatureStore.open(make_store(tmp_path / "f.h5", ["c/x.jpg", "a.jpg", "b ü.jpg"], rows))
    assert store.keys == ["a.jpg", "b ü.jpg", "c/x.jpg"]
    np.testing.assert_array_equal(store["c/x.jpg"], rows[0])
    np.testing.assert_array_equal(store.read([2, 0, 2]), rows[[0, 1, 0]])
    assert "a.jpg" in store
    assert "x.jpg" not in store
    with pytest.raises(KeyError):
        store["x.jpg"]


def test_the_same_rows_in_another_order_make_the_same_file(tmp_path: Path) -> None:
    rows = make_rows(4)
    first = make_store(tmp_path / "1.h5", ["a", "b", "c", "d"], rows)
    second = make_store(tmp_path / "2.h5", ["d", "c", "b", "a"], rows[::-1].copy())
    assert first.read_bytes() == second.read_bytes()


def test_an_interrupted_writer_keeps_its_rows_and_the_next_goes_on(tmp_path: Path) -> None:
    path, rows = tmp_path / "f.h5", make_rows(4)

    def interrupted() -> None:
        with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
            writer.add(["b", "a"], rows[:2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()
    assert FeatureStore.open(path).keys == ["a", "b"]
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        assert writer.store is not None
        assert writer.store.keys == ["a", "b"]
        writer.add(["c", "d"], rows[2:])
    store = FeatureStore.open(path)
    assert store.keys == ["a", "b", "c", "d"]
    assert not parts_dir(path).exists()
    np.testing.assert_array_equal(store.read([1, 0, 2, 3]), rows)


def test_a_full_part_is_on_disk_before_the_writer_ends(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    keys = [f"{number:05d}" for number in range(ROWS_PER_PART)]
    with FeatureWriter(path, make_spec(), dtype="float16", made_by={}) as writer:
        writer.add(keys, make_rows(ROWS_PER_PART))
        assert len(FeatureStore.open(path)) == ROWS_PER_PART
        assert FeatureStore.open(path).part_count == 1


def test_a_killed_writer_leaves_a_store_that_opens_verifies_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    program = f"""
import itertools, sys
from pathlib import Path
import numpy as np
from captionmill.data.feature_spec import FeatureSpec
from captionmill.data.feature_writer import FeatureWriter
spec = FeatureSpec.from_json({make_spec().to_json()!r})
with FeatureWriter(Path({str(path)!r}), spec, dtype="float32", made_by={{}}) as writer:
    for number in itertools.count():
        writer.add([f"{{number:07d}}"], np.full((1, 8), number, np.float32))
        writer.flush()
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while len(list(parts_dir(path).glob("part-*.h5"))) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    store = FeatureStore.open(path)
    assert store.verify() == []
    assert [store[key][0] for key in store.keys] == list(range(len(store)))
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        writer.add(["z"], make_rows(1))
    assert len(FeatureStore.open(path)) == len(store) + 1


def test_verify_names_the_row_in_which_a_byte_changed(tmp_path: Path) -> None:
    rows = make_rows(5)
    path = make_store(tmp_path / "f.h5", list("abcde"), rows)
    content = bytearray(path.read_bytes())
    place = content.index(rows[3].tobytes()) + 5
    content[place] ^= 1
    path.write_bytes(content)
    assert FeatureStore.open(path).verify() == ["d"]


def test_a_damaged_row_stays_known_as_damaged_when_rows_are_added(tmp_path: Path) -> None:
    rows = make_rows(5)
    path = make_store(tmp_path / "f.h5", list("abcde"), rows)
    content = bytearray(path.read_bytes())
    content[content.index(rows[3].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    make_store(path, ["f"], make_rows(1, seed=1))
    assert FeatureStore.open(path).verify() == ["d"]


def test_rows_of_another_network_are_refused_with_both_values(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a"], make_rows(1))
    other = make_spec(weights="other.pth", weights_sha256="b" * 64, preprocess="squash")
    with pytest.raises(SpecMismatchError) as error:
        FeatureWriter(path, other, dtype="float32", made_by={})
    assert str(error.value) == (
        f"{path} and this run do not fit: {path} has weights: imagenet1k_v1 (aaaaaaaaaaaa), "
        "not other.pth (bbbbbbbbbbbb); preprocess: crop, not squash"
    )


def test_rows_of_another_dtype_are_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", ["a"], make_rows(1))
    with pytest.raises(StoreError, match="holds float32 rows, not float16"):
        FeatureWriter(path, make_spec(), dtype="float16", made_by={})


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="not finite in float16"),
        FeatureWriter(tmp_path / "f.h5", make_spec(), dtype="float16", made_by={}) as writer,
    ):
        writer.add(["a"], np.full((1, 8), 1e5, np.float32))


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with (
        FeatureWriter(path, make_spec(), dtype="float32", made_by={}),
        pytest.raises(StoreError, match="another process is writing"),
    ):
        FeatureWriter(path, make_spec(), dtype="float32", made_by={})


def test_a_store_travels_to_another_process(tmp_path: Path) -> None:
    rows = make_rows(2)
    store = FeatureStore.open(make_store(tmp_path / "f.h5", ["a", "b"], rows))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store))["b"], rows[1])


def test_a_store_rewritten_in_chunks_by_another_tool_is_still_read(tmp_path: Path) -> None:
    rows = make_rows(3)
    path = make_store(tmp_path / "f.h5", ["a", "b", "c"], rows)
    with h5py.File(path, "a") as file:
        del file["features"]
        file.create_dataset("features", data=rows, chunks=(2, 8), compression="gzip")
    np.testing.assert_array_equal(FeatureStore.open(path)["c"], rows[2])


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_no_store_is_a_one_line_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.h5"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"f\.h5: not a readable feature store") as error:
        FeatureStore.open(path)
    assert "\n" not in str(error.value)


def test_a_truncated_store_is_an_error(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", [f"{number}" for number in range(500)], make_rows(500))
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(StoreError, match="not a readable feature store"):
        FeatureStore.open(path)


def test_a_foreign_hdf5_file_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(StoreError, match="not a captionmill feature store"):
        FeatureStore.open(tmp_path / "f.h5")


def test_a_missing_store_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="captionmill extract IMAGES --output"):
        FeatureStore.open(tmp_path / "f.h5")
