"""The feature store keeps every row it was given, through interruptions, and says so when it cannot."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import add_part, column_start, make_rows, make_spec, make_store

from captionmill.data.errors import SpecMismatchError, StoreError
from captionmill.data.features.parts import FileChanged, part_paths, parts_dir
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import ROWS_PER_PART, FeatureWriter
from captionmill.data.images.read import ImageSource

LARGE_KEYS = [
    f"{number:05d}.jpg" for number in range(5_001)
]  # more than a store is read, and files are merged, at once
LARGE_ROWS = make_rows(len(LARGE_KEYS))
KEYS, ROWS = LARGE_KEYS[:400], LARGE_ROWS[:400]


@pytest.fixture(scope="module")
def finished_large_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("large") / "f.h5", LARGE_KEYS, LARGE_ROWS)


@pytest.fixture
def large_store(finished_large_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own, of one file that counts as too large to be rewritten for a few rows."""
    monkeypatch.setattr("captionmill.data.features.writer._SMALL_ROWS", len(LARGE_KEYS) - 1)
    return Path(shutil.copy(finished_large_store, tmp_path / "f.h5"))


@pytest.fixture
def kept_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of 400 rows that counts as too large, for what does not depend on how many rows are read at once."""
    monkeypatch.setattr("captionmill.data.features.writer._SMALL_ROWS", len(KEYS) - 1)
    return make_store(tmp_path / "f.h5", KEYS, ROWS)


def drop_rows(path: Path, keys: Sequence[str]) -> None:
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        writer.drop(keys)


def join_parts(path: Path, on_change: FileChanged) -> None:
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}, on_change=on_change):
        pass


def identity(path: Path) -> tuple[int, int, int]:
    """Changes when a file is written, or replaced by another."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def flip(path: Path, place: int, bit: int) -> None:
    """Change one bit; the second time change it back."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


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


_FULL_DISK = """
import json, os, resource, signal, sys
from pathlib import Path
import numpy as np
from captionmill.data.errors import StoreError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.writer import FeatureWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spec = FeatureSpec.from_json(json.loads(sys.argv[2]))
for room in map(int, sys.argv[3:]):
    if not os.fork():  # the imports are shared; each child ends as a process does
        break
    status = os.wait()[1]
    if status:
        sys.exit(f"a room of {room}: status {status}")
else:
    sys.exit()
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
before = os.listdir("/proc/self/fd")
try:
    with FeatureWriter(Path(sys.argv[1]), spec, dtype="float32", made_by={}) as writer:
        writer.add([f"{number:05d}.jpg" for number in range(1000)], np.random.rand(1000, 8).astype(np.float32))
except StoreError as exc:
    print(room, exc, len(os.listdir("/proc/self/fd")) - len(before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and counts the files of a process as Linux does")
def test_a_process_whose_disk_is_full_keeps_no_file_open_and_ends_in_order(tmp_path: Path) -> None:
    """Through the interpreter's own end: HDF5 closes what it holds open there."""
    rooms = ["0", "4096", "30000", "70000"]
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, tmp_path / "f.h5", json.dumps(make_spec().to_json()), *rooms],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for room, line in zip(rooms, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{room} {tmp_path}")
        assert line.endswith(
            "cannot be written (file too large); rows already in parts are safe, run again to resume 0"
        )
    assert list(tmp_path.rglob("*.h5")) == []


def test_a_disk_without_room_for_the_rows_is_found_before_hdf5_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 can end the process in a segmentation fault where the disk is full."""
    usage, path, rows = shutil.disk_usage(tmp_path), tmp_path / "f.h5", make_rows(300)
    keys = [f"{number}.jpg" for number in range(300)]
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=90_000))
        with pytest.raises(StoreError, match=r"no space left on device\); rows already in parts are safe"):
            make_store(path, keys, rows)
    assert [found for found in tmp_path.rglob("*.h5*") if found.is_file()] == []
    make_store(path, keys, rows)
    assert len(FeatureStore.open(path).keys) == len(keys)


def test_a_killed_writer_leaves_a_store_that_opens_verifies_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    program = f"""
import itertools, sys
from pathlib import Path
import numpy as np
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.writer import FeatureWriter
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
        "not other.pth (bbbbbbbbbbbb); preprocess: crop, not squash: "
        "pass `weights` imagenet1k_v1, `preprocess` crop, or `overwrite`"
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
    with pytest.raises(StoreError, match="no such feature store; `captionmill extract` makes one"):
        FeatureStore.open(tmp_path / "f.h5")


def test_a_few_rows_beside_a_large_store_leave_its_main_file_untouched(large_store: Path) -> None:
    content, before = large_store.read_bytes(), identity(large_store)
    rows = make_rows(2, seed=1)
    make_store(large_store, ["00007.jpg", "new.jpg"], rows)
    assert identity(large_store) == before
    assert large_store.read_bytes() == content
    store = FeatureStore.open(large_store)
    assert store.part_count == 1
    assert store.keys == [*LARGE_KEYS, "new.jpg"]
    assert store.verify() == []
    np.testing.assert_array_equal(store.read([5_001, 6, 7, 8]), [rows[1], LARGE_ROWS[6], rows[0], LARGE_ROWS[8]])


def test_rows_of_main_file_and_part_come_in_the_order_of_keys_block_by_block(kept_store: Path) -> None:
    rows = make_rows(2, seed=1)
    make_store(kept_store, ["00001b.jpg", "00000b.jpg"], rows)
    blocks = list(FeatureStore.open(kept_store).blocks(block_rows=3))
    assert blocks[0][0] == ["00000.jpg", "00000b.jpg", "00001.jpg"]
    assert blocks[1][0] == ["00001b.jpg", "00002.jpg", "00003.jpg"]
    np.testing.assert_array_equal(blocks[0][1], [ROWS[0], rows[1], ROWS[1]])
    np.testing.assert_array_equal(blocks[1][1], [rows[0], ROWS[2], ROWS[3]])
    assert [key for keys, _ in blocks for key in keys] == sorted([*KEYS, "00000b.jpg", "00001b.jpg"])


def test_where_a_system_reads_at_no_place_of_a_file_rows_are_read_behind_each_other(
    large_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "preadv")  # as on Windows
    store = FeatureStore.open(large_store)
    np.testing.assert_array_equal(store.read([3, 5_000, 0, 1]), LARGE_ROWS[[3, 5_000, 0, 1]])
    large_store.write_bytes(large_store.read_bytes()[: large_store.stat().st_size // 2])
    with pytest.raises(StoreError, match=r"f\.h5: became shorter since it was opened; copy it again"):
        store.read([5_000])


def test_a_second_append_joins_the_parts_into_one(kept_store: Path) -> None:
    before = identity(kept_store)
    rows = make_rows(4, seed=1)
    make_store(kept_store, ["x", "y"], rows[:2])
    make_store(kept_store, ["y", "z"], rows[2:])
    assert identity(kept_store) == before
    assert len(part_paths(kept_store)) == 1
    store = FeatureStore.open(kept_store)
    assert store.keys == [*KEYS, "x", "y", "z"]
    assert store.verify() == []
    np.testing.assert_array_equal(store.read([400, 401, 402]), rows[[0, 2, 3]])


def test_parts_are_joined_into_the_main_file_once_they_hold_a_quarter_of_its_rows(large_store: Path) -> None:
    before = identity(large_store)
    keys, rows = [f"new {number}" for number in range(1_251)], make_rows(1_251, seed=1)
    make_store(large_store, keys[:1_250], rows[:1_250])
    assert identity(large_store) == before
    assert FeatureStore.open(large_store).part_count == 1
    make_store(large_store, keys[1_250:], rows[1_250:])
    assert not parts_dir(large_store).exists()
    assert identity(large_store) != before
    store = FeatureStore.open(large_store)
    assert store.keys == sorted(LARGE_KEYS + keys)
    assert store.verify() == []
    np.testing.assert_array_equal(store.read([store.position(key) for key in keys]), rows)
    np.testing.assert_array_equal(store.read([store.position(key) for key in LARGE_KEYS]), LARGE_ROWS)


def test_appended_in_one_piece_or_in_many_the_content_is_the_same(large_store: Path, tmp_path: Path) -> None:
    rows = make_rows(3, seed=1)
    for key, row in zip("xyz", rows, strict=True):
        make_store(large_store, [key], row[None])
    whole = make_store(tmp_path / "whole.h5", [*LARGE_KEYS, "x", "y", "z"], np.concatenate([LARGE_ROWS, rows]))
    assert FeatureStore.open(large_store).part_count == 1
    assert FeatureStore.open(whole).part_count == 0
    assert FeatureStore.open(large_store).digest() == FeatureStore.open(whole).digest()


def test_a_dropped_row_is_gone_from_its_part_on_and_after_joining(tmp_path: Path) -> None:
    rows = make_rows(3)
    path = make_store(tmp_path / "f.h5", ["a", "b", "c"], rows)
    add_part(path, drop=["b", "never there"])
    store = FeatureStore.open(path)
    assert (store.keys, store.part_count) == (["a", "c"], 1)
    assert "b" not in store
    make_store(path, [], rows[:0])
    store = FeatureStore.open(path)
    assert (store.keys, store.part_count) == (["a", "c"], 0)
    np.testing.assert_array_equal(store.read([0, 1]), rows[[0, 2]])


def test_rows_dropped_from_a_large_store_stay_dropped_in_its_one_part(kept_store: Path) -> None:
    before = identity(kept_store)
    drop_rows(kept_store, ["00001.jpg"])
    make_store(kept_store, ["new"], make_rows(1))
    drop_rows(kept_store, ["new", "00003.jpg"])
    assert identity(kept_store) == before
    store = FeatureStore.open(kept_store)
    assert store.part_count == 1
    assert store.keys == [key for key in KEYS if key not in {"00001.jpg", "00003.jpg"}]
    np.testing.assert_array_equal(store.read([0, 1, 2]), ROWS[[0, 2, 4]])


def test_a_row_dropped_and_added_again_counts(tmp_path: Path) -> None:
    rows = make_rows(3)
    path = make_store(tmp_path / "f.h5", ["a", "b"], rows[:2])
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        writer.drop(["a", "b"])
        writer.add(["b"], rows[2:])
    store = FeatureStore.open(path)
    assert store.keys == ["b"]
    np.testing.assert_array_equal(store["b"], rows[2])


def test_a_row_dropped_by_one_part_and_added_by_the_next_counts_after_joining_both(kept_store: Path) -> None:
    row = make_rows(1, seed=1)
    drop_rows(kept_store, ["00000.jpg", "00001.jpg"])
    make_store(kept_store, ["00001.jpg"], row)
    store = FeatureStore.open(kept_store)
    assert store.part_count == 1
    assert store.keys == KEYS[1:]
    np.testing.assert_array_equal(store["00001.jpg"], row[0])


def test_a_row_added_dropped_and_added_in_parts_of_one_writer_is_the_last(tmp_path: Path) -> None:
    path, rows = tmp_path / "f.h5", make_rows(3)
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        writer.add(["a", "b"], rows[:2])
        writer.flush()
        writer.drop(["a", "b"])
        writer.flush()
        assert FeatureStore.open(path).keys == []
        writer.add(["a"], rows[2:])
    store = FeatureStore.open(path)
    assert store.keys == ["a"]
    np.testing.assert_array_equal(store["a"], rows[2])


def test_a_key_in_several_parts_has_the_row_and_the_source_of_the_last(tmp_path: Path) -> None:
    path, rows = tmp_path / "f.h5", make_rows(4)
    make_store(path, ["a", "b"], rows[:2])
    add_part(path, ["a"], rows[2:3])

    def check(part_count: int) -> None:
        store = FeatureStore.open(path)
        assert store.part_count == part_count
        np.testing.assert_array_equal(store.read([0, 1]), rows[[3, 1]])
        assert store.source("a") == ImageSource(1, 2, 3)

    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        writer.add(["a", "a"], rows[[1, 3]], [ImageSource(9, 9, 9), ImageSource(1, 2, 3)])
        writer.flush()
        check(part_count=2)
    check(part_count=0)


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_kill_between_two_steps_of_joining_changes_no_row(size: str, kept_store: Path, tmp_path: Path) -> None:
    rows = make_rows(9, seed=1)
    store_path = kept_store
    if size == "small":
        store_path = make_store(tmp_path / "small" / "f.h5", KEYS[:6], ROWS[:6])
    add_part(store_path, ["00001.jpg", "new 1", "new 2"], rows[:3], drop=["00000.jpg", "00002.jpg"])
    add_part(store_path, ["00000.jpg", "new 3"], rows[3:5], drop=["new 1"])
    add_part(store_path, ["new 1", "00001.jpg"], rows[5:7], drop=["new 2", "00004.jpg"])
    add_part(store_path, ["00004.jpg", "new 4"], rows[7:], drop=["00003.jpg", "new 3"])
    before = FeatureStore.open(store_path)
    assert before.part_count == 4
    assert before.keys[:4] == ["00000.jpg", "00001.jpg", "00004.jpg", "00005.jpg"]
    assert before.keys[-2:] == ["new 1", "new 4"]
    np.testing.assert_array_equal(before.read([0, 1, 2]), rows[[3, 6, 7]])
    np.testing.assert_array_equal([before["new 1"], before["new 4"]], rows[[5, 8]])

    def join_and_die(path: Path, *, after: int) -> list[str]:
        """Join the parts of a copy at `path`, and be interrupted after so many changes of files: the files changed."""
        path.parent.mkdir()
        shutil.copy(store_path, path)
        shutil.copytree(parts_dir(store_path), parts_dir(path))
        changed: list[str] = []

        def die(changed_path: Path) -> None:
            changed.append(changed_path.name)
            if len(changed) == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            join_parts(path, die)
        return changed

    digest = before.digest()
    parts = [part.name for part in part_paths(store_path)]
    steps = ["f.h5", *parts] if size == "small" else [f"{Path(parts[3]).stem}_joined.h5", *parts]
    for count in range(1, len(steps) + 1):
        path = tmp_path / f"{count} steps" / "f.h5"
        assert join_and_die(path, after=count) == steps[:count]
        killed = FeatureStore.open(path)
        left = 5 - count if size == "small" else 6 - count
        assert (killed.part_count, killed.digest()) == (left, digest)
        assert killed.verify() == []
        join_parts(path, lambda changed_path: None)
        joined = FeatureStore.open(path)
        assert (joined.part_count, joined.digest()) == (0 if size == "small" else 1, digest)


def test_what_killed_writers_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    rows = make_rows(3)
    path = make_store(tmp_path / "f.h5", ["a"], rows[:1])
    add_part(path, ["b"], rows[1:2])
    for name in ("part-000001-000000-000002-0011aabb.h5", "part-000001-000003-000001-ccdd2233.h5"):
        (parts_dir(path) / f".{name}.partial").write_bytes(b"half")
    assert FeatureStore.open(path).keys == ["a", "b"]
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        assert list(parts_dir(path).glob(".*.partial")) == []
        writer.add(["c"], rows[2:])
    assert FeatureStore.open(path).keys == ["a", "b", "c"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.h5"]


def make_sourced_store(path: Path, keys: Sequence[str]) -> Path:
    """A store whose every row has a source that no other has."""
    sources = [ImageSource(1000 + number, 10**18 + number, 2**63 + number) for number in range(len(keys))]
    with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
        writer.add(keys, make_rows(len(keys)), sources)
    return path


@pytest.mark.parametrize(("column", "row_bytes"), [("features", 32), ("checksums", 4), ("sources", 24)])
def test_verify_names_the_row_of_any_one_flipped_bit(tmp_path: Path, column: str, row_bytes: int) -> None:
    keys = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    path = make_sourced_store(tmp_path / "f.h5", keys)
    start = column_start(path, column)
    for place in range(row_bytes * len(keys)):
        flip(path, start + place, place % 8)
        assert FeatureStore.open(path).verify() == [keys[place // row_bytes]], f"byte {place} of {column}"
        flip(path, start + place, place % 8)
    assert FeatureStore.open(path).verify() == []


def test_verify_names_the_key_of_any_one_flipped_bit_as_it_reads_now(tmp_path: Path) -> None:
    keys = ["a 0@.jpg", "bü/1.jpg", "c日本.png", "last"]
    path = make_sourced_store(tmp_path / "f.h5", keys)
    content = path.read_bytes()
    for key in map(str.encode, keys):
        start = content.index(key + bytes(-len(key) % 8))
        for place in range(len(key)):
            for bit in range(8):
                damaged = bytearray(key)
                damaged[place] ^= 1 << bit
                flip(path, start + place, bit)
                name = bytes(damaged).partition(b"\0")[0].decode(errors="backslashreplace")
                assert FeatureStore.open(path).verify() == [name], f"bit {bit} of byte {place} of {key!r}"
                flip(path, start + place, bit)
    assert FeatureStore.open(path).verify() == []


@pytest.mark.parametrize(("key", "neighbour"), [("img1.jpg", "img0.jpg"), ("img0.jpg", "img1.jpg")])
def test_verify_names_a_key_that_a_flipped_bit_made_its_neighbours(tmp_path: Path, key: str, neighbour: str) -> None:
    path = make_sourced_store(tmp_path / "f.h5", ["img0.jpg", "img1.jpg", "img4.jpg"])
    flip(path, path.read_bytes().index(key.encode()) + 3, 0)
    assert FeatureStore.open(path).verify() == [neighbour]


def test_a_flipped_bit_in_a_part_is_found_too(large_store: Path) -> None:
    make_store(large_store, ["x", "y"], make_rows(2, seed=1))
    (part,) = part_paths(large_store)
    flip(part, column_start(part, "features") + 32, 7)
    flip(large_store, column_start(large_store, "features") + 32 * 5_000, 0)
    assert FeatureStore.open(large_store).verify() == ["05000.jpg", "y"]
